"""What the campaign disturbs: small pieces of the package's work, each of which prints one line that tells all of its numbers."""

import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import r2kd.__main__
import run_all
from r2kd import data, downloads, experiments, figures, files, models, runs

import matplotlib.figure  # noqa: F401 (what children ask for is loaded before they are forked)
import numpy as np
import pandas as pd
import seaborn  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
from PIL import Image

TINY = {"train_images": 20, "test_images": 20, "epochs": 2, "image_size": 8, "device": "cpu"}
ANSWER = "answer "
BODY = bytes(range(256)) * 2000  # of a download


@dataclass(frozen=True)
class Subject:
    """`work` on a folder: prints a line "answer ..." and returns an exit code. `prepare`: what must lie there before."""

    name: str
    work: Callable[[Path], int]
    prepare: Callable[[Path], None] = lambda folder: None


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:16]


def said(work: Callable[[Path], str]) -> Callable[[Path], int]:
    """The answer printed; what can go wrong in a line, as the notebooks' runner says it."""

    def run(folder: Path) -> int:
        try:
            print(ANSWER + work(folder))
        except (ValueError, OSError, FloatingPointError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        return 0

    return run


def train(folder: Path) -> int:
    """A student and its teacher, by the command line."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    models_ = ["--teacher", "resnet8", "--student", "resnet8", "-a", "cutmix"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = r2kd.__main__.main(["distill", "-d", "digits", *models_, *options, "--runs-root", str(folder / "runs")])
    if code:
        return code
    return said(_trained)(folder)


def _trained(folder: Path) -> str:
    parts = []
    for path in sorted((folder / "runs").glob("[!.]*")):
        if files.is_aside(path):
            continue
        run = runs.Run(path)
        for which in ("last", "best"):
            state = models.read_checkpoint(run.weights(which))
            parts += [value.numpy().tobytes() for value in state.values()]
        numbers = {name: value for name, value in run.result.items() if name != "seconds"}
        parts += [run.metrics.to_csv(index=False).encode(), repr(sorted(numbers.items())).encode()]
    return f"{len(parts)} {digest(*parts)}"


@said
def study(folder: Path) -> str:
    """Four students of two seeds, with their records and one corruption."""
    places = {"runs_root": str(folder / "runs"), "figures_root": str(folder / "figures")}
    made = experiments.study(
        "smoke",
        arms="ce; r2kd cutmix",
        seeds=2,
        corruptions="impulse_noise",
        attacks="none",
        robust_images=10,
        **TINY | places,
    )
    images = made.open_data()
    students = experiments.run_students(made, images)
    results = experiments.results_table(students).drop(columns="source")
    tests = experiments.tests_table(made, images, students)
    records = pd.read_csv(made.figures / "records.csv")[["address", "last_top1", "curve"]]
    tested = pd.read_csv(made.figures / "robustness_records.csv").drop(columns="weights")
    tables = [table.to_csv(index=False).encode() for table in (results, tests, records, tested)]
    return f"{len(results)} {digest(*tables)}"


def _tables(folder: Path) -> None:
    rows = [
        {
            "arm": arm,
            "epoch": epoch,
            "mean": 50 + epoch + shift,
            "half_width": 1.5,
            "n": 1,
            "each": f"{50 + epoch}",
            "drops": "9 15",
        }
        for shift, arm in enumerate(("KD", "R2KD"))
        for epoch in range(1, 21)
    ]
    spread = [
        {"view": view, "teacher": kind, "rate": rate, "mean": 0.4 + i / 100, "half_width": 0.01, "n": 3}
        for i, view in enumerate(("none", "cutmix", "mixup"))
        for kind, rate in (("dense", 0), ("pruned", 10), ("mixed", 10))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        figures.save("training_curves", pd.DataFrame(rows), folder / "figures", "a campaign's table")
        figures.save("answer_spread", pd.DataFrame(spread), folder / "figures", "a campaign's table")


@said
def draw(folder: Path) -> str:
    """Two tables and their figures saved."""
    _tables(folder)
    return _drawn(folder)


def redraw(folder: Path) -> int:
    """--figures-only."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = run_all.main(["--figures-only", "--figures-root", str(folder / "figures")])
    return code or said(_drawn)(folder)


def _drawn(folder: Path) -> str:
    found = (path for path in (folder / "figures").rglob("*") if path.suffix in (".csv", ".png"))
    paths = sorted(path for path in found if not path.name.endswith("records.csv"))  # which tell the time
    return f"{len(paths)} {digest(*(path.read_bytes() for path in paths))}"


def _pictures(folder: Path) -> None:
    draws = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for name in ("cat", "dog"):
            place = folder / "pictures" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                picture.save(place / f"{i}.jpg")


@said
def load(folder: Path) -> str:
    """A folder of images, decoded once and cached."""
    images = data.load(str(folder / "pictures"), image_size=16)
    parts = [images.fingerprint.encode()]
    for split in (images.train, images.test):
        parts += [split.images.numpy().tobytes(), split.labels.numpy().tobytes()]
    return digest(*parts)


@said
def evaluate(folder: Path) -> str:
    """A checkpoint's accuracy."""
    state = models.read_checkpoint(folder / "student.pt")
    network = models.from_checkpoint("resnet8", models.output_classes(state), folder / "student.pt")
    return digest(*(value.numpy().tobytes() for value in network.state_dict().values()))


def _checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    torch.save({"model": models.create("resnet8", 10).state_dict()}, folder / "student.pt")


@said
def download(folder: Path) -> str:
    """A file from a server that answers as tricks.json says, one a request, and then well."""
    tricks = folder / "tricks.json"
    downloads.WAITS, downloads.TIMEOUT = (0, 0, 0), 1
    os.environ["no_proxy"] = "127.0.0.1"
    with _server(json.loads(tricks.read_text()) if tricks.exists() else []) as url:
        size, md5 = len(BODY), hashlib.md5(BODY).hexdigest()
        downloads.fetch(url, folder / "file", at_least=size, at_most=size, md5=md5)
    return digest((folder / "file").read_bytes())


def notebook(folder: Path) -> int:
    """run_all with one notebook, in a kernel of its own."""
    options = {"profile": "smoke", "only": "02", "seeds": 1, "arms": "ce; kd", "corruptions": "none", "attacks": "none"}
    options |= TINY | {"runs-root": folder / "runs", "figures-root": folder / "figures"}
    with contextlib.redirect_stdout(io.StringIO()):
        code = run_all.main([f"--{name.replace('_', '-')}={value}" for name, value in options.items()])
    return code or said(_drawn)(folder)


TRICKS = ("cut", "stall", "another", "longer", "shorter", "no ranges", "404", "503", "hang up")


@contextlib.contextmanager
def _server(tricks: list[str]) -> Iterator[str]:
    over = Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            trick = tricks.pop(0) if tricks else ""
            if trick == "hang up":
                return
            if trick.isdigit():
                return self.send_error(int(trick))
            asked = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-")
            start = 0 if trick == "no ranges" else int(asked)
            if start >= len(BODY):
                return self.send_error(416)
            body = {"another": BODY[::-1], "longer": BODY * 2, "shorter": BODY[:-1]}.get(trick, BODY)
            self.send_response(206 if start else 200)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start:][: 300_000 if trick in ("cut", "stall") else None])
            if trick == "stall":
                over.wait(10)

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.handle_error = lambda *_: None  # a client that has had enough hangs up
        Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/file"
        finally:
            over.set()
            http.shutdown()


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("training", train),
        Subject("study", study),
        Subject("figures", draw),
        Subject("figures-only", redraw, _tables),
        Subject("cache", load, _pictures),
        Subject("checkpoint", evaluate, _checkpoint),
        Subject("download", download),
        Subject("run_all", notebook),
    )
}
