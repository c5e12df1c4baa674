"""python -m r2kd {teacher,distill,evaluate}: one training or one evaluation; `run_all.py` runs the whole study."""

import argparse
import dataclasses
import json
import os
import sys

from . import data, evaluation, experiments, fidelity, models, training
from .augmentation import AUGMENTATIONS
from .config import METHODS
from .training import DistillConfig, TeacherConfig

EXAMPLES = """examples:
  python -m r2kd teacher  -d digits -m resnet20
  python -m r2kd distill  -d digits --pair res20_res8 -a cutmix
  python -m r2kd distill  -d cifar100 --pair res56_res20 -a mixup --no-pruning --seed 1
  python -m r2kd evaluate -d tiny_imagenet -m resnet20 -c students/res56_res20_student_best

The same call again returns the finished run, or goes on with the one that was cut off."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m r2kd",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-d", "--dataset", required=True, help=f"{', '.join(data.NAMES)}, or a folder of images")
    common.add_argument("--image-size", type=int, help="side in pixels that the images are brought to")
    common.add_argument("--data-root", help="where data sets lie or are downloaded to [$R2KD_DATA, else data/]")
    common.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... [auto]")

    recipe = argparse.ArgumentParser(add_help=False)
    recipe.add_argument("--epochs", type=int, help="[240; digits 20]")
    recipe.add_argument("--train-images", type=int, help="a class-balanced subset of so many [all; digits 300]")
    recipe.add_argument("--test-images", type=int, help="the same for the test split [all]")
    recipe.add_argument("--batch-size", type=int, help="[64]")
    recipe.add_argument("--learning-rate", type=float, help="[0.05; MobileNetV2 and ShuffleNets 0.01]")
    recipe.add_argument("--seed", type=int, help="[0]")
    recipe.add_argument("--plain", action="store_true", help="eager, float32, nothing folded: slower, to compare with")
    recipe.add_argument("--runs-root", help="where run folders go [$R2KD_RUNS, else runs/]")

    teacher = commands.add_parser("teacher", parents=[common, recipe], help="train a model by cross-entropy")
    teacher.add_argument(
        "-m", "--model", required=True, choices=models.NAMES, metavar="MODEL", help=", ".join(models.NAMES)
    )

    distill = commands.add_parser("distill", parents=[common, recipe], help="train a student, its teacher first")
    pairs = [*experiments.PAIRS, *experiments.SMALL_PAIRS]
    distill.add_argument("--pair", required=True, choices=pairs, metavar="PAIR", help=", ".join(pairs))
    distill.add_argument("-a", "--augmentation", choices=AUGMENTATIONS, help="the second view [none]")
    distill.add_argument("--method", choices=METHODS, help="[r2kd]")
    distill.add_argument("--no-pruning", action="store_true", help="the dense teacher alone")
    distill.add_argument("--fidelity", choices=fidelity.PRESETS, help="all of the switches below at once [released]")
    for switch in fidelity.SWITCHES:
        option = f"--{switch.name.replace('_', '-')}"
        distill.add_argument(option, choices=switch.values, help=f"[{switch.released}, as released]")
    distill.add_argument("--teacher-checkpoint", help="weights of the teacher, in place of training it")

    evaluate = commands.add_parser("evaluate", parents=[common], help="accuracy of a checkpoint on the test split")
    evaluate.add_argument(
        "-m", "--model", required=True, choices=models.NAMES, metavar="MODEL", help=", ".join(models.NAMES)
    )
    evaluate.add_argument("-c", "--checkpoint", required=True, help='{"model": state_dict} or a bare state_dict')
    return top


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        print(json.dumps({"teacher": teacher, "distill": distill, "evaluate": evaluate}[options.command](options)))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on at the last whole epoch", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("R2KD_TRACEBACK"):
            raise
        print(f"r2kd: {error}", file=sys.stderr)
        return 1
    return 0


def teacher(options: argparse.Namespace) -> dict:
    config = TeacherConfig(**_recipe(options, options.model))
    _print_config(config)
    return _result(training.train_teacher(config))


def distill(options: argparse.Namespace) -> dict:
    teacher_model, student = experiments.pair_models(options.pair)
    chosen = ("augmentation", "method", "teacher_checkpoint", "fidelity", *fidelity.NAMES)
    own = {name: getattr(options, name) for name in chosen if getattr(options, name) is not None}
    if options.no_pruning or options.method in ("ce", "kd"):
        own["pruning_rate"] = 0.0
    if options.method != "ce":
        shared = _recipe(options, teacher_model) | {"seed": 0}
        if options.learning_rate:
            shared["learning_rate"] = experiments.learning_rate(teacher_model)  # the option is the student's
        own["teacher"] = TeacherConfig(**shared)
    config = DistillConfig(**_recipe(options, student) | own)
    _print_config(config)
    run = training.distill(config)
    return {"top1": training.reported_top1(config, run)} | _result(run)


def evaluate(options: argparse.Namespace) -> dict:
    state = models.read_checkpoint(options.checkpoint)
    classes = models.output_classes(state)
    images = data.load(options.dataset, options.data_root, options.image_size, splits=("test",))
    if classes != images.num_classes:  # a student of some of the classes only, as of a part of Tiny ImageNet
        images = data.load(options.dataset, options.data_root, options.image_size).with_training_classes()
    if classes != images.num_classes:
        raise ValueError(f"{options.checkpoint} has {classes} classes, {images.name} has {images.num_classes}")
    device = training.resolve_device(options.device)
    model = models.from_checkpoint(options.model, classes, options.checkpoint).to(device)
    test = images.test.to(device)
    result = evaluation.summary(evaluation.predict(model, test, images), test.labels)
    return {"top1": round(result["top1"], 2), "top5": round(result["top5"], 2), "n": result["n"]}


def _recipe(options: argparse.Namespace, model: str) -> dict:
    """The data set's recipe under what the command line says."""
    names = ("image_size", "epochs", "train_images", "test_images", "batch_size", "learning_rate", "seed")
    names += ("dataset", "device", "data_root", "runs_root", "plain")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return (
        {"model": model, "learning_rate": experiments.learning_rate(model)}
        | experiments.recipe(options.dataset)
        | given
    )


def _print_config(config: TeacherConfig) -> None:
    print(json.dumps(dataclasses.asdict(config), indent=2), file=sys.stderr)


def _result(run: training.Run) -> dict:
    return {"run": str(run.folder)} | run.result


if __name__ == "__main__":
    sys.exit(main())
