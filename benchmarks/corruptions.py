"""What a corrupted test set costs to make: python -m benchmarks.corruptions

The corruptions at their five severities, of 10,000 images of 32 pixels, in one process and by the chunk, as a study makes them:
CIFAR-100's test images where they lie under the data root, else random smooth ones. With --reference PYTHON the functions of
imagecorruptions-imaug too, by an interpreter that has them: a maintained fork of the released code, which takes one image at a
time; its constants are ImageNet's, its motion blur is not ImageMagick's, and it compiles glass blur's loop. They get 50 of the
images at severity 3, and their time is extrapolated. Prints a table, writes corruptions.csv and README.md beside it. On two CPU
cores about two minutes.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import report
from r2kd import data, robustness
from r2kd.corruptions import CORRUPTIONS, SEVERITIES, missing
from r2kd.data import Split
from r2kd.progress import tqdm
from r2kd.randomness import generator

import numpy as np
import pandas as pd
import torch

IMAGES, REFERENCE_IMAGES = 10_000, 50
REFERENCE = """
import json, sys, time
import numpy as np
from imagecorruptions import corrupt, get_corruption_names

images = np.load(sys.argv[1])

def seconds(name):
    try:
        corrupt(images[0], severity=3, corruption_name=name)  # what is compiled or read once is not counted
        started = time.perf_counter()
        for image in images:
            corrupt(image, severity=3, corruption_name=name)
    except Exception as error:
        print(name, "refuses:", error, file=sys.stderr)
        return None
    return (time.perf_counter() - started) / len(images)

print(json.dumps({name: seconds(name) for name in get_corruption_names("all")}))
"""


def test_images(count: int, root: str | None) -> tuple[Split, str]:
    """At most so many images of 32 pixels, and what they are."""
    folder = data.root_folder(root)
    if (folder / "cifar100" / "test").is_dir() or (folder / "cifar-100-python").is_dir():
        return data.load("cifar100", root, splits=("test",)).test.subset(count), "CIFAR-100's test images"
    coarse = torch.rand(count, 3, 8, 8, generator=generator(0, "benchmark"))
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1)
    return Split((255 * smooth).to(torch.uint8), torch.zeros(count, dtype=torch.long)), "random smooth images"


def seconds(split: Split, name: str) -> float:
    """Of all severities, after a few images of each that are not counted."""
    for severity in SEVERITIES:
        robustness.corrupted(split.take(torch.arange(min(8, len(split)))), name, severity)
    started = time.perf_counter()
    for severity in SEVERITIES:
        robustness.corrupted(split, name, severity)
    return time.perf_counter() - started


def reference_seconds(split: Split, python: str) -> dict[str, float]:
    """Of an image, by corruption; NaN where the function refuses it."""
    images = split.images[:REFERENCE_IMAGES].permute(0, 2, 3, 1).numpy()
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", images)
        command = [python, "-c", REFERENCE, str(Path(folder) / "images.npy")]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(printed.splitlines()[-1])
    return {name: float("nan") if taken is None else taken for name, taken in found.items()}


def measured(split: Split, reference: str | None = None) -> pd.DataFrame:
    """A row a corruption that can be made here, and one of them all; the ratio of all is of those with both times."""
    made = [name for name in CORRUPTIONS if not missing(name)]
    times = [seconds(split, name) for name in tqdm(made, desc="corruptions")]
    theirs = reference_seconds(split, reference) if reference else {}
    table = pd.DataFrame({"corruption": made, "seconds": times})
    table["reference_seconds"] = len(SEVERITIES) * len(split) * table["corruption"].map(theirs).astype(float)
    both = table.dropna()
    table["ratio"] = table["reference_seconds"] / table["seconds"]
    every = {
        "corruption": "all",
        "seconds": sum(times),
        "reference_seconds": table["reference_seconds"].sum(min_count=1),
    }
    every["ratio"] = both["reference_seconds"].sum() / both["seconds"].sum() if len(both) else float("nan")
    return pd.concat([table, pd.DataFrame([every])], ignore_index=True)


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--images", type=int, default=IMAGES, help=f"fewer for a try, which writes nothing [{IMAGES}]")
    top.add_argument("--data-root", help="where CIFAR-100 may lie [$R2KD_DATA, else data/]")
    top.add_argument("--reference", metavar="PYTHON", help="an interpreter that has imagecorruptions-imaug [none]")
    options = top.parse_args()
    split, source = test_images(options.images, options.data_root)
    table = measured(split, options.reference).assign(
        images=len(split), source=source, reference_images=min(REFERENCE_IMAGES, len(split))
    )
    print(source)
    print(table.round(3).to_string(index=False))
    for name in CORRUPTIONS:
        if reason := missing(name):
            print(f"left out: {reason}")
    if options.images >= IMAGES:
        report.save({"corruptions": table}, torch.device("cpu"))


if __name__ == "__main__":
    main()
