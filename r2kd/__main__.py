"""python -m r2kd {teacher,distill,evaluate,runs,doctor}: one training, one evaluation, the table of all runs, or whether
what is here is whole. `run_all.py` runs a whole study.

Exit code 0; 1 where something went wrong, is damaged, or has a value that cannot be, 2 for wrong options, 130 when interrupted."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from r2kd import terminal

if __name__ == "__main__":
    terminal.prepare()  # before torch, whose import takes seconds

import torch

from . import data, doctor, entries, evaluation, fidelity, models, profiles, records, runs, training
from .augmentation import AUGMENTATIONS
from .config import DistillConfig, TeacherConfig
from .methods import METHODS
from .parts import Data, Machine, Part, Pruning, Recipe

EXAMPLES = """examples:
  python -m r2kd teacher  -d digits -m resnet20
  python -m r2kd distill  -d digits --pair res20_res8 -a cutmix
  python -m r2kd distill  -d cifar100 --pair res56_res20 --method r2kd:temperature=2 -a mixup --pruning-rate 0 --seed 1
  python -m r2kd distill  -d digits --teacher resnet20 --student torchvision:resnet18 --method mine --load my_methods.py
  python -m r2kd evaluate -d tiny_imagenet -m resnet20 -c students/res56_res20_student_best
  python -m r2kd runs --csv > runs.csv

The same call again returns the finished run, or goes on with the one that was cut off."""


def parser() -> argparse.ArgumentParser:
    top = terminal.Parser(
        prog="python -m r2kd",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    known = ", ".join(models.NAMES)

    teacher = commands.add_parser("teacher", help="train a model by cross-entropy")
    teacher.add_argument("-m", "--model", required=True, help=known)
    teacher.add_argument("-c", "--checkpoint", help="its weights, in place of training it")
    _training_options(teacher, Data, Recipe, Machine)

    distill = commands.add_parser("distill", help="train a student, its teacher first")
    pairs = [*profiles.PAIRS, *profiles.SMALL_PAIRS]
    distill.add_argument("--pair", help=f"teacher and student: {', '.join(pairs)}")
    distill.add_argument("--teacher", help=f"in place of a pair's: {known}, torchvision:NAME")
    distill.add_argument("--student", help="the same")
    distill.add_argument("--teacher-checkpoint", help="weights of the teacher, in place of training it")
    distill.add_argument("--method", default="r2kd", help=f"{', '.join(METHODS)}; r2kd:temperature=2,rank=soft [r2kd]")
    distill.add_argument(
        "-a", "--augmentation", default="none", help=f"the second view: {', '.join(AUGMENTATIONS)} [none]"
    )
    distill.add_argument(
        "--fidelity", default="released", help="all of the switches at once: released, intended [released]"
    )
    for switch in fidelity.SWITCHES:
        if switch.part in ("method", "view"):  # the others are settings of a part, below
            option = f"--{switch.name.replace('_', '-')}"
            distill.add_argument(option, dest=switch.key, help=f"{' or '.join(switch.values)} [{switch.released}]")
    _training_options(distill, Data, Recipe, Pruning, Machine)

    evaluate = commands.add_parser("evaluate", help="accuracy of a checkpoint on the test split")
    evaluate.add_argument("-m", "--model", required=True, help=f"{known}, torchvision:NAME")
    evaluate.add_argument(
        "-c", "--checkpoint", required=True, help="a state_dict, bare or under 'model' or 'state_dict'"
    )
    evaluate.add_argument("--load", action="append", default=[], help="a Python file with entries of your own")
    for name in ("dataset", "image_size"):
        _add_setting(evaluate, Data, name)
    for name in ("data_root", "device"):
        _add_setting(evaluate, Machine, name)

    table = commands.add_parser("runs", help="all runs in one table, and what is unfinished")
    _add_setting(table, Machine, "runs_root")
    table.add_argument("--csv", action="store_true", help="every column, as CSV")
    table.add_argument(
        "--delete-unfinished", action="store_true", help="delete the folders of runs that are not finished"
    )
    table.add_argument("--merge", nargs="+", metavar="RECORDS", help="records.csv files, the last of which to write")

    examined = commands.add_parser("doctor", help="versions, device, disk, and whether data sets and runs are whole")
    for name in ("device", "data_root", "runs_root"):
        _add_setting(examined, Machine, name)
    examined.add_argument("--thorough", action="store_true", help="decode every image of the data sets, too")
    return top


def _training_options(command: argparse.ArgumentParser, *parts: type[Part]) -> None:
    for part in parts:
        for setting in dataclasses.fields(part):
            _add_setting(command, part, setting.name)
    command.add_argument("--seed", type=int, default=0, help="[0]")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of any part")
    command.add_argument("--load", action="append", default=[], help="a Python file with entries of your own")


def _add_setting(command: argparse.ArgumentParser, part: type[Part], name: str) -> None:
    """The option of a setting, as its part says it."""
    option = part().settings[name]
    (known,) = (known for known in dataclasses.fields(part) if known.name == name)
    flags = ["-d", "--dataset"] if name == "dataset" else [f"--{name.replace('_', '-')}"]
    kind = {"action": "store_true", "default": None} if option.types == (bool,) else {"metavar": name.upper()}
    required = name == "dataset"
    usual = known.metadata["usual"] or option.default
    default = "" if required or usual is None else f" [{usual}]"
    command.add_argument(*flags, **kind, required=required, help=f"{known.metadata['help']}{default}")


def main(arguments: list[str] | None = None) -> int:
    """The exit code, as said above; what went wrong is one line on stderr."""
    code, told = 0, None
    try:
        code, told = _run(parser().parse_args(arguments))
    except KeyboardInterrupt:
        terminal.complain("\ninterrupted; the same command goes on at the last whole epoch")
        code = terminal.INTERRUPTED
    except Exception as error:
        line = _in_a_line(error)
        if line is None or os.environ.get("R2KD_TRACEBACK"):
            raise
        terminal.complain(f"r2kd: {line}")
        code = 1
    return terminal.tell(told, code)


def _run(options: argparse.Namespace) -> tuple[int, str]:
    """(exit code, what to print). Raises what the command does."""
    commands = {"teacher": teacher, "distill": distill, "evaluate": evaluate, "runs": list_runs, "doctor": examine}
    for path in getattr(options, "load", []):
        entries.load(path)
    done = commands[options.command](options)
    if isinstance(done, list):  # of the doctor
        return int(any(line.startswith(doctor.DAMAGED) for line in done)), "\n".join(done)
    return 0, done if isinstance(done, str) else json.dumps(done)


def _in_a_line(error: Exception) -> str | None:
    """What to say of an error that can be the user's or the machine's; None of another."""
    first = next(iter(str(error).splitlines()), "")
    if isinstance(error, torch.OutOfMemoryError):
        return f"{first} Try --streams 1 or a smaller --batch-size"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in first):
        return f"not enough memory ({first.rpartition('] ')[2]}): try a smaller --image-size or --batch-size"
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return " ".join(str(error).split("\n"))
    return None


def teacher(options: argparse.Namespace) -> dict:
    parts = (Data, Recipe, Machine)
    config = TeacherConfig.of(options.model, seed=options.seed, checkpoint=options.checkpoint)
    config = config.with_settings(_settings(options, *parts))
    config.refuse_idle(_given(options, *parts))
    _print_settings(config)
    return _result(training.train_teacher(config))


def distill_config(options: argparse.Namespace) -> DistillConfig:
    """What the options of distill say. Raises ValueError for what cannot be."""
    if not (options.pair or (options.teacher and options.student)):
        raise ValueError("name a --pair, or a --teacher and a --student")
    pair = profiles.pair_models(options.pair) if options.pair else (None, None)
    parts = (Data, Recipe, Pruning, Machine)
    given = _settings(options, *parts)
    teacher = TeacherConfig.of(options.teacher or pair[0], checkpoint=options.teacher_checkpoint)
    shared = {key: value for key, value in given.items() if teacher.owner(key) in ("data", "machine")}
    teacher = teacher.with_settings(data.recipe(options.dataset) | shared)
    switches = {switch.key: getattr(options, switch.key, None) for switch in fidelity.SWITCHES}
    config = DistillConfig.of(
        options.student or pair[1],
        teacher=teacher,
        method=options.method,
        view=options.augmentation,
        seed=options.seed,
        fidelity=options.fidelity,
    )
    config = config.with_settings(given | {key: value for key, value in switches.items() if value is not None})
    weights = [] if options.teacher_checkpoint is None else ["teacher.checkpoint"]
    config.refuse_idle([*_given(options, *parts), *weights])
    return config


def distill(options: argparse.Namespace) -> dict:
    config = distill_config(options)
    _print_settings(config)
    if config.taught:
        training.put_back(config.teacher)
    run = training.distill(config)
    result = {"top1": training.reported_top1(config, run)} | _result(run)
    if config.taught:
        images = training.open_data(config.teacher)
        taught_by = config.teacher.run(images)
        result["teacher"] = {"run": str(taught_by.folder), "top1": taught_by.result["last_top1"]}
    return result


def evaluate(options: argparse.Namespace) -> dict:
    state = models.read_checkpoint(options.checkpoint)
    classes = models.output_classes(state)
    wanted = Data(dataset=options.dataset, image_size=options.image_size)
    images = data.load(wanted.dataset, options.data_root, wanted.image_size, splits=("test",))
    if classes != images.num_classes:  # a student of some of the classes only, as of a part of Tiny ImageNet
        images = data.load(wanted.dataset, options.data_root, wanted.image_size).with_training_classes()
    if classes != images.num_classes:
        raise ValueError(f"{options.checkpoint} has {classes} classes, {images.name} has {images.num_classes}")
    device = training.resolve_device(options.device or "auto")
    model = models.from_checkpoint(models.MODELS.choose(options.model), classes, options.checkpoint).to(device)
    test = images.test.to(device)
    result = evaluation.summary(evaluation.predict(model, test, images), test.labels)
    return {"top1": round(result["top1"], 2), "top5": round(result["top5"], 2), "n": result["n"]}


def list_runs(options: argparse.Namespace) -> str:
    if options.merge:
        if len(options.merge) < 2:
            raise ValueError("--merge takes two tables at least: those to read, and last the one to write")
        *paths, into = map(Path, options.merge)
        return f"{into}: {records.merge([path for path in [into, *paths] if path != into or into.exists()], into)} runs"
    if options.delete_unfinished:
        deleted = runs.delete_unfinished(options.runs_root)
        return "\n".join([*deleted, f"{len(deleted)} unfinished runs deleted"])
    table = runs.table(options.runs_root)
    if table.empty:
        return f"no run under {runs.root_folder(options.runs_root)}"
    if options.csv:
        return table.to_csv(index=False, lineterminator="\n").rstrip("\n")
    unfinished, damaged = (int(table["state"].str.startswith(state).sum()) for state in ("unfinished", "damaged"))
    told = f"{len(table)} runs, {unfinished} unfinished" + (" (--delete-unfinished clears them)" if unfinished else "")
    told += f", {damaged} damaged (asked for again, a run is mended)" if damaged else ""
    return f"{runs.brief(table).to_string(index=False)}\n\n{told}"


def examine(options: argparse.Namespace) -> list[str]:
    return doctor.examine(options.device or "auto", options.data_root, options.runs_root, options.thorough)


def _settings(options: argparse.Namespace, *parts: type[Part]) -> dict:
    """The data set's recipe, under what is given."""
    return data.recipe(options.dataset) | _given(options, *parts)


def _given(options: argparse.Namespace, *parts: type[Part]) -> dict:
    """The options of the parts, under --set."""
    names = [known.name for part in parts for known in dataclasses.fields(part)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return given | entries.pairs(options.set)


def _print_settings(config: TeacherConfig) -> None:
    print(json.dumps(config.settings(), indent=2), file=sys.stderr)


def _result(run: training.Run) -> dict:
    """What came out, and beside it what the committed records say of the same run."""
    result = {"run": str(run.folder)} | run.result
    record = records.committed().get(run.address)
    if record is None:
        return result
    told = {"top1": record["last_top1"], "here": f"{run.result['last_top1'] - record['last_top1']:+.2f} points"}
    return result | {"record": told | {name: record[name] for name in ("precision", "threads", "torch", "commit")}}


if __name__ == "__main__":
    terminal.raise_interrupt()
    sys.exit(terminal.run(main))
