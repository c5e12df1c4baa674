"""A step of training, a plain loop against ours: python -m benchmarks.step

Each loop runs in a process of its own, and they take turns, step by step, so that a slower hour of the machine meets all.
Prints the medians of the step times with their quartiles. Writes step.csv and README.md beside it. Where the processor has no
bfloat16, its loops are left out and nothing is written. On two CPU cores about a quarter of an hour, most of it for the wide pair.
"""

import argparse
import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

from benchmarks import report
from benchmarks.loops import BATCH, Step, ask, our_loop, plain_loop, processes
from r2kd import acceleration, data, models
from r2kd.data import ImageData
from r2kd.profiles import PAIRS
from r2kd.progress import tqdm
from r2kd.training import resolve_device

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CASES = {"res56_res20": 32, "wrn402_wrn162": 64}  # pixels
STEPS = {"res56_res20": 30, "wrn402_wrn162": 8}
CLASSES, ARMS = 100, 8


class Loop(NamedTuple):
    """Which loop, "plain" or "ours", how many students, the pruned teacher's BatchNorm, and the precision that it trains in."""

    loop: str
    students: int
    pruned_batchnorm: str
    precision: str = "float32"


def loops(device: torch.device) -> dict[str, Loop]:
    """By name, those that this device can run."""
    known = {
        "plain": Loop("plain", 1, "running"),
        "ours": Loop("ours", 1, "running"),
        "ours, 8 students": Loop("ours", ARMS, "running"),
        "ours, bfloat16": Loop("ours", 1, "running", "bfloat16"),
        "ours, bfloat16, 8 students": Loop("ours", ARMS, "running", "bfloat16"),
        "plain, batch statistics": Loop("plain", 1, "batch"),
        "ours, batch statistics": Loop("ours", 1, "batch"),
        "ours, bfloat16, batch statistics": Loop("ours", 1, "batch", "bfloat16"),
    }
    native = acceleration.native_bfloat16(device)
    return {name: loop for name, loop in known.items() if native or loop.precision == "float32"}


def benchmark_images(pixels: int) -> ImageData:
    """Real images of any size without a download: the digits, scaled, with as many classes and the flip of CIFAR-100."""
    digits = data.load("digits", image_size=pixels, splits=("train",)).subset(15 * BATCH, None)
    return dataclasses.replace(digits, flip=True, classes=tuple(map(str, range(CLASSES))))


def steps(pair: str, loop: Loop, device: torch.device) -> Iterator[Step]:
    images = benchmark_images(CASES[pair])
    if loop.loop == "plain":
        return plain_loop(PAIRS[pair], images, loop.pruned_batchnorm, device)
    return our_loop(PAIRS[pair], images, loop.pruned_batchnorm, device, loop.students, precision=loop.precision)


def serve(connection: Connection, pair: str, loop: Loop, device: str) -> None:
    """In a process of its own: a step, or a matrix product, for each message; at the end its peak memory in bytes."""
    device = resolve_device(device)
    endless = steps(pair, loop, device)
    while (asked := connection.recv()) != "end":
        connection.send(next(endless) if asked == "step" else product_rate(device, loop.precision))
    connection.send(peak_memory(device))
    endless.close()


@torch.no_grad()
def product_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of matrix products, large and many enough to keep the device busy."""
    side, count = (8192, 20) if device.type == "cuda" else (2048, 1)
    factor = torch.ones(side, side, device=device, dtype=getattr(torch, precision))
    with acceleration.exact():
        acceleration.wait(device)
        started = time.perf_counter()
        for _ in range(count):
            factor @ factor
        acceleration.wait(device)
        return count * 2 * side**3 / (time.perf_counter() - started)


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)  # the graphs' pools included
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def step_flops(pair: str, arms: int) -> int:
    """FLOPs of the networks in a step: four teacher forwards, and two forwards and backwards of each student."""
    image = torch.zeros(1, 3, CASES[pair], CASES[pair])
    teacher, student = (models.create(name, CLASSES) for name in PAIRS[pair])
    forward, trained = _flops(teacher, image, backward=False), _flops(student, image, backward=True)
    return BATCH * (4 * forward + 2 * arms * trained)


def _flops(model: nn.Module, image: torch.Tensor, backward: bool) -> int:
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = model.eval()(image)
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def measure(pair: str, count: int, device: torch.device) -> pd.DataFrame:
    """A row a loop, medians over `count` alternating steps after those that are not counted: captures, on a GPU."""
    measured = loops(device)
    uncounted = acceleration.WARM_UP + 2 if device.type == "cuda" else 2
    taken: dict[str, list[Step]] = {name: [] for name in measured}
    rates: dict[str, list[float]] = {name: [] for name in measured}
    with processes(serve, {name: (pair, loop, str(device)) for name, loop in measured.items()}) as served:
        for _ in tqdm(range(count + uncounted), desc=f"{pair}, steps of {len(measured)} loops"):
            for name, connection in served.items():
                taken[name].append(ask(connection, "step"))
                rates[name].append(ask(connection, "product"))
        memory = {name: ask(connection, "end") for name, connection in served.items()}
    counted = {name: steps[uncounted:] for name, steps in taken.items()}
    medians = {name: statistics.median(step.seconds for step in steps) for name, steps in counted.items()}
    rows = []
    for name, loop in measured.items():
        quartiles = statistics.quantiles([step.seconds for step in counted[name]], n=4)
        plain = Loop("plain", 1, loop.pruned_batchnorm)
        compared = next(other for other, like in measured.items() if like == plain)
        flops = step_flops(pair, loop.students)
        rate = statistics.median(rates[name][uncounted:])
        rows.append(
            {
                "pair": pair,
                "pixels": CASES[pair],
                **loop._asdict(),
                "step_ms": 1000 * medians[name],
                "quartile_1_ms": 1000 * quartiles[0],
                "quartile_3_ms": 1000 * quartiles[2],
                "images_per_second": loop.students * BATCH / medians[name],
                "ratio": loop.students * medians[compared] / medians[name],
                "data_percent": 100 * statistics.median(s.data_seconds / s.seconds for s in counted[name]),
                "peak_gib": memory[name] / 2**30,
                "gflop": flops / 1e9,
                "matrix_gflops": rate / 1e9,
                "matrix_percent": 100 * flops / medians[name] / rate,
                "steps": count,
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--steps", type=int, help="measured steps of each loop [30 at 32 pixels, 8 at 64]")
    top.add_argument("--device", default="auto", help="auto, cpu, cuda [auto]")
    options = top.parse_args()
    device = resolve_device(options.device)
    measured = pd.concat([measure(pair, options.steps or STEPS[pair], device) for pair in CASES])
    print(measured.round(2).to_string(index=False), end="\n\n")
    if acceleration.native_bfloat16(device):
        report.save({"step": measured}, device)
    else:
        print("no bfloat16 here: step.csv, which has its rows, is left as it is")


if __name__ == "__main__":
    main()
