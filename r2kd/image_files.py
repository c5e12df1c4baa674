"""Image files as uint8 tensors: decoded one by one, or through the workers of a DataLoader."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from .acceleration import clear_frames
from .files import first_line

WORKERS = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)


def open_image(path: str | Path) -> Image.Image:
    """The image as RGB, of 16 bits the upper eight. Raises ValueError for a broken one, and for one of no known range."""
    try:
        with Image.open(path) as file:
            if file.mode.startswith("I;16"):  # Pillow would clip what is above 255
                return Image.fromarray((np.asarray(file) >> 8).astype(np.uint8)).convert("RGB")
            image = None if file.mode in ("I", "F") else file.convert("RGB")
    except Exception as error:  # of damaged files Pillow's readers raise all kinds
        raise ValueError(f"broken image {path}: {first_line(error)}") from None
    if image is None:
        raise ValueError(f"{path} has pixels of 32 bits, whose range is not known: save it with 8 or 16")
    return image


def decode(path: str | Path, size: int, resize: bool) -> Tensor:
    """(3, size, size) uint8: resized on the shorter side and cropped at the centre where it is of another size.

    Raises ValueError for a broken image or, unless they may be resized, one of another size.
    """
    image = open_image(path)
    if image.size != (size, size):
        if not resize:
            raise ValueError(
                f"{path} is {image.width} x {image.height} pixels, others {size} x {size}: give an image size"
            )
        image = v2.Compose([v2.Resize(size), v2.CenterCrop(size)])(image)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class ImageFiles(Dataset):
    """Images (N, 3, S, S) uint8 that stay in their files, for a data set that memory can't hold: indexed like a tensor.

    What is decoded goes to `device`. Raises, when asked for an image, as `decode` does.
    """

    def __init__(self, paths: Sequence[str], size: int, resize: bool, device: torch.device | str = "cpu") -> None:
        self.paths, self.size, self.resize, self.device = list(paths), size, resize, torch.device(device)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 3, self.size, self.size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        if isinstance(index, int):
            return decode(self.paths[index], self.size, self.resize)
        chosen = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        return torch.stack([self[int(i)] for i in chosen]).to(self.device)

    def to(self, device: torch.device | str) -> "ImageFiles":
        return ImageFiles(self.paths, self.size, self.resize, device)

    def take(self, chosen: Tensor) -> "ImageFiles":
        """The files of these indices, undecoded."""
        return ImageFiles([self.paths[i] for i in chosen.tolist()], self.size, self.resize, self.device)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """(B, 3, S, S) of each tensor of indices, decoded ahead by WORKERS processes.

        Raises ValueError for a broken image, OSError where a worker dies.
        """
        loader = DataLoader(
            self,
            batch_sampler=[index.tolist() for index in indices],
            num_workers=WORKERS,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else the workers' seed, which nobody uses, is drawn from the global one
        )
        try:
            for images in loader:
                yield images.to(self.device, non_blocking=True)
        except ValueError as error:  # with the worker's traceback above its one line
            clear_frames(error)  # they hold the workers: ended late, each takes 5 s
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            clear_frames(error)
            raise OSError(f"{str(error).splitlines()[0]} (out of memory?)") from None
