"""A whole epoch of real CIFAR-100, a plain loop against ours, and what 240 take: python -m benchmarks.epoch

Reads the data set, then the two loops, each in a process of its own, take turns, step by step, through all training images,
and test their student. Prints a table, writes epoch.csv and README.md beside it. On two CPU cores about 20 minutes.
"""

import argparse
import statistics
import time
from multiprocessing.connection import Connection

from benchmarks import report
from benchmarks.loops import BATCH, Step, ask, our_loop, plain_loop, processes
from r2kd import data, evaluation, models
from r2kd.profiles import PAIRS
from r2kd.progress import tqdm
from r2kd.training import resolve_device

import pandas as pd
import torch

LOOPS = {"plain": plain_loop, "ours": our_loop}


def serve(connection: Connection, loop: str, pair: str, root: str | None, device: str) -> None:
    """In a process of its own: seconds to "load" the data, a Step for each "step", at last the seconds of a "test"."""
    device = torch.device(device)
    connection.recv()
    started = time.perf_counter()
    images = data.load("cifar100", root)
    connection.send(time.perf_counter() - started)
    endless = LOOPS[loop](PAIRS[pair], images, "batch", device)
    while connection.recv() == "step":
        connection.send(next(endless))
    student = models.create(PAIRS[pair][1], images.num_classes).to(device).eval()
    test = images.test.to(device)
    started = time.perf_counter()
    evaluation.summary(evaluation.predict(student, test, images), test.labels)
    connection.send(time.perf_counter() - started)
    endless.close()


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--pair", default="res56_res20", choices=PAIRS, help="[res56_res20]")
    top.add_argument("--data-root", help="where CIFAR-100 lies or is downloaded to [$R2KD_DATA, else data/]")
    top.add_argument("--device", default="auto", help="auto, cpu, cuda [auto]")
    options = top.parse_args()
    device = resolve_device(options.device)
    images = data.load("cifar100", options.data_root)  # decoded once and cached, or downloaded, before a clock runs
    count = len(images.train) // BATCH
    taken: dict[str, list[Step]] = {loop: [] for loop in LOOPS}
    with processes(serve, {loop: (loop, options.pair, options.data_root, str(device)) for loop in LOOPS}) as served:
        loading = {loop: ask(connection, "load") for loop, connection in served.items()}
        for _ in tqdm(range(count), desc=f"{options.pair}, an epoch of {len(LOOPS)} loops"):
            for loop, connection in served.items():
                taken[loop].append(ask(connection, "step"))
        testing = {loop: ask(connection, "test") for loop, connection in served.items()}
    rows = []
    for loop in LOOPS:
        seconds = [step.seconds for step in taken[loop]]
        quartiles = statistics.quantiles(seconds, n=4)
        rows.append(
            {
                "pair": options.pair,
                "loop": loop,
                "loading_s": loading[loop],
                "training_s": sum(seconds),
                "step_ms": 1000 * quartiles[1],
                "quartile_1_ms": 1000 * quartiles[0],
                "quartile_3_ms": 1000 * quartiles[2],
                "test_s": testing[loop],
                "hours_240": 240 * (sum(seconds) + testing[loop]) / 3600,
                "data_percent": 100 * sum(step.data_seconds for step in taken[loop]) / sum(seconds),
                "steps": count,
                "test_images": len(images.test),
            }
        )
    table = pd.DataFrame(rows)
    print(table.round(2).to_string(index=False))
    report.save({"epoch": table}, device)


if __name__ == "__main__":
    main()
