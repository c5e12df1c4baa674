"""A model under corruption: noise, blur and lost contrast of growing severity, on normalised images (B, 3, H, W)."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torchvision.transforms.v2 import functional

from . import evaluation
from .data import ImageData
from .randomness import generator


def noise(images: Tensor, severity: float, generator: Generator) -> Tensor:
    """Gaussian noise; severity is its standard deviation, in standard deviations of the data set's pixels."""
    return images + severity * torch.randn(images.shape, generator=generator).to(images.device)


def blur(images: Tensor, severity: float, generator: Generator) -> Tensor:
    """Gaussian blur; severity is its standard deviation as a percentage of the image's side."""
    if severity == 0:
        return images
    sigma = severity / 100 * images.shape[-1]
    kernel = 2 * min(int(3 * sigma + 1), images.shape[-1] // 2 - 1) + 1
    blurred = functional.gaussian_blur(images, [kernel, 1], [sigma, sigma])  # one axis after the other: 12 times faster
    return functional.gaussian_blur(blurred, [1, kernel], [sigma, sigma])


def contrast(images: Tensor, severity: float, generator: Generator) -> Tensor:
    """Each image drawn towards its own mean; severity is the percentage of contrast that is lost."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (1 - severity / 100) * (images - mean)


Corruption = Callable[[Tensor, float, Generator], Tensor]
CORRUPTIONS: dict[str, Corruption] = {"noise": noise, "blur": blur, "contrast": contrast}
SEVERITIES = {"noise": (0.4, 0.8, 1.2), "blur": (4, 7, 10), "contrast": (20, 40, 60)}
UNITS = {"noise": "standard deviation of the pixels", "blur": "% of the image's side", "contrast": "% of contrast lost"}


def corrupted_logits(model: nn.Module, images: ImageData, corruption: str, severity: float, seed: int = 0) -> Tensor:
    """Logits (N, C) for the corrupted test images, the same draws for every model.

    Raises ValueError for an unknown corruption.
    """
    if corruption not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {corruption!r}; known: {', '.join(CORRUPTIONS)}")
    draws = generator(seed, corruption, str(severity))
    return evaluation.predict(model, images.test, images, lambda x: CORRUPTIONS[corruption](x, severity, draws))


def robustness_table(model: nn.Module, images: ImageData, clean_logits: Tensor, seed: int = 0) -> list[dict]:
    """A row for each corruption and severity: corruption, severity, its unit, top1 in percent.

    Severity 0 is the clean test images, whose logits (N, C) the caller has.
    """
    labels = images.test.labels
    rows = []
    for corruption, severities in SEVERITIES.items():
        answers = {0.0: clean_logits}
        answers |= {value: corrupted_logits(model, images, corruption, value, seed) for value in severities}
        about = {"corruption": corruption, "unit": UNITS[corruption]}
        rows += [about | {"severity": value, "top1": evaluation.accuracy(a, labels)} for value, a in answers.items()]
    return rows
