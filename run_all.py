"""Run the notebooks in order under one profile: executed notebooks go under runs/, figures and their CSVs under figures/.

Started again, it goes on from the runs that are finished."""

import argparse
import logging
import os
import re
import sys
import time
from dataclasses import fields
from pathlib import Path

from r2kd import ROOT, figures
from r2kd.parts import Data, Design, Machine, Pruning, Recipe, Tests

import pandas as pd

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted((HERE / "notebooks").glob("[0-9]*.ipynb"))
PARTS = (Design, Tests, Data, Recipe, Pruning, Machine)
PATHS = ("data_root", "runs_root", "figures_root", "teacher_checkpoint", "published_root", "load")

EXAMPLES = """profiles:
  smoke   does everything run: 1 epoch on 128 images; minutes
  quick   the default: the handwritten digits, 9 arms, 5 seeds; notebooks 01 to 03 in 4 to 8 minutes on 2 cores, no download;
          with --only 04,05 the other two, in 4 minutes more
  small   the study: CIFAR-100, 2,500 images, 120 epochs, 29 arms; told from its records, with --fresh half a day on 2 cores
  paper   six pairs, all augmentations, 240 epochs, 3 seeds; days on one GPU

examples:
  python run_all.py
  python run_all.py --set temperature=2 --set value_weight=1 --batch-size 32 --seeds 5
  python run_all.py --arms "ce; kd; r2kd:temperature=2 cutmix; mine" --load my_methods.py
  python run_all.py --corruptions fog+snow --attacks pgd --robust-images 500
  python run_all.py --teacher torchvision:resnet18 --student resnet8 --dataset ~/my_images --image-size 64
  python run_all.py --profile smoke --dataset cifar100 --data-root ~/data
  python run_all.py --profile paper --dataset tiny_imagenet --pair res56_res20 --device cuda
  python run_all.py --figures-only

--set takes any setting of any part, of methods and views too; where a name is of two parts, with the part before it:
--set method.alpha=2. What is of the recipe is the students'; --set teacher.epochs=60 is the teacher's."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--profile", default="quick", help="smoke, quick, small or paper [quick]")
    top.add_argument("--only", metavar="01,03", help="only these notebooks [all; quick: 01,02,03]")
    top.add_argument("--figures-only", action="store_true", help="draw every figure again from its CSV, train nothing")
    top.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting; repeatable")
    top.add_argument("--published-root", help="where the published students lie [r2kd-published/ beside the data sets]")
    top.add_argument("--download-published", action="store_true", help="fetch them there first (notebook 05)")
    for part in PARTS:
        for setting in fields(part):
            flag = {"action": "store_true", "default": None} if bool in part().settings[setting.name].types else {}
            top.add_argument(f"--{setting.name.replace('_', '-')}", **flag, help=setting.metadata["help"])
    return top


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.figures_only:
            return draw_figures(Path(options.figures_root or ROOT / "figures"))
        return run_notebooks(options)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the finished runs", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"run_all: {error}", file=sys.stderr)
        return 1


def settings_of(options: argparse.Namespace) -> dict:
    """What was set, by flags and by --set; paths absolute, as notebooks run in their own folder."""
    from r2kd.__main__ import read_pairs
    from r2kd.data import named

    names = [setting.name for part in PARTS for setting in fields(part)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given |= read_pairs(options.set)
    for name, value in given.items():
        folder = name == "dataset" and not named(value) and Path(value).expanduser().is_dir()
        if name in PATHS or folder:
            given[name] = str(Path(value).expanduser().resolve())
    return given


def draw_figures(root: Path) -> int:
    drawn = figures.redraw_all(root)
    for path in drawn:
        print(path)
    if not drawn:
        print(f"run_all: no table of a figure under {root}", file=sys.stderr)
    return 0 if drawn else 1


def run_notebooks(options: argparse.Namespace) -> int:
    from r2kd import experiments, published, runs  # they import torch, which --help and --figures-only do without

    given = settings_of(options)
    studies = [experiments.study(options.profile, **given)]
    if not given.keys() & {"pair", "teacher", "student"}:
        pairs = experiments.PROFILES[options.profile].pairs
        studies = [experiments.study(options.profile, **given | {"pair": pair}) for pair in pairs]
    root = options.published_root
    root = root and str(published.folder_of(root, may_be_new=options.download_published).resolve())
    notebooks = choose(options.only or ("01,02,03" if options.profile == "quick" else None))
    started = time.perf_counter()
    for study in studies:
        begun = time.time()
        place = study.figures.relative_to(study.all_figures)
        executed = runs.root_folder(given.get("runs_root")) / "notebooks" / place
        executed.mkdir(parents=True, exist_ok=True)
        parameters = {"profile": options.profile, "settings": study.made_of[1]}
        parameters |= {"published_root": root, "download": options.download_published}
        for i, notebook in enumerate(notebooks, 1):
            print(f"{place}: notebook {i} of {len(notebooks)}, {notebook.stem}", flush=True)
            if not execute(notebook, executed / notebook.name, parameters):
                return 1
        summarise(study.figures, executed, begun)
    left = [path.stem for path in NOTEBOOKS if path not in notebooks]
    print(f"finished in {time.perf_counter() - started:.0f} s")
    if left and not options.only:
        numbers = ",".join(name[:2] for name in left)
        print(f"not run, so that this stays quick: {', '.join(left)} (--only {numbers}, with the same runs)")
    return 0


def choose(only: str | None) -> list[Path]:
    """The notebooks whose names begin with the numbers of `only`, "01,03". Raises ValueError where there is none."""
    if only is None:
        return NOTEBOOKS
    chosen = []
    for number in only.split(","):
        found = [path for path in NOTEBOOKS if path.name.startswith(f"{number.strip():0>2}_")]
        if not found:
            raise ValueError(f"no notebook {number.strip()!r}; there are {', '.join(path.stem for path in NOTEBOOKS)}")
        chosen += found
    return sorted(set(chosen))


def execute(notebook: Path, output: Path, parameters: dict) -> bool:
    """Run one notebook with those of `parameters` that it declares; False where a cell failed, which is then shown.

    The output is kept either way.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    for name in ("papermill", "asyncio"):  # what matters of a failure is said below, in a line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ["R2KD_PROGRESS"] = "text"
    # the package beside this file, whichever is installed
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("TQDM_NCOLS", "110")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "15")  # a log needs no ten lines a second
    started = time.perf_counter()
    declared = papermill.inspect_notebook(notebook)
    try:
        papermill.execute_notebook(
            notebook,
            output,
            {name: value for name, value in parameters.items() if name in declared},
            cwd=notebook.parent,
            progress_bar=False,
            stderr_file=sys.stderr,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        print(f"\nrun_all: {notebook.stem}, cell {error.exec_count}:\n\n{error.source.strip()}\n", file=sys.stderr)
        print(f"{error.ename}: {error.evalue}\n\nThe notebook up to there: {output}", file=sys.stderr)
        return False
    except DeadKernelError as error:
        print(f"\nrun_all: {notebook.stem}: {error} (out of memory?)\n\nUp to there: {output}", file=sys.stderr)
        return False
    finally:
        if output.exists():
            tidied = nbformat.read(output, as_version=4)
            tidy(tidied)
            nbformat.write(tidied, output)
    print(f"  {time.perf_counter() - started:.0f} s, {output}", flush=True)
    return True


def tidy(notebook) -> None:
    """Leave of each cell's progress bars what a terminal would show at the end, the last bar if it stayed, and other lines."""
    for cell in notebook.cells:
        streams = [output for output in cell.get("outputs", []) if output.get("name") == "stderr"]
        written = "".join(output.text for output in streams)
        if "\r" not in written:
            continue
        lines = re.split(r"[\r\n]|\x1b\[A", written)
        kept = [line for line in lines if line.strip() and "%|" not in line]
        kept += [line for line in [written.rstrip("\n").rsplit("\r", 1)[-1]] if "%|" in line]
        streams[0].text = "".join(f"{line.rstrip()}\n" for line in kept)
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" or (o is streams[0] and o.text)]


def summarise(folder: Path, executed: Path, begun: float) -> None:
    """Print the tables of students and of switches that were made since `begun`, and where everything is."""
    made = {path.stem for path in folder.glob("*.png") if path.stat().st_mtime >= begun}
    if "students" in made:
        table = pd.read_csv(folder / "students.csv")
        seeds = table["n"].iloc[0]
        summary = pd.DataFrame(
            {
                "student": table["arm"],
                "last epoch's test accuracy (%)": table["mean"].map("{:.2f}".format),
                "± 95 % interval": table["half_width"].map("{:.2f}".format),
                "seeds": table["n"],
            }
        )
        print(f"\n{table['caption'].iloc[0]}; teacher {table['teacher_top1'].iloc[0]:.2f} %; {seeds} seeds\n")
        print(summary.to_string(index=False), end="\n\n")
    if "switch_effects" in made:
        effects = pd.read_csv(folder / "switch_effects.csv")
        shown = effects.loc[effects["measure"] == "top1", ["arm", "mean", "half_width", "n", "verdict"]].round(2)
        shown.columns = ["R2KD against the released code", "points", "± 95 % interval", "seeds", "verdict"]
        print(f"{effects['caption'].iloc[0]}\n\n{shown.to_string(index=False)}\n")
    print(f"{len(made)} figures, each with its CSV: {folder}\nexecuted notebooks: {executed}")


if __name__ == "__main__":
    sys.exit(main())
