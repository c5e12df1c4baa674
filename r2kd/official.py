"""The corrupted images as their authors published them: CIFAR-100-C's arrays and Tiny-ImageNet-C's folders.

They lie under the data root: CIFAR-100-C/<corruption>.npy, the archive's 10,000 test images at severities 1 to 5 in a row, and
Tiny-ImageNet-C/<corruption>/<severity>/<wnid>/<image>.JPEG. An image's place in its data set finds it in them.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from . import data, entries
from .data import ImageData, Split
from .image_files import ImageFiles


def available(images: ImageData, data_root: str | None, names: Iterable[str]) -> dict[str, Path]:
    """Those of the corruptions that official files are there for, with the array or the folder of each.

    CIFAR-100-C is in the archive's order, and of no use to a folder of CIFAR-100's images.
    """
    home = data.DATASETS[entries.split(images.name)[0]].corrupted if data.named(images.name) else ""
    if not home or images.test.place is None:
        return {}
    home = data.root_folder(data_root) / home
    paths = {
        name: next((path for path in (home / f"{name}.npy", home / name) if path.is_file() or path.is_dir()), None)
        for name in names
    }
    return {name: path for name, path in paths.items() if path}


def split(path: Path, severity: int, clean: Split) -> Split:
    """The images of a clean test split at a severity from 1 to 5, with its labels, from what `available` found.

    Raises ValueError for a file that is missing or is not what it should be.
    """
    return _of_array(path, severity, clean) if path.suffix == ".npy" else _of_folder(path, severity, clean)


def _of_array(path: Path, severity: int, clean: Split) -> Split:
    try:
        corrupted = np.load(path, mmap_mode="r")
        labels = np.load(path.parent / "labels.npy")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path.parent} cannot be read ({error}): unpack CIFAR-100-C.tar there again") from None
    if corrupted.shape != (50_000, 32, 32, 3) or corrupted.dtype != np.uint8 or labels.shape != (50_000,):
        raise ValueError(f"{path} is not of CIFAR-100-C: {corrupted.dtype} {corrupted.shape}")
    place = (severity - 1) * 10_000 + clean.place.numpy()
    if (labels[place] != clean.labels.cpu().numpy()).any():
        raise ValueError(f"{path.parent / 'labels.npy'} has other labels than the test images")
    images = torch.from_numpy(corrupted[place]).permute(0, 3, 1, 2).contiguous()
    return Split(images.to(clean.labels.device), clean.labels, clean.place)


def _of_folder(path: Path, severity: int, clean: Split) -> Split:
    annotations = data.tiny_imagenet_folder(path.parent.parent) / "val" / "val_annotations.txt"
    listed = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line.strip()]
    paths = [path / str(severity) / listed[place][1] / listed[place][0] for place in clean.place.tolist()]
    if missing := next((file for file in paths if not file.is_file()), None):
        raise ValueError(f"{missing} is missing: unpack Tiny-ImageNet-C.tar there again")
    files = ImageFiles([str(file) for file in paths], clean.images.shape[-1], True, clean.labels.device)
    return Split(files, clean.labels, clean.place)
