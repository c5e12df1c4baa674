"""Where a step of the plain loop and of ours goes, by operator: python -m benchmarks.operators

The profiler's time of each operator itself, a mean of three steps after two that are not counted. Each loop runs in a
process of its own, as ours changes its process's allocator. Writes operators.csv and README.md beside it.
"""

import argparse
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from benchmarks import report
from benchmarks.step import CASES, Loop, loops, steps
from r2kd import acceleration
from r2kd.progress import tqdm
from r2kd.training import resolve_device

import pandas as pd
import torch


def operators(pair: str, loop: Loop, device: torch.device) -> pd.DataFrame:
    about = {"pair": pair, "loop": loop.loop, "precision": loop.precision}
    return where(steps(pair, loop, device), device, about)


def where(endless: Iterator, device: torch.device, about: dict, count: int = 3, shown: int = 8) -> pd.DataFrame:
    """Where a step goes: the operators, on a GPU the kernels, with the largest share of its own time, and the rest."""
    for _ in range(acceleration.WARM_UP + 2 if device.type == "cuda" else 2):
        next(endless)
    with torch.profiler.profile() as profile:
        for _ in range(count):
            next(endless)
    endless.close()
    times = own_times(profile.key_averages(), device) / count / 1000
    largest = times.sort_values(ascending=False)
    largest = pd.concat([largest[:shown], pd.Series({"all others": largest[shown:].sum()})])
    return pd.DataFrame(
        [about | {"operator": k, "ms": v, "percent": 100 * v / times.sum()} for k, v in largest.items()]
    )


def own_times(events: Iterable, device: torch.device) -> pd.Series:
    """Microseconds by name. On a GPU of the kernels alone: the operators that launched them would count each again."""
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    on_device = [event for event in events if event.device_type.name.lower() == device.type]
    return pd.Series({event.key: getattr(event, kind) for event in on_device}, dtype=float)


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--device", default="auto", help="auto, cpu, cuda [auto]")
    device = resolve_device(top.parse_args().device)
    tables = []
    shown = [loop for loop in loops(device).values() if loop.students == 1 and loop.pruned_batchnorm == "running"]
    for pair, loop in tqdm([(pair, loop) for pair in CASES for loop in shown], desc="loops"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            tables.append(alone.submit(operators, pair, loop, device).result())
    table = pd.concat(tables)
    print(table.round(1).to_string(index=False))
    report.save({"operators": table}, device)


if __name__ == "__main__":
    main()
