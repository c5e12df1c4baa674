"""All that a GPU has to show, in one command: python -m benchmarks.gpu --minutes 25 --out DIR

The CUDA tests; a step of one, eight and nineteen students on one, four and eight streams; where a step goes; an epoch; then the
full recipe of resnet56 -> resnet20 on CIFAR-100, if it is at hand, for as long as there is time. Each is a small file in DIR, written
when it is done; what has a file there is not done again. Runs go on where they were, from --runs-root. Needs torch, torchvision,
NumPy, pandas and tqdm, no network, no test runner. With --device cpu it tries itself.
"""

import argparse
import importlib.util
import json
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from benchmarks import operators, report
from benchmarks.loops import BATCH, our_loop, plain_loop, random_images
from benchmarks.step import CASES, peak_memory
from r2kd import ROOT, acceleration, evaluation, experiments, files, models, profiles, records, runs, training
from r2kd.config import DistillConfig, TeacherConfig
from r2kd.progress import tqdm

import pandas as pd
import torch

STEPS = 60
ARMS = "r2kd cutmix; ce; kd; r2kd; kd cutmix; r2kd autoaug; r2kd mixup; r2kd cutmixpick"  # the most telling first
SHARES = {
    "tests": 0.2,
    "step": 0.3,
    "operators": 0.05,
    "epoch": 0.05,
    "recipe": 1.0,
}  # of the time that is left, at most
CUDA_TESTS = ROOT / "tests" / "test_cuda.py"


class TimeIsUp(BaseException):
    """No failure: what was measured until then is kept."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Ends the block after so many seconds, at the next line of Python."""

    def end(*_):
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, end)
    try:
        with suppress(TimeIsUp):
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


def tests(device: torch.device) -> Iterator[dict]:
    """A row a CUDA test: what became of it, and where it failed. In a process of their own: one may leave a GPU unusable."""
    mine, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=send_tests, args=(theirs, CUDA_TESTS, device.type))
    process.start()
    theirs.close()
    try:
        for _ in tqdm(range(mine.recv()), desc="tests"):
            yield mine.recv()
    except EOFError:
        yield {"test": "", "outcome": "failed", "message": "their process ended"}
    finally:
        process.kill()


def send_tests(connection: Connection, path: Path, device: str) -> None:
    found = importlib.util.spec_from_file_location("test_cuda", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    named = {name: test for name, test in vars(module).items() if name.startswith("test_")}
    connection.send(len(named))
    for name, test in named.items():
        started, row = time.perf_counter(), {"test": name, "outcome": "not run: no GPU", "message": ""}
        if device == "cuda":
            row["outcome"] = "passed"
            try:
                test()
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                told = f"{type(error).__name__}: {error} ({place.name}:{place.lineno})"
                row |= {"outcome": "failed", "message": told}
        connection.send(row | {"seconds": time.perf_counter() - started})


class Case(NamedTuple):
    """What a step is measured of. loop: "ours", or "plain" as in benchmarks.loops; settings are ours."""

    pair: str
    pixels: int
    loop: str = "ours"
    students: int = 1
    streams: int = 1
    precision: str = "auto"
    plain: bool = False


def cases() -> Iterator[Case]:
    """The most telling first."""
    for pair, pixels in CASES.items():
        yield Case(pair, pixels)
        yield Case(pair, pixels, students=8, streams=4)
        yield Case(pair, pixels, "plain", precision="float32")
        yield Case(pair, pixels, precision="float32", plain=True)
        yield Case(pair, pixels, precision="float32")
        for streams in (1, 2, 8):
            yield Case(pair, pixels, students=8, streams=streams)
        for streams in (4, 8):
            yield Case(pair, pixels, students=19, streams=streams)
    yield Case("res32x4_shuv2", 64, students=19, streams=4)  # what needs the most memory


def steps(device: torch.device) -> Iterator[dict]:
    """A row a case: the median of a step and its quartiles, images a second over all students, the peak of memory."""
    for case in tqdm(list(cases()), desc="steps"):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        row = case._asdict() | {"precision": acceleration.precision(device, case.precision), "message": ""}
        try:
            row |= measured(case, device)
        except RuntimeError as error:  # of memory, say: the next case may do
            row["message"] = str(error).splitlines()[0]
        yield row


def measured(case: Case, device: torch.device) -> dict[str, float]:
    images, names = random_images(case.pixels, 40 * BATCH, BATCH), profiles.PAIRS[case.pair]
    if case.loop == "plain":
        endless = plain_loop(names, images, "running", device)
    else:
        settings = {"streams": case.streams, "precision": case.precision, "plain": case.plain}
        endless = our_loop(names, images, "running", device, case.students, **settings)
    with closing(endless):
        for _ in range(acceleration.WARM_UP + 3):
            next(endless)
        seconds = [next(endless).seconds for _ in range(STEPS if device.type == "cuda" else 3)]
    low, median, high = (1000 * value for value in statistics.quantiles(seconds, n=4))
    row = {"step_ms": median, "quartile_1_ms": low, "quartile_3_ms": high, "steps": len(seconds)}
    return row | {
        "images_per_second": 1000 * case.students * BATCH / median,
        "peak_gib": peak_memory(device) / 2**30,
    }


def where(device: torch.device) -> Iterator[dict]:
    """Rows of operators, of one student's step."""
    for pair, pixels in CASES.items():
        images = random_images(pixels, 40 * BATCH, BATCH)
        with closing(our_loop(profiles.PAIRS[pair], images, "running", device)) as endless:
            yield from operators.where(endless, device, {"pair": pair, "loop": "ours"}).to_dict("records")


def epoch(device: torch.device, images: int = 50_000, tested: int = 10_000) -> Iterator[dict]:
    """A row a number of students that train together, as released: seconds of an epoch, of a test, and what 240 take."""
    pair, given = "res56_res20", random_images(32, images, tested)
    taught_by, name = profiles.PAIRS[pair]
    student = models.create(name, given.num_classes).to(device).eval()
    test = given.test.to(device)
    for _ in range(2):  # the second counts
        started = time.perf_counter()
        evaluation.summary(evaluation.predict(student, test, given), test.labels)
        test_s = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as root:
        settings = {"dataset": "random", "device": str(device), "runs_root": root}
        teacher = TeacherConfig.of(taught_by, epochs=1, **settings)
        for students in (1, 8):
            taught = {"teacher": teacher, "view": "cutmix", "epochs": 3, **settings}
            configs = [DistillConfig.of(name, temperature=4.0 + i + students, **taught) for i in range(students)]
            found = training.distill_all(configs, given)
            training_s = pd.read_csv(found[0].folder / "timing.csv")["seconds"].iloc[-1]
            row = {"pair": pair, "students": students, "images": images, "training_s": training_s, "test_s": test_s}
            yield row | {"minutes_240": 240 * (training_s + students * test_s) / 60}


def recipe(device: torch.device, out: Path, options: argparse.Namespace, seconds: float) -> None:
    """The full recipe, arms beside each other, seed after seed; records.csv of what is finished, runs.csv of all there is."""
    study = experiments.study(
        "paper",
        pair="res56_res20",
        arms=ARMS,
        seeds=options.seeds,
        device=str(device),
        data_root=options.data_root,
        runs_root=options.runs_root,
        figures_root=str(out),
        epochs=options.epochs,
        corruptions="none",  # a lent machine's time is for training
        attacks="none",
        **{"teacher.epochs": options.epochs},
    )
    with at_most(seconds):
        try:
            images = study.open_data()
        except (OSError, ValueError) as error:
            print(f"no recipe without CIFAR-100: {error}", file=sys.stderr)
            return
        experiments.run_students(study, images)
    if found := list(files.found([out], records.NAME)):
        records.merge(found, out / records.NAME)
    table = runs.table(options.runs_root)
    if not table.empty:
        files.write_table(out / "runs.csv", table)
        print(runs.brief(table).to_string(index=False))


def write_rows(
    path: Path, rows: Callable[[torch.device], Iterator[dict]], device: torch.device, seconds: float
) -> None:
    """Rows as they come, for so many seconds at most."""
    if path.exists():
        return
    kept = []
    with at_most(seconds):
        for row in rows(device):
            kept.append(row)
    table = pd.DataFrame(kept).assign(machine=report.machine(device))
    print(f"\n{path.name}\n{table.drop(columns='machine').round(3).to_string(index=False)}", flush=True)
    if kept:
        files.write_table(path, table)


def main() -> int:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--minutes", type=float, required=True, help="after which it ends")
    top.add_argument("--out", type=Path, required=True, help="the folder of the results")
    top.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 [auto]")
    top.add_argument("--epochs", type=int, default=240, help="of teacher and students [240]")
    top.add_argument("--seeds", type=int, default=3, help="[3]")
    top.add_argument("--data-root", help="where CIFAR-100 lies [$R2KD_DATA, else data/]")
    top.add_argument("--runs-root", help="where run folders go [$R2KD_RUNS, else runs/]")
    options = top.parse_args()
    deadline = time.perf_counter() + 60 * options.minutes - 10  # to start, to write and to leave
    try:
        device = training.resolve_device(options.device)
    except ValueError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    environment = runs.environment(device) | {"machine": report.machine(device)}
    (options.out / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
    for name, rows in {"tests": tests, "step": steps, "operators": where, "epoch": epoch}.items():
        left = deadline - time.perf_counter()
        write_rows(options.out / f"{name}.csv", rows, device, SHARES[name] * left)
    recipe(device, options.out, options, deadline - time.perf_counter())
    print(f"results: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
