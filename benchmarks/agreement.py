"""How far training's fast path parts from its plain one: python -m benchmarks.agreement

The loss of 50 steps of the recipe on the same batches: of the fast path from the plain path's weights at each step, which is
how far the two compute different things; of the fast path left to itself; and of the plain path itself with another number
of threads, which is how fast training makes any difference in rounding grow. Writes agreement.csv and README.md beside it.
"""

import argparse

from benchmarks import report
from benchmarks.loops import BATCH, students_and_teachers
from benchmarks.step import CASES, benchmark_images
from r2kd.batch import epoch_batches
from r2kd.profiles import PAIRS
from r2kd.progress import tqdm
from r2kd.training import resolve_device

import pandas as pd
import torch

PATHS = {"plain": True, "fast": False, "fast, from the plain weights": False, "plain, another number of threads": True}


def losses(pair: str, pixels: int, steps: int, device: torch.device, **settings) -> pd.DataFrame:
    """A row a step: the loss on each path."""
    images, threads = benchmark_images(pixels).to(device), torch.get_num_threads()
    arms, teachers, batches = {}, {}, {}
    for path, plain in PATHS.items():
        (arms[path],), teachers[path] = students_and_teachers(
            PAIRS[pair], images, "running", device, plain=plain, precision="float32", **settings
        )
    rows = []
    bar = tqdm(total=steps, desc=f"{pair}, steps of {len(PATHS)} paths")
    for step in range(steps):
        if step % (len(images.train) // BATCH) == 0:
            for path, arm in arms.items():
                recipe = {"seed": 0, "epoch": step, "batch_size": BATCH, "plain": PATHS[path]}
                batches[path] = epoch_batches(images, set(arm.config.views.values()), teachers[path], **recipe)
        row = {"pair": pair, "step": step + 1}
        arms["fast, from the plain weights"].model.load_state_dict(arms["plain"].model.state_dict())
        for path in reversed(PATHS):  # the plain path last: the others start from where it stands
            torch.set_num_threads((1 if threads > 1 else 2) if "threads" in path else threads)
            arms[path].begin_epoch()
            arms[path].step(next(batches[path]))
            row[path] = float(arms[path].sums[0]) / BATCH
        rows.append(row)
        bar.update()
    bar.close()
    torch.set_num_threads(threads)
    return pd.DataFrame(rows)


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--pair", default="res56_res20", choices=CASES, help="[res56_res20]")
    top.add_argument("--steps", type=int, default=50, help="[50]")
    top.add_argument("--device", default="auto", help="auto, cpu, cuda [auto]")
    options = top.parse_args()
    device = resolve_device(options.device)
    table = losses(options.pair, CASES[options.pair], options.steps, device)
    print(table.to_string(index=False), end="\n\n")
    print(report.largest_differences(table).to_string(index=False))
    report.save({"agreement": table}, device)


if __name__ == "__main__":
    main()
