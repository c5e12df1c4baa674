"""What a batch costs before any network sees it, by augmentation: python -m benchmarks.batch

Indexing, cropping, flipping, normalising and augmenting 64 images, without the teacher's forward that cutmixpick asks for and
training shares. As a share of the step of one student that step.csv holds. Writes batch.csv and README.md beside it.
"""

import argparse
import statistics
import time
from types import SimpleNamespace

from benchmarks import report
from benchmarks.loops import BATCH
from benchmarks.step import CASES, CLASSES, benchmark_images
from r2kd import acceleration
from r2kd.augmentation import AUGMENTATIONS
from r2kd.batch import epoch_batches
from r2kd.config import CLEAN
from r2kd.entries import Choice
from r2kd.progress import tqdm
from r2kd.training import resolve_device

import pandas as pd
import torch

# in the place of the teachers: an answer at once, the same to every image
UNDECIDED = SimpleNamespace(
    dense=torch.nn.Identity(), logits=lambda teacher, images: images.new_zeros(len(images), CLASSES)
)


def milliseconds(pixels: int, view: Choice, device: torch.device, count: int = 45) -> list[float]:
    """Of each of `count` batches, after three that are not counted."""
    images = benchmark_images(pixels).to(device)
    taken = []
    while len(taken) < count + 3:
        batches = epoch_batches(images, {view}, UNDECIDED, seed=0, epoch=len(taken), batch_size=BATCH)
        started = time.perf_counter()
        for _ in batches:
            acceleration.wait(device)
            taken.append(1000 * (time.perf_counter() - started))
            started = time.perf_counter()
    return taken[3 : count + 3]


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--device", default="auto", help="auto, cpu, cuda [auto]")
    device = resolve_device(top.parse_args().device)
    step = report.read("step").set_index(["pair", "loop", "students", "pruned_batchnorm", "precision"])["step_ms"]
    drawn = [AUGMENTATIONS.choose(name) for name, entry in AUGMENTATIONS.items() if entry.drawn]
    views = [view.with_options(draws=draws) for view in drawn for draws in ("batch", "sample")]
    views.append(AUGMENTATIONS.choose("cutmixpick:draws=sample,pick=after"))
    rows = []
    for pair, view in tqdm([(pair, view) for pair in CASES for view in [CLEAN, *views]], desc="views"):
        median = statistics.median(milliseconds(CASES[pair], view, device))
        share = 100 * median / step[(pair, "ours", 1, "running", acceleration.precision(device))]
        options = {"draws": "batch", "pick": "before"} | view.options
        rows.append({"pixels": CASES[pair], "augmentation": view.name, **options, "ms": median, "step_percent": share})
    table = pd.DataFrame(rows)
    print(table.round(2).to_string(index=False))
    report.save({"batch": table}, device)


if __name__ == "__main__":
    main()
