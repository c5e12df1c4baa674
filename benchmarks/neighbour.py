"""What busy neighbours cost: python -m benchmarks.neighbour

Eight evaluations of a model (resnet20, 797 digits), alone and beside one and two processes that each keep a core busy, with the
spinning that OpenMP does by default and with ours (GOMP_SPINCOUNT in r2kd/__init__.py). Each measurement is a process of its own;
the settings take turns. Writes neighbour.csv and README.md beside it. On two CPU cores about five minutes.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from benchmarks import report
from r2kd import data, evaluation, models
from r2kd.progress import tqdm

import pandas as pd
import torch

SPINS = {"by default": "300000", "ours": os.environ["GOMP_SPINCOUNT"]}  # libgomp's default, by its manual
NEIGHBOURS, EVALUATIONS = (0, 1, 2), 8


def seconds() -> float:
    """Of the evaluations: the median of five rounds, after one evaluation that is not counted."""
    digits = data.load("digits", splits=("test",))
    model = models.create("resnet20", digits.num_classes).eval()
    evaluation.predict(model, digits.test, digits)
    rounds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(EVALUATIONS):
            evaluation.predict(model, digits.test, digits)
        rounds.append(time.perf_counter() - started)
    return statistics.median(rounds)


def busy() -> None:
    while True:
        pass


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    processes = [get_context("spawn").Process(target=busy, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(2 if count else 0)  # they have started
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def measure(spin: str) -> float:
    os.environ["GOMP_SPINCOUNT"] = spin  # read by a new process when it loads torch
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        return alone.submit(seconds).result()


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--repeats", type=int, default=5, help="[5]")
    repeats = top.parse_args().repeats
    taken: dict[tuple[str, int], list[float]] = {}
    bar = tqdm(total=repeats * len(NEIGHBOURS) * len(SPINS), desc="measurements")
    for _ in range(repeats):
        for count in NEIGHBOURS:
            with neighbours(count):
                for name, spin in SPINS.items():
                    taken.setdefault((name, count), []).append(measure(spin))
                    bar.update()
    bar.close()
    rows = []
    for (name, count), values in taken.items():
        row = {"spinning": name, "spins": SPINS[name], "neighbours": count, "seconds": statistics.median(values)}
        row |= {"least": min(values), "most": max(values), "repeats": repeats}
        rows.append(row | {"slowdown": row["seconds"] / statistics.median(taken[(name, 0)])})
    table = pd.DataFrame(rows)
    print(table.round(2).to_string(index=False))
    report.save({"neighbour": table}, torch.device("cpu"))


if __name__ == "__main__":
    main()
