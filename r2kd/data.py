"""A data set by name or folder, decoded once into uint8 tensors or streamed; normalisation, crops and flips by the batch."""

import hashlib
import http.client
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Generator, Tensor
from torchvision.datasets import CIFAR100, ImageFolder
from torchvision.datasets.utils import download_url

from . import ROOT, entries
from .entries import Registry
from .image_files import ImageFiles, decode, open_image
from .progress import tqdm
from .randomness import generator

DATASETS = Registry("data set", gives=("root", "image_size", "splits", "stream"), facts={"recipe": {}, "corrupted": ""})
dataset = DATASETS.entry

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
MEMORY = 8 * 2**30  # bytes of decoded images; a folder with more is streamed

DIGITS_STATISTICS = (0.3048,) * 3, (0.3182,) * 3  # of the 1,000 training images at 16 pixels
CIFAR100_STATISTICS = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Split:
    """Images (N, 3, S, S) uint8, a tensor or files that are decoded when asked for, and labels (N,) int64, on one device.

    place: (N,) int64, where each stands in the order that the data set's authors gave it; None where that is not known.
    """

    images: Tensor | ImageFiles
    labels: Tensor
    place: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, chosen: Tensor) -> "Split":
        """The images of these indices, in their order."""
        chosen = chosen.to(self.labels.device)
        images = self.images.take(chosen) if isinstance(self.images, ImageFiles) else self.images[chosen]
        return Split(images, self.labels[chosen], None if self.place is None else self.place[chosen.cpu()])

    def batches(self, indices: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) of each tensor of indices, on the split's device. Raises as ImageFiles.batches does."""
        device = self.labels.device
        if isinstance(self.images, ImageFiles):
            images = self.images.batches(indices)
        else:
            images = (self.images[index.to(device, non_blocking=True)] for index in indices)
        for index, batch in zip(indices, images, strict=True):
            yield batch, self.labels[index.to(device, non_blocking=True)]

    def shuffled(self, seed: int = 0) -> "Split":
        """The same in random order: for a model whose answers depend on an image's neighbours."""
        return self.take(torch.randperm(len(self), generator=generator(seed, "shuffled")))

    def subset(self, count: int | None, seed: int = 0) -> "Split":
        """At most `count` images (None: all), as evenly over the classes as they allow, in their order.

        Raises ValueError for a count below 1.
        """
        if count is not None and count < 1:
            raise ValueError(f"a subset has at least 1 image, not {count}")
        if count is None or count >= len(self):
            return self
        return self.take(self._even(count, generator(seed, "subset")))

    def hold_out(self, count: int, seed: int = 0) -> tuple["Split", "Split"]:
        """The others, and `count` images as evenly over the classes as they allow; both in their order.

        Raises ValueError for a count below 1, or where no other is left.
        """
        if not 1 <= count < len(self):
            raise ValueError(f"of {len(self)} training images, {count} cannot be kept for validation")
        chosen = self._even(count, generator(seed, "validation"))
        others = torch.ones(len(self), dtype=torch.bool)
        others[chosen] = False
        return self.take(others.nonzero().flatten()), self.take(chosen)

    def with_label_noise(self, rate: float, num_classes: int, seed: int = 0) -> "Split":
        """The same images, round(rate * N) of the labels flipped, each to any of the other classes, all as likely.

        The labels of a lower rate are flipped by a higher one too, and to the same class, so that rates can be paired.
        Symmetric noise: Zhang & Sabuncu, NeurIPS 2018. Raises ValueError for a rate that is no share, or fewer than 2 classes.
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"label noise is a share, 0 <= rate <= 1, not {rate}")
        if num_classes < 2:
            raise ValueError(f"a label is flipped to another class, and there is {num_classes}")
        draws = generator(seed, "label noise")
        flipped = torch.randperm(len(self), generator=draws)[: round(rate * len(self))]
        steps = torch.randint(1, num_classes, (len(self),), generator=draws)  # drawn for all, whatever the rate
        labels = self.labels.cpu().clone()
        labels[flipped] = (labels[flipped] + steps[flipped]) % num_classes
        return replace(self, labels=labels.to(self.labels.device))

    def _even(self, count: int, generator: Generator) -> Tensor:
        """Sorted indices of `count` images, as evenly over the classes as they allow."""
        shuffled = torch.randperm(len(self), generator=generator)
        labels = self.labels[shuffled].tolist()
        seen: dict[int, int] = {}
        turn = []  # the how-manieth image of its class
        for label in labels:
            turn.append(seen.get(label, 0))
            seen[label] = turn[-1] + 1
        return shuffled[torch.tensor(turn).sort(stable=True).indices[:count]].sort().values


@dataclass(frozen=True)
class ImageData:
    """A data set, in memory or streamed. A split that was not asked for, or is not there, is None."""

    name: str
    classes: tuple[str, ...]
    train: Split | None
    test: Split | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool  # whether a mirrored image is of the same class
    policy: str  # torchvision's AutoAugment policy
    fingerprint: str = ""  # of what is in the files, so that a run on other images is another run; empty: load finds it
    of_classes: int | None = None  # of how many classes only those with training images were kept
    validation: Split | None = None  # training images that are kept out of training
    of_images: tuple[int, int] | None = None  # training and test images before any subset
    label_noise: float = 0.0  # share of the training labels that were flipped

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def tested(self) -> dict[str, Split]:
        """What a model is tested on after each epoch, by name; by the last of them its best epoch is chosen."""
        return {"test": self.test} | ({"validation": self.validation} if self.validation else {})

    @property
    def image_size(self) -> int:
        return (self.train or self.test).images.shape[-1]

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32, channels last, minus the mean over the standard deviation of each channel."""
        statistics = torch.tensor((self.mean, self.std)).view(2, -1, 1, 1)
        mean, std = statistics.to(images.device, non_blocking=True)
        return images.float().div_(255).sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)

    def to(self, device: torch.device | str) -> "ImageData":
        return replace(
            self,
            train=self.train and self.train.to(device),
            test=self.test and self.test.to(device),
            validation=self.validation and self.validation.to(device),
        )

    def subset(
        self,
        train_images: int | None,
        test_images: int | None,
        validation_images: int = 0,
        label_noise: float = 0.0,
    ) -> "ImageData":
        """The same with at most so many images in each split, the same images every time.

        The validation images are taken first, out of the training images, and are the same however many train. Of the labels of
        those that train the share `label_noise` is flipped last; validation and test labels stay as they are.
        Raises ValueError for a subset below 1, a negative validation, where it leaves no image to train on, for a noise that
        Split.with_label_noise refuses, and where labels are flipped already.
        """
        self._check_unflipped()
        train, validation = self.train, self.validation
        if train is not None and validation_images != 0:
            train, validation = train.hold_out(validation_images)
        train = train and train.subset(train_images)
        if train is not None and label_noise != 0:
            train = train.with_label_noise(label_noise, self.num_classes)
        return replace(
            self,
            train=train,
            test=self.test and self.test.subset(test_images),
            validation=validation,
            of_images=self.of_images or (len(self.train or ()), len(self.test or ())),
            label_noise=label_noise,
        )

    def with_training_classes(self) -> "ImageData":
        """Only the classes that have training images, for a student of a part of Tiny ImageNet; labels count anew.

        Raises ValueError where there is no training image at all, or labels are flipped already.
        """
        self._check_unflipped()
        if self.train is None or not len(self.train):
            raise ValueError(f"{self.name} has no training images here")
        kept = self.train.labels.unique()
        if len(kept) == self.num_classes:
            return self
        new_label = torch.full((self.num_classes,), -1, device=kept.device)
        new_label[kept] = torch.arange(len(kept), device=kept.device)

        def keep(split: Split | None) -> Split | None:
            if split is None:
                return None
            known = split.take((new_label[split.labels] >= 0).nonzero().flatten())
            return replace(known, labels=new_label[known.labels])

        return replace(
            self,
            classes=tuple(self.classes[i] for i in kept.tolist()),
            train=keep(self.train),
            test=keep(self.test),
            validation=keep(self.validation),
            of_classes=self.num_classes,
        )

    def _check_unflipped(self) -> None:
        """Raises ValueError where labels are flipped: of other classes or images, others would have been."""
        if self.label_noise:
            raise ValueError(f"labels of {self.name} are flipped already: classes and subset are taken before")


def load(
    name_or_folder: str | Path,
    root: str | Path | None = None,
    image_size: int | None = None,
    splits: tuple[str, ...] = ("train", "test"),
    stream: bool | None = None,
) -> ImageData:
    """A data set as uint8 tensors, or streamed from its files.

    `name_or_folder`: one of DATASETS, or a folder with train/<class>/ and test/<class>/ or val/<class>/, or one in Tiny
    ImageNet's official layout. `root`: where named data sets lie or are downloaded to; else $R2KD_DATA, else data/.
    `image_size`, in pixels: digits are scaled to it (16 if None); a folder's images are resized on their shorter side
    and cropped at the centre (None: they must all be square and of one size). `splits`: what to read. `stream`: leave
    the images of a folder in their files and decode each when it is asked for; None does where they would take more
    than MEMORY bytes or half of the machine's memory. The images, and a training's numbers, are the same.

    Raises FileNotFoundError for a data set that is neither on disk nor to be had (it names the address, the size and the
    folder to put it in), ValueError for an unknown name, a size below 1, an image that is broken or cannot be read, an
    empty class or classes that differ.
    """
    name = str(name_or_folder)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, not {image_size}")
    if named(name):
        chosen = DATASETS.choose(name)
        made = chosen(root=root_folder(root), image_size=image_size, splits=splits, stream=stream)
        return replace(made, name=str(chosen), fingerprint=made.fingerprint or _hash_of_pixels(made))
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(f"unknown data set {name!r}: neither one of {', '.join(DATASETS)} nor a folder")
    if (folder / "val" / "val_annotations.txt").exists():
        return _official(folder, image_size, splits, stream)
    return _folder(folder, image_size, splits, stream)


def named(dataset: str) -> bool:
    """Whether a data set is one of DATASETS, with options or without, and no folder."""
    return entries.split(dataset)[0] in DATASETS


def recipe(dataset: str) -> dict[str, Any]:
    """The settings that a data set of this name is usually trained with; none for a folder."""
    return dict(DATASETS[entries.split(dataset)[0]].recipe) if named(dataset) else {}


def _hash_of_pixels(images: ImageData) -> str:
    """The fingerprint of images in memory whose entry gives none: a hash of their pixels and labels."""
    found = hashlib.sha256()
    for part in (images.train, images.test):
        for tensor in (part.images, part.labels) if part else ():
            found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def root_folder(root: str | Path | None = None) -> Path:
    """Where named data sets lie: the argument, else $R2KD_DATA, else data/."""
    return Path(root or os.environ.get("R2KD_DATA") or ROOT / "data").expanduser()


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: Generator) -> Tensor:
    """Random crops of the zero-padded images (B, C, S, S) uint8, and with `flip` half of them mirrored, each its own draw."""
    batch, _, height, width = images.shape
    device = images.device
    top, left = torch.randint(2 * padding + 1, (2, batch, 1), generator=generator).to(device, non_blocking=True)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    if flip:
        mirrored = (torch.rand(batch, 1, generator=generator) < 0.5).to(device, non_blocking=True)
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    index = torch.arange(batch, device=device)[:, None, None]
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def batch_indices(count: int, batch_size: int, generator: Generator) -> list[Tensor]:
    """A shuffled epoch as index tensors; a last batch of a single image, which BatchNorm can't take, is left out.

    Raises ValueError where none is left.
    """
    batches = torch.randperm(count, generator=generator).split(batch_size)
    if count < 2:
        raise ValueError(f"BatchNorm needs two images in a batch at least, and there is {count} to train on")
    return [batch for batch in batches if len(batch) > 1]


@dataset("digits", cite="Alpaydin & Kaynak, UCI 1998", recipe={"image_size": 16, "train_images": 300, "epochs": 20})
def digits(image_size: int | None, splits: tuple[str, ...]) -> ImageData:
    """1,797 handwritten digits, 8 x 8 pixels: 1,000 to train on, 797 to test, the split fixed and stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    size = image_size or 16
    pixels = torch.from_numpy(scans.images).float()[:, None] * (255 / 16)
    pixels = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear")
    images = pixels.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(scans.target).long()
    train, test = train_test_split(np.arange(len(labels)), train_size=1000, stratify=scans.target, random_state=0)
    parts = {"train": Split(images[train], labels[train]), "test": Split(images[test], labels[test])}
    mean, std = DIGITS_STATISTICS
    return ImageData(
        name="digits",
        classes=tuple("0123456789"),
        train=parts["train"] if "train" in splits else None,
        test=parts["test"] if "test" in splits else None,
        mean=mean,
        std=std,
        flip=False,
        policy="cifar10",
        fingerprint=f"digits-{size}",
    )


@dataset("CIFAR-100", cite="Krizhevsky, 2009", corrupted="CIFAR-100-C")
def cifar100(root: Path, image_size: int | None, splits: tuple[str, ...], stream: bool | None) -> ImageData:
    """60,000 photographs, 32 x 32 pixels: a folder of images cifar100/, else the archive, downloaded when absent."""
    if (root / "cifar100" / "test").is_dir():
        return _cifar100_like(_folder(root / "cifar100", image_size, splits, stream))
    if image_size not in (None, 32):
        raise ValueError(f"the CIFAR-100 archive has 32 pixels, not {image_size}; use a folder of images")
    return _cifar100_archive(root, splits)


def _cifar100_like(loaded: ImageData) -> ImageData:
    mean, std = CIFAR100_STATISTICS
    return replace(loaded, mean=mean, std=std, policy="cifar10")


def _cifar100_archive(root: Path, splits: tuple[str, ...]) -> ImageData:
    """torchvision's CIFAR-100, downloaded to `root` when absent; torchvision checks every file's MD5."""
    parts: dict[str, Split | None] = {"train": None, "test": None}
    for split in splits:
        try:
            archive = CIFAR100(root, train=split == "train", download=True)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise FileNotFoundError(
                f"no CIFAR-100 in {root}, and downloading {CIFAR100.url} (169 MB) failed ({error}); put "
                f"{CIFAR100.filename}, or a folder cifar100/ with train/<class>/ and test/<class>/, into {root}"
            ) from None
        images = torch.from_numpy(archive.data).permute(0, 3, 1, 2).contiguous()
        parts[split] = Split(images, torch.tensor(archive.targets), torch.arange(len(images)))
    return _cifar100_like(
        ImageData(
            name="cifar100",
            classes=tuple(archive.classes),
            train=parts["train"],
            test=parts["test"],
            mean=(0, 0, 0),
            std=(1, 1, 1),
            flip=True,
            policy="cifar10",
            fingerprint="cifar-100-python",
        )
    )


@dataset("Tiny ImageNet", cite="Le & Yang, CS 231N 2015", corrupted="Tiny-ImageNet-C")
def tiny_imagenet(root: Path, image_size: int | None, splits: tuple[str, ...], stream: bool | None) -> ImageData:
    """110,000 photographs of 200 classes, 64 x 64 pixels, downloaded when absent."""
    return _official(tiny_imagenet_folder(root), image_size, splits, stream)


def tiny_imagenet_folder(root: Path) -> Path:
    """The folder of Tiny ImageNet under `root`; downloaded and unpacked when absent, whole or not at all."""
    home = root / "tiny-imagenet-200"
    for folder in (home, root / "tiny_imagenet", root):
        if (folder / "wnids.txt").exists() or (folder / "val" / "val_annotations.txt").exists():
            return folder
    archive = root / "tiny-imagenet-200.zip"
    try:
        root.mkdir(parents=True, exist_ok=True)
        download_url(TINY_IMAGENET_URL, str(root), archive.name, TINY_IMAGENET_MD5)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"no Tiny ImageNet in {root}, and downloading {TINY_IMAGENET_URL} (248 MB) failed ({error}); put "
            f"{archive.name}, or its folder {home.name}/, into {root}"
        ) from None
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as unpacked:
        shutil.unpack_archive(archive, unpacked)
        (Path(unpacked) / home.name).rename(home)
    return home


def _official(folder: Path, image_size: int | None, splits: tuple[str, ...], stream: bool | None) -> ImageData:
    """Tiny ImageNet's own layout: train/<wnid>/images/, and val/images/ with their classes in val_annotations.txt.

    All classes of wnids.txt, also where only some have training images. Raises as `load` does.
    """
    listed = (folder / "wnids.txt").read_text().split() if (folder / "wnids.txt").exists() else []
    samples: dict[str, list[tuple[str, str]]] = {}
    if (folder / "train").is_dir():
        train = _image_folder(folder / "train")
        samples["train"] = [(path, train.classes[label]) for path, label in train.samples]
        listed = listed or train.classes
    elif "train" in splits:
        raise FileNotFoundError(f"{folder} has no folder train/")
    classes = sorted(listed)
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.exists():
        raise FileNotFoundError(f"{annotations} is missing: Tiny ImageNet's validation labels stand in it")
    lines = [line.split("\t") for line in annotations.read_text().splitlines() if line.strip()]
    if not lines or min(map(len, lines)) < 2:
        raise ValueError(f"{annotations} needs lines of an image's name, a tab and its class")
    samples["test"] = [(str(folder / "val" / "images" / line[0]), line[1]) for line in lines]
    made = _decode(folder, tuple(classes), samples, image_size, splits, stream)
    return replace(made, test=made.test and replace(made.test, place=torch.arange(len(lines))))


def _folder(folder: Path, image_size: int | None, splits: tuple[str, ...], stream: bool | None) -> ImageData:
    """train/<class>/ and test/<class>/ or val/<class>/. Raises as `load` does."""
    held_out = next((folder / part for part in ("test", "val") if (folder / part).is_dir()), None)
    if held_out is None or (not (folder / "train").is_dir() and "train" in splits):
        raise FileNotFoundError(f"{folder} needs the folders train/<class>/ and test/<class>/ or val/<class>/")
    folders = {"test": _image_folder(held_out)}
    if (folder / "train").is_dir():
        folders["train"] = _image_folder(folder / "train")
        differing = set(folders["train"].classes) ^ set(folders["test"].classes)
        if differing:
            shown = ", ".join(sorted(differing)[:5]) + (", ..." if len(differing) > 5 else "")
            raise ValueError(f"{folder}: {len(differing)} classes are not in both train/ and {held_out.name}/: {shown}")
    classes = folders["test"].classes
    samples = {split: [(path, classes[label]) for path, label in images.samples] for split, images in folders.items()}
    return _decode(folder, tuple(classes), samples, image_size, splits, stream)


def _image_folder(folder: Path) -> ImageFolder:
    try:
        return ImageFolder(folder)
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: {error}") from None  # torchvision names the empty classes


def _decode(
    folder: Path,
    classes: tuple[str, ...],
    samples: dict[str, list[tuple[str, str]]],
    image_size: int | None,
    splits: tuple[str, ...],
    stream: bool | None,
) -> ImageData:
    """The images of `samples`, (path, class) by split; only those of `splits` are decoded, or none if streamed."""
    label = {wnid: i for i, wnid in enumerate(classes)}
    unknown = sorted({wnid for split in samples.values() for _, wnid in split} - set(classes))
    if unknown:
        raise ValueError(f"{folder}: classes that wnids.txt does not list: {', '.join(unknown[:5])}")
    listings = {split: _listing(folder, [path for path, _ in paths]) for split, paths in samples.items()}
    size, resize = image_size or _square_size(samples["test"][0][0]), image_size is not None
    contents = {
        split: _contents(folder, split, [path for path, _ in samples[split]], listings[split]) for split in samples
    }
    fingerprint = _digest([(split, contents[split], [wnid for _, wnid in samples[split]]) for split in sorted(samples)])
    parts: dict[str, Split | None] = {"train": None, "test": None}
    if stream is None:
        stream = sum(len(samples[split]) for split in splits) * 3 * size**2 > min(MEMORY, _machine_memory() / 2)
    for split in splits:
        paths = [path for path, _ in samples[split]]
        if stream:
            images = ImageFiles(paths, size, resize)
        else:
            images = _cached_images(folder, split, paths, contents[split], size, resize)
        parts[split] = Split(images, torch.tensor([label[wnid] for _, wnid in samples[split]]))
    mean, std = IMAGENET_STATISTICS
    return ImageData(
        name=folder.resolve().name,
        classes=classes,
        train=parts["train"],
        test=parts["test"],
        mean=mean,
        std=std,
        flip=True,
        policy="imagenet",
        fingerprint=f"{fingerprint[:16]}-{size}",
    )


def _listing(folder: Path, paths: list[str]) -> list[tuple[str, int, int, int]]:
    """(path within `folder`, bytes, mtime in ns, ctime in ns) of each file. A program can set mtime, but not ctime.

    Raises ValueError for a file that is not there.
    """
    rows = []
    for path in paths:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None
        within = os.path.relpath(path, folder).replace(os.sep, "/")
        rows.append((within, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return rows


def _contents(folder: Path, split: str, paths: list[str], listing: list[tuple[str, int, int, int]]) -> str:
    """The digest of one split's paths and files, kept beside them: while the listing is the same, none is read again.

    Raises ValueError for a file that cannot be read.
    """
    place = folder / ".r2kd-cache" / f"{split}-{_digest(listing)[:16]}.sha256"
    with suppress(OSError):
        kept = place.read_bytes()
        if re.fullmatch(rb"[0-9a-f]{64}", kept):  # a machine that stops may leave something else behind
            return kept.decode()
    found = _digest([(row[0], file) for row, file in zip(listing, _hash_files(paths), strict=True)])
    _keep(place, split, "digests", lambda file: file.write(found.encode()))
    return found


def _cached_images(folder: Path, split: str, paths: list[str], contents: str, size: int, resize: bool) -> Tensor:
    """The images of one split, from the cache beside them if it is of exactly these files, else decoded and cached."""
    place = folder / ".r2kd-cache" / f"{split}-{_digest((contents, size, resize))[:16]}.npy"
    if place.exists():
        return torch.from_numpy(np.load(place))
    images = _decode_images(paths, size, resize)
    _keep(place, split, "decoded images", lambda file: np.save(file, images.numpy()))
    return images


def _keep(place: Path, split: str, what: str, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file of the cache, whole or not at all, in place of the split's old one."""
    unfinished = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    try:
        place.parent.mkdir(exist_ok=True)
        for old in place.parent.glob(f"{split}-*{place.suffix}*"):
            old.unlink()
        with open(unfinished, "wb") as file:
            write(file)
        unfinished.replace(place)
    except OSError as error:  # a read-only folder or a full disk costs time at the next start, nothing else
        with suppress(OSError):  # what cannot be written to may not let go of a file either
            unfinished.unlink()
        print(f"the {what} are not kept for the next start: {error}", file=sys.stderr)


def _digest(value: Any) -> str:
    """64 hexadecimal digits, of what `value` is written as."""
    return hashlib.sha256(ascii(value).encode()).hexdigest()


def _machine_memory() -> float:
    """Bytes; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _square_size(path: str) -> int:
    """The side, in pixels, of the image at `path`. Raises ValueError where it is not square."""
    width, height = open_image(path).size
    if width != height:
        raise ValueError(f"{path} is {width} x {height} pixels, not square: give an image size")
    return width


def _decode_images(paths: list[str], size: int, resize: bool) -> Tensor:
    """(N, 3, S, S) uint8. Raises as `decode` does."""
    images = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)

    def fill(i: int) -> None:
        images[i] = decode(paths[i], size, resize)

    _in_threads(fill, range(len(paths)), "decoding")
    return images


def _hash_files(paths: list[str]) -> list[str]:
    """The SHA-256 of each file. Raises ValueError for one that cannot be read."""

    def sha256(path: str) -> str:
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None

    return _in_threads(sha256, paths, "hashing")


def _in_threads(work: Callable, items: Sequence, what: str) -> list:
    """`work` of each item, in their order, under a progress bar. Raises what `work` does."""
    with ThreadPoolExecutor() as pool:
        # by the thousand: a future takes 2 KB, and ImageNet has a million images
        results = chain.from_iterable(pool.map(work, items[i : i + 1000]) for i in range(0, len(items), 1000))
        try:
            return list(tqdm(results, total=len(items), desc=what, unit="img", leave=False, delay=1))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
