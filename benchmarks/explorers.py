"""From a key to the picture: python -m benchmarks.explorers

Each explorer of the notebooks, one of its controls moved 20 times: in the process, from the value to the PNG's
bytes; and, where Chromium, its chromedriver and selenium are (pip install -e ".[browser]"), in JupyterLab, from the key to the frame
that has the new picture. Prints a table, writes explorers.csv and README.md beside it. On two CPU cores about two minutes.
"""

import argparse
import atexit
import itertools
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks import report
from r2kd import data, experiments, explorers, models, simplex, student_explorers
from r2kd.pruning import BATCHNORM_MODES
from r2kd.randomness import generator
from tests import browser

import numpy as np
import pandas as pd
import torch

KEYS = 20
MOVED = {
    "augmentation": "draw",
    "pruning": "image",
    "losses": "temperature",
    "corruption": "image",
    "compare": "smoothing",
    "errors": "image",
    "live": "seed",
}
SETUP = """from benchmarks import explorers
made = explorers.made()"""


def made() -> dict[str, explorers.Explorer]:
    """By name: the digits at CIFAR's 32 pixels, untrained a resnet20 that teaches nine resnet8; of compare, errors and live students
    that were trained in seconds."""
    images = data.load("digits", image_size=32).subset(64, explorers.SHOWN_IMAGES)
    networks = {f"student {i}": models.create("resnet8", images.num_classes).eval() for i in range(9)}
    networks = {"teacher": models.create("resnet20", images.num_classes).eval()} | networks
    rates, draws = range(0, 100, 10), generator(0, "benchmark")
    answers = {
        of: torch.randn(len(images.test), images.num_classes, generator=draws)
        for of in itertools.product(rates, BATCHNORM_MODES)
    }
    quality = pd.DataFrame([{"rate": rate, "batchnorm": mode, "top1": 95 - rate} for rate, mode in answers])
    study, few, students = trained()
    return {
        "augmentation": explorers.augmentation(images, networks["teacher"]),
        "pruning": explorers.pruning(
            images, images.test, answers, quality, study.option("dense_weight"), study.option("temperature")
        ),
        "losses": simplex.explorer(),
        "corruption": explorers.corruption(images, networks),
        "compare": student_explorers.compare(students),
        "errors": student_explorers.errors(study, few, students),
        "live": student_explorers.live(study, students),
    }


def trained() -> tuple[experiments.Study, data.ImageData, list[experiments.Student]]:
    """Two arms of the smoke profile with two seeds and ten epochs, which do not stay."""
    root = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    scale = {"epochs": 10, "corruptions": "none", "attacks": "none"}
    study = experiments.study("smoke", arms="ce; kd", seeds=2, runs_root=root, **scale)
    images = study.open_data()
    return study, images, experiments.run_students(study, images)


def in_process() -> dict[str, list[float]]:
    """Milliseconds of each key, by explorer; the first picture, which is laid out, is not counted."""
    found = {}
    for name, explorer in made().items():
        control = explorer.controls[MOVED[name]]
        values = itertools.cycle((np.arange(KEYS + 1) * control.step + control.min).clip(control.min, control.max))
        explorer.png()
        times = []
        for value in itertools.islice(values, KEYS):
            started = time.perf_counter()
            control.value = value
            explorer.png()
            times.append(1000 * (time.perf_counter() - started))
        found[name] = times
    return found


def in_browser() -> dict[str, list[float]]:
    """The same in JupyterLab, one key after the other has its picture."""
    from selenium.webdriver.common.keys import Keys

    found = {}
    with tempfile.TemporaryDirectory() as folder, browser.jupyterlab(Path(folder)) as lab:
        lab.write("explorers.ipynb", SETUP, *(f"made[{name!r}]" for name in MOVED))
        lab.open("explorers.ipynb")
        lab.run_all()
        assert not lab.errors(), lab.errors()
        for name, cell in zip(MOVED, lab.cells(), strict=True):
            control, times = lab.controls(cell)[MOVED[name]], []
            for i in range(KEYS + 1):
                key = Keys.ARROW_RIGHT if i % 8 < 4 else Keys.ARROW_LEFT  # not to the end, where nothing moves
                seen = lab.keys(cell, control, [key], 0)
                times.append(seen["pictures"][0] - seen["keys"][0])
            found[name] = times[1:]
    return found


def summary(where: str, times: dict[str, list[float]]) -> pd.DataFrame:
    """A row an explorer: median and worst."""
    rows = [
        {"explorer": name, "control": MOVED[name], "where": where, "keys": len(of)}
        | {"median_ms": float(np.median(of)), "worst_ms": max(of)}
        for name, of in times.items()
    ]
    return pd.DataFrame(rows)


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--try", dest="trial", action="store_true", help="write nothing")
    options = top.parse_args()
    table = summary("process", in_process())
    if browser.missing():
        print(f"not in a browser: {browser.missing()}")
    else:
        table = pd.concat([table, summary("browser", in_browser())], ignore_index=True)
    print(table.round(1).to_string(index=False))
    if not options.trial:
        report.save({"explorers": table}, torch.device("cpu"))


if __name__ == "__main__":
    main()
