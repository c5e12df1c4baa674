"""A data set by name or folder, decoded once into uint8 tensors or streamed; normalisation, crops and flips by the batch."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torchvision.datasets import CIFAR100

from . import ROOT, entries
from .downloads import find_or_download
from .entries import Registry
from .files import first_line
from .image_files import ImageFiles, open_image
from .image_folders import class_images, contents_of, decoded, digest, listing
from .randomness import generator

DATASETS = Registry("data set", gives=("root", "image_size", "splits", "stream"), facts={"recipe": {}, "corrupted": ""})
dataset = DATASETS.entry

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_SIZE = 248_100_043  # bytes
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
CIFAR100_SIZE = 169_001_437  # torchvision knows its address and its MD5
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

        def find(train: bool = split == "train") -> CIFAR100 | None:
            with suppress(RuntimeError):  # files that are not there, or have another MD5
                return CIFAR100(root, train)

        archive = find_or_download(
            find,
            root / CIFAR100.base_folder,
            root / CIFAR100.filename,
            CIFAR100.url,
            CIFAR100_SIZE,
            CIFAR100.tgz_md5,
            instead="a folder cifar100/ with train/<class>/ and test/<class>/",
        )
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
    """The folder of Tiny ImageNet under `root`; downloaded and unpacked when absent, whole or not at all.

    Raises FileNotFoundError where it cannot be had, or its folder is there without the lists of what is in it.
    """
    home = root / "tiny-imagenet-200"

    def find() -> Path | None:
        for folder in (home, root / "tiny_imagenet", root):
            if (folder / "wnids.txt").exists() or (folder / "val" / "val_annotations.txt").exists():
                return folder
        if home.exists():
            raise FileNotFoundError(
                f"{home} has neither wnids.txt nor val/val_annotations.txt: finish copying it, or move it away"
            )
        return None

    archive = root / "tiny-imagenet-200.zip"
    instead = f"its folder {home.name}/"
    return find_or_download(find, home, archive, TINY_IMAGENET_URL, TINY_IMAGENET_SIZE, TINY_IMAGENET_MD5, instead)


def _official(folder: Path, image_size: int | None, splits: tuple[str, ...], stream: bool | None) -> ImageData:
    """Tiny ImageNet's own layout: train/<wnid>/images/, and val/images/ with their classes in val_annotations.txt.

    All classes of wnids.txt, also where only some have training images. Raises as `load` does.
    """
    listed = _text(folder / "wnids.txt").split() if (folder / "wnids.txt").exists() else []
    samples: dict[str, list[tuple[str, str]]] = {}
    if (folder / "train").is_dir():
        train = class_images(folder / "train", {})
        samples["train"] = _pairs(train)
        listed = listed or list(train)
    elif "train" in splits:
        raise FileNotFoundError(f"{folder} has no folder train/")
    classes = sorted(listed)
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.exists():
        raise FileNotFoundError(f"{annotations} is missing: Tiny ImageNet's validation labels stand in it")
    lines = [line.split("\t") for line in _text(annotations).splitlines() if line.strip()]
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
    read: dict[str, str] = {}
    folders = {"test": class_images(held_out, read)}
    if (folder / "train").is_dir():
        folders["train"] = class_images(folder / "train", read)
        differing = set(folders["train"]) ^ set(folders["test"])
        if differing:
            shown = ", ".join(sorted(differing)[:5]) + (", ..." if len(differing) > 5 else "")
            raise ValueError(f"{folder}: {len(differing)} classes are not in both train/ and {held_out.name}/: {shown}")
    samples = {split: _pairs(images) for split, images in folders.items()}
    return _decode(folder, tuple(folders["test"]), samples, image_size, splits, stream)


def _pairs(images: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(path, class) of each image."""
    return [(path, name) for name, paths in images.items() for path in paths]


def _text(path: Path) -> str:
    """Raises ValueError where there is no text."""
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or first_line(error)}") from None


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
    listings = {split: listing(folder, [path for path, _ in paths]) for split, paths in samples.items()}
    size, resize = image_size or _square_size(samples["test"][0][0]), image_size is not None
    contents = {
        split: contents_of(folder, split, [path for path, _ in samples[split]], listings[split]) for split in samples
    }
    fingerprint = digest([(split, contents[split], [wnid for _, wnid in samples[split]]) for split in sorted(samples)])
    parts: dict[str, Split | None] = {"train": None, "test": None}
    if stream is None:
        stream = sum(len(samples[split]) for split in splits) * 3 * size**2 > min(MEMORY, _machine_memory() / 2)
    for split in splits:
        paths = [path for path, _ in samples[split]]
        if stream:
            images = ImageFiles(paths, size, resize)
        else:
            images = decoded(folder, split, paths, contents[split], size, resize)
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
