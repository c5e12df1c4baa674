"""Whether what is here is whole: versions, device, threads, disk, data sets, runs and tables, a line for each."""

import os
import platform
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torchvision.datasets import CIFAR100
from torchvision.datasets.utils import check_integrity

from . import ROOT, acceleration, data, files, records, runs, tables
from .image_files import WORKERS, open_image

DAMAGED = "DAMAGED"  # how a line begins that says so
WAITING = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # read by OpenMP when torch is loaded


def examine(device: str, data_root: str | None, runs_root: str | None, thorough: bool = False) -> list[str]:
    """Look at everything and change nothing: a line an item. `thorough`: decode every image, too."""
    at, stored = data.root_folder(data_root), runs.root_folder(runs_root)
    versions = f"python {platform.python_version()}, torch {torch.__version__}, torchvision {version('torchvision')}"
    found = [f"versions: {versions}, {runs.package()}", _device(device), _threads()]
    found += [_disk("runs", stored), _disk("data sets", at)]
    for name, entry in data.DATASETS.items():
        found += _data_set(name, CHECKS[entry](at), thorough) if entry in CHECKS else [f"{name}: yours, not checked"]
    return [*found, *_runs(stored), *_tables(ROOT / "figures")]


def _damaged(problems: Iterable[str]) -> list[str]:
    lines = [f"{DAMAGED} {problem}" for problem in problems]
    return lines if len(lines) <= 10 else [*lines[:9], f"{DAMAGED} and {len(lines) - 9} more"]


def _device(name: str) -> str:
    try:
        device = acceleration.resolve_device(name)
    except ValueError as error:
        return f"{DAMAGED} {error}"
    native = "native" if acceleration.native_bfloat16(device) else "not native, so slow"
    if acceleration.emulates(device, "bfloat16"):
        native = "emulated in float32"
    where = runs.environment(device)
    trains = f"trains in {acceleration.precision(device)}; bfloat16 is {native}"
    return f"device: {where['device']} ({where['processor']}), {trains}"


def _threads() -> str:
    said = ", ".join(f"{name} {os.environ.get(name, 'not set')}" for name in WAITING)
    return f"threads: {torch.get_num_threads()} on {WORKERS} cores; how many, and how they wait: {said}"


def _disk(what: str, folder: Path) -> str:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return f"{DAMAGED} {there} is no folder that can be written, and {what} go to {folder}"
    return f"disk: {shutil.disk_usage(there).free / 1e9:.1f} GB free where {what} go, {folder}"


Found = tuple[
    str, dict[Path, int], list[str]
]  # where a data set is, how many images belong into a folder, what is wrong


def _digits(root: Path) -> Found:
    return f"within scikit-learn {version('scikit-learn')}", {}, []


def _cifar100(root: Path) -> Found | None:
    folder, archive = root / "cifar100", root / CIFAR100.base_folder
    if (folder / "test").is_dir():
        return str(folder), {folder / "train": 50_000, folder / "test": 10_000}, []
    if not archive.is_dir():
        return None
    listed = [*CIFAR100.train_list, *CIFAR100.test_list, (CIFAR100.meta["filename"], CIFAR100.meta["md5"])]
    wrong = [name for name, md5 in listed if not check_integrity(archive / name, md5)]
    return f"{archive}, by the MD5 of each file", {}, [f"{archive / name}: its MD5 is another" for name in wrong]


def _tiny_imagenet(root: Path) -> Found | None:
    homes = [home for home in (root / "tiny-imagenet-200", root / "tiny_imagenet", root) if (home / "val").is_dir()]
    if not homes:
        return None
    labels, trained = homes[0] / "val" / "val_annotations.txt", sorted((homes[0] / "train").glob("*"))
    wanted = {homes[0] / "val" / "images": 10_000} | {folder / "images": 500 for folder in trained}
    missing = [] if labels.is_file() else [f"{labels} is missing"]
    return f"{homes[0]}, {len(trained)} of 200 classes to train on", wanted, missing


CHECKS = {data.digits: _digits, data.cifar100: _cifar100, data.tiny_imagenet: _tiny_imagenet}


def _data_set(name: str, found: Found | None, thorough: bool) -> list[str]:
    if found is None:
        return [f"{name}: not here; it is downloaded when it is asked for"]
    where, wanted, wrong = found
    images = {folder: list(folder.rglob("*.*")) for folder in wanted}
    wrong += [f"{f} has {len(images[f])} images, not {count}" for f, count in wanted.items() if len(images[f]) != count]
    paths = [path for listed in images.values() for path in listed]
    with ThreadPoolExecutor() as pool:
        wrong += filter(None, pool.map(partial(_broken, thorough=thorough), paths))
    how = "each decoded" if thorough else "counted, not decoded (--thorough does)"
    return _damaged(wrong) or [f"{name}: {where}" + (f"; {len(paths)} images, {how}" if paths else "")]


def _broken(path: Path, thorough: bool) -> str | None:
    try:
        if thorough:
            open_image(path)
        return None if path.stat().st_size else f"{path} is empty"
    except (OSError, ValueError) as error:
        return str(error)


def _runs(root: Path) -> list[str]:
    """How many are in which state, and what is wrong with which."""
    names = ("config.json", "state.pt", "last.pt", "result.json")
    folders = sorted({path.parent for name in names for path in root.glob(f"*/{name}")})
    wrong = {folder: _problem(folder) for folder in folders if not files.is_aside(folder)}
    state = {folder: "finished" if runs.Run(folder).finished else "unfinished" for folder in wrong}
    states = Counter("damaged" if problem else state[folder] for folder, problem in wrong.items())
    told = ", ".join(f"{states[state]} {state}" for state in ("finished", "unfinished", "damaged"))
    aside = sum(map(files.is_aside, [*root.glob("*"), *root.glob("*/*")]))
    told += f", {aside} files or folders set aside as damaged" if aside else ""
    return [f"runs: {told}, in {root}", *_damaged(f"{folder}: {why}" for folder, why in wrong.items() if why)]


def _problem(folder: Path) -> str | None:
    """What is wrong with a run: with what it says of itself, with the digests that it keeps, with its weights' checksums."""
    run = runs.Run(folder)
    try:
        if (state := run.row["state"]).startswith("damaged"):  # by the digests of what is no weights, too
            return state
        for path in folder.glob("*.pt" if state == "finished" else "state.pt"):
            with zipfile.ZipFile(path) as weights:  # a checkpoint is a zip, of whose checksums torch reads none
                if weights.testzip() or (path.stem in runs.WEIGHTS and not run.sound(path.stem)):
                    return f"{path.name} does not hold what was written"
    except Exception as error:  # a damaged file can raise anything
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _tables(root: Path) -> list[str]:
    """Whether each table of a figure, by its digest where it has one, and of records can be read."""
    paths, wrong = tables.under(root), []
    for path in paths:
        try:
            records.read([path]) if path.name.endswith(records.NAME) else tables.read(path)
        except (ValueError, OSError) as error:
            wrong.append(str(error))
    return _damaged(wrong) or [f"tables: {len(paths)} under {root}, all whole"]
