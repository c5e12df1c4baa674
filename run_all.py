"""Run the notebooks in order under one profile: executed notebooks go under runs/, figures and their CSVs under figures/.

Started again, it goes on from the runs that are finished."""

from r2kd import terminal

if __name__ == "__main__":
    terminal.prepare()

import argparse
import builtins
import logging
import os
import re
import sys
import time
from dataclasses import fields
from pathlib import Path

from r2kd import ROOT, figures, files, gallery, tables
from r2kd.parts import Data, Design, Machine, Pruning, Recipe, Tests
from r2kd.profiles import PROFILES

import pandas as pd

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted((HERE / "notebooks").glob("[0-9]*.ipynb"))
PARTS = (Design, Tests, Data, Recipe, Pruning, Machine)
PATHS = ("data_root", "runs_root", "figures_root", "teacher_checkpoint", "published_root", "load")
START_TIMEOUT = 300  # seconds; a kernel that dies is noticed at once

PROFILE_LINES = "\n".join(f"  {name:<7} {profile.summary}" for name, profile in PROFILES.items())
EXAMPLES = f"""profiles:
{PROFILE_LINES}

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
    top = terminal.Parser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--profile", default="quick", help=f"{', '.join(PROFILES)} [quick]")
    top.add_argument("--only", metavar="01,03", help="only these notebooks [all; quick: 01,02,03]")
    top.add_argument("--figures-only", action="store_true", help="draw every figure again from its CSV, train nothing")
    top.add_argument("--format", metavar="png,pdf,svg", help="what --figures-only draws [png]")
    top.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting; repeatable")
    top.add_argument("--published-root", help="where the published students lie [r2kd-published/ beside the data sets]")
    top.add_argument("--download-published", action="store_true", help="fetch them there first (notebook 05)")
    for part in PARTS:
        for setting in fields(part):
            flag = {"action": "store_true", "default": None} if bool in part().settings[setting.name].types else {}
            top.add_argument(f"--{setting.name.replace('_', '-')}", **flag, help=setting.metadata["help"])
    return top


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, 1 where something failed, 2 where the command cannot be followed, 130 where it was interrupted."""
    top = parser()
    options = top.parse_args(arguments)
    formats = (options.format or "png").split(",")
    if unknown := set(formats) - set(figures.FORMATS):
        top.error(f"unknown format {', '.join(sorted(unknown))}; known: {', '.join(figures.FORMATS)}")
    if options.format and not options.figures_only:
        top.error("--format is of --figures-only: elsewhere figures are PNGs")
    try:
        if options.figures_only:
            return draw_figures(Path(options.figures_root or ROOT / "figures"), formats)
        from r2kd import experiments, runs  # noqa: F401 (torch: seconds, which --help and --figures-only do without)

        terminal.raise_interrupt()
        try:
            studies, notebooks, parameters = chosen(options)
        except (ValueError, OSError) as error:
            print(f"run_all: {error}", file=sys.stderr)
            return 2
        return run_notebooks(studies, notebooks, parameters, all_wanted=not options.only)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the finished runs", file=sys.stderr)
        return terminal.INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"run_all: {error}", file=sys.stderr)
        return 1


def settings_of(options: argparse.Namespace) -> dict:
    """What was set, by flags and by --set; paths absolute, as notebooks run in their own folder."""
    from r2kd.data import named
    from r2kd.entries import pairs

    names = [setting.name for part in PARTS for setting in fields(part)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given |= pairs(options.set)
    for name, value in given.items():
        if name in (*PATHS, "dataset") and not str(value).strip():
            raise ValueError(f"{name} is empty: give a path, or leave it out")
        folder = name == "dataset" and not named(value) and Path(value).expanduser().is_dir()
        if name in PATHS or folder:
            given[name] = str(Path(value).expanduser().resolve())
    return {"figures_root": str(ROOT / "figures")} | given


def draw_figures(root: Path, formats: list[str]) -> int:
    """Every figure from its table, and README.md, which shows them all; that only of tables that are all whole."""
    terminal.raise_interrupt()
    drawn, failed = figures.redraw_all(root, formats)
    for path in drawn:
        print(*(path.with_suffix(f".{kind}") for kind in formats), sep="\n")
    unchecked = [path for path in drawn if not tables.listed(path)]
    for folder in dict.fromkeys(path.parent for path in unchecked):
        names = ", ".join(path.name for path in unchecked if path.parent == folder)
        print(f"run_all: {folder}: drawn unchecked, no digest in {tables.SUMS}: {names}", file=sys.stderr)
    for error in failed:
        print(f"run_all: {error}", file=sys.stderr)
    if drawn and not failed:
        print(gallery.write(root, drawn))
    if not drawn and not failed:
        print(f"run_all: no table of a figure under {root}", file=sys.stderr)
    return 0 if drawn and not failed else 1


def chosen(options: argparse.Namespace) -> tuple[list, list[Path], dict]:
    """The studies, the notebooks, and their parameters but for the study's. Raises ValueError or OSError for what cannot be."""
    from r2kd import experiments, profiles, published

    given = settings_of(options)
    studies = [experiments.study(options.profile, **given)]
    if not given.keys() & {"pair", "teacher", "student"}:
        pairs = profiles.PROFILES[options.profile].pairs
        studies = [experiments.study(options.profile, **given | {"pair": pair}) for pair in pairs]
    root = options.published_root
    root = root and str(published.folder_of(root, may_be_new=options.download_published).resolve())
    notebooks = choose(options.only or ("01,02,03" if options.profile == "quick" else None))
    return studies, notebooks, {"published_root": root, "download": options.download_published}


def run_notebooks(studies: list, notebooks: list[Path], parameters: dict, all_wanted: bool) -> int:
    from r2kd import report, runs

    started = time.perf_counter()
    for study in studies:
        begun = time.time()
        place = study.figures.relative_to(study.roots[-1])
        profile, settings = study.made_of
        executed = runs.root_folder(settings.get("runs_root")) / "notebooks" / place
        executed.mkdir(parents=True, exist_ok=True)
        of_study = parameters | {"profile": profile, "settings": settings}
        for i, notebook in enumerate(notebooks, 1):
            print(f"{place}: notebook {i} of {len(notebooks)}, {notebook.stem}", flush=True)
            if not execute(notebook, executed / notebook.name, of_study):
                return 1
        summarise(study.figures, executed, begun)
        print(f"all of it on one page: {report.write(executed, study.figures, f'r2kd: {place.as_posix()}')}")
    left = [path.stem for path in NOTEBOOKS if path not in notebooks]
    print(f"finished in {time.perf_counter() - started:.0f} s")
    if left and all_wanted:
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


class Kept:
    """Stands where papermill writes a notebook after each cell: the last of it, so that the file is written once, whole."""

    text = ""

    def write(self, text: str, path: str) -> None:
        self.text = text

    def pretty_path(self, path: str) -> str:
        return path


def execute(notebook: Path, output: Path, parameters: dict) -> bool:
    """Run one notebook with those of `parameters` that it declares; False where it failed, which is then said.

    The output is kept either way. Raises OSError naming it where it cannot be written.
    """
    import nbformat
    from papermill.iorw import papermill_io

    os.environ["R2KD_PROGRESS"] = "text"
    # the package beside this file, whichever is installed
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("TQDM_NCOLS", "110")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "15")  # a log needs no ten lines a second
    started = time.perf_counter()
    kept = Kept()
    papermill_io.register(str(output), kept)
    try:
        failure = attempt(notebook, output, parameters)
        if failure:
            print(f"\nrun_all: {notebook.stem}{failure}\n\nThe notebook up to there: {output}", file=sys.stderr)
    finally:
        if kept.text:
            tidied = nbformat.reads(kept.text, as_version=4)
            tidy(tidied)
            files.write_atomically(output, nbformat.writes(tidied).encode())
    if not failure:
        print(f"  {time.perf_counter() - started:.0f} s, {output}", flush=True)
    return not failure


def attempt(notebook: Path, output: Path, parameters: dict) -> str:
    """Execute a notebook; what failed, or nothing."""
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    for name in ("papermill", "asyncio", "traitlets"):  # what matters of a failure is said below, in a line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    source, place = (str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, output))  # it formats them
    declared = papermill.inspect_notebook(source)
    try:
        papermill.execute_notebook(
            source,
            place,
            {name: value for name, value in parameters.items() if name in declared},
            cwd=notebook.parent,
            progress_bar=False,
            stderr_file=sys.stderr,
            start_timeout=START_TIMEOUT,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        if refused(error):
            return f": {error.evalue}"
        return f", cell {error.exec_count}:\n\n{error.source.strip()}\n\n{error.ename}: {error.evalue}"
    except DeadKernelError as error:
        return f": {error} (out of memory?)"
    except (RuntimeError, NoSuchKernel) as error:
        return f": its kernel does not start: {error}; jupyter kernelspec list shows which there are"
    return ""


def refused(error) -> bool:
    """Whether a cell's failure is what the package has to say, in a line, of a setting or a file, and no fault of the cell."""
    kind = getattr(builtins, error.ename, None)
    said = isinstance(kind, type) and issubclass(kind, (ValueError, OSError, FloatingPointError))
    frames = re.findall(r"File (.+?):\d+", re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback)))
    return said and bool(frames) and Path(frames[-1]).expanduser().is_relative_to(HERE / "r2kd")


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
        table = tables.read(folder / "students.csv")
        summary = pd.DataFrame(
            {
                "student": table["arm"],
                "last epoch's test accuracy (%)": table["mean"].map("{:.2f}".format),
                "± 95 % interval": table["half_width"].map("{:.2f}".format),
                "seeds": table["n"],
            }
        )
        print(f"\n{table['caption'].iloc[0]}; teacher {table['teacher_top1'].iloc[0]:.2f} %\n")
        print(summary.to_string(index=False), end="\n\n")
    if "switch_effects" in made:
        effects = tables.read(folder / "switch_effects.csv")
        shown = effects.loc[effects["measure"] == "top1", ["arm", "mean", "half_width", "n", "verdict"]].round(2)
        shown.columns = ["R2KD against the released code", "points", "± 95 % interval", "seeds", "verdict"]
        print(f"{effects['caption'].iloc[0]}\n\n{shown.to_string(index=False)}\n")
    print(f"{len(made)} figures, each with its CSV: {folder}\nexecuted notebooks: {executed}")


if __name__ == "__main__":
    sys.exit(terminal.run(main))
