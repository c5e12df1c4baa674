"""A step of training, a plain loop against ours: python -m benchmarks.step

Each loop runs in a process of its own, and they take turns, step by step, so that a slower hour of the machine meets all.
Prints the medians of the step times with their quartiles. Writes step.csv and README.md beside it. On two CPU cores about a
quarter of an hour, most of it for the wide pair.
"""

import argparse
import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

from benchmarks import report
from benchmarks.loops import BATCH, Step, ask, our_loop, plain_loop, processes
from r2kd import acceleration, data, models
from r2kd.data import ImageData
from r2kd.experiments import PAIRS
from r2kd.progress import tqdm
from r2kd.training import resolve_device

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CASES = {"res56_res20": 32, "wrn402_wrn162": 64}  # pixels
STEPS = {"res56_res20": 30, "wrn402_wrn162": 8}
CLASSES, ARMS, SIDE = 100, 8, 2048
LOOPS = {  # loop, students, the pruned teacher's BatchNorm
    "plain": ("plain", 1, "running"),
    "ours": ("ours", 1, "running"),
    "ours, 8 students": ("ours", ARMS, "running"),
    "plain, batch statistics": ("plain", 1, "batch"),
    "ours, batch statistics": ("ours", 1, "batch"),
}


def benchmark_images(pixels: int) -> ImageData:
    """Real images of any size without a download: the digits, scaled, with as many classes and the flip of CIFAR-100."""
    digits = data.load("digits", image_size=pixels, splits=("train",)).subset(15 * BATCH, None)
    return dataclasses.replace(digits, flip=True, classes=tuple(map(str, range(CLASSES))))


def steps(pair: str, loop: str, device: torch.device) -> Iterator[Step]:
    kind, arms, mode = LOOPS[loop]
    images = benchmark_images(CASES[pair])
    if kind == "plain":
        return plain_loop(PAIRS[pair], images, mode, device)
    return our_loop(PAIRS[pair], images, mode, device, arms)


def serve(connection: Connection, pair: str, loop: str, device: str) -> None:
    """In a process of its own: a step, or a matrix product, for each message; at the end its peak memory in bytes."""
    device = torch.device(device)
    endless = steps(pair, loop, device)
    while (asked := connection.recv()) != "end":
        connection.send(next(endless) if asked == "step" else product_rate(device))
    connection.send(peak_memory(device))
    endless.close()


def product_rate(device: torch.device) -> float:
    """FLOP/s of a matrix product in the precision that ours trains in."""
    factor = torch.ones(SIDE, SIDE, device=device, dtype=acceleration.precision(device))
    started = time.perf_counter()
    product = factor @ factor
    float(product[0, 0])  # waits for a GPU
    return 2 * SIDE**3 / (time.perf_counter() - started)


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
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
    """A row a loop, medians over `count` alternating steps after two that are not counted."""
    taken: dict[str, list[Step]] = {loop: [] for loop in LOOPS}
    rates: dict[str, list[float]] = {loop: [] for loop in LOOPS}
    with processes(serve, {loop: (pair, loop, str(device)) for loop in LOOPS}) as served:
        for _ in tqdm(range(count + 2), desc=f"{pair}, steps of {len(LOOPS)} loops"):
            for loop, connection in served.items():
                taken[loop].append(ask(connection, "step"))
                rates[loop].append(ask(connection, "product"))
        memory = {loop: ask(connection, "end") for loop, connection in served.items()}
    medians = {loop: statistics.median(step.seconds for step in taken[loop][2:]) for loop in LOOPS}
    rows = []
    for loop, (kind, arms, mode) in LOOPS.items():
        seconds = [step.seconds for step in taken[loop][2:]]
        quartiles = statistics.quantiles(seconds, n=4)
        compared = next(name for name, like in LOOPS.items() if like == ("plain", 1, mode))
        flops = step_flops(pair, arms)
        rate = statistics.median(rates[loop][2:])
        rows.append(
            {
                "pair": pair,
                "pixels": CASES[pair],
                "loop": kind,
                "students": arms,
                "pruned_batchnorm": mode,
                "step_ms": 1000 * medians[loop],
                "quartile_1_ms": 1000 * quartiles[0],
                "quartile_3_ms": 1000 * quartiles[2],
                "images_per_second": arms * BATCH / medians[loop],
                "ratio": arms * medians[compared] / medians[loop],
                "data_percent": 100 * statistics.median(s.data_seconds / s.seconds for s in taken[loop][2:]),
                "peak_gib": memory[loop] / 2**30,
                "gflop": flops / 1e9,
                "matrix_gflops": rate / 1e9,
                "matrix_percent": 100 * flops / medians[loop] / rate,
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
    report.save({"step": measured}, device)


if __name__ == "__main__":
    main()
