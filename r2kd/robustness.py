"""A model under corruption: noise, blur and lost contrast of growing severity, on normalised images (B, 3, H, W).

One entry a corruption; its facts are the severities that are measured and the unit that they are in.
"""

import torch
from torch import Generator, Tensor, nn
from torchvision.transforms.v2 import functional

from . import evaluation
from .data import ImageData
from .entries import Choice, Registry
from .randomness import generator

CORRUPTIONS = Registry("corruption", gives=("images", "severity", "generator"), facts={"severities": (), "unit": ""})
corruption = CORRUPTIONS.entry


@corruption("noise", severities=(0.4, 0.8, 1.2), unit="standard deviation of the pixels")
def noise(images: Tensor, severity: float, generator: Generator) -> Tensor:
    """Gaussian noise; severity is its standard deviation, in standard deviations of the data set's pixels."""
    return images + severity * torch.randn(images.shape, generator=generator).to(images.device)


@corruption("blur", severities=(4, 7, 10), unit="% of the image's side")
def blur(images: Tensor, severity: float) -> Tensor:
    """Gaussian blur; severity is its standard deviation as a percentage of the image's side."""
    if severity == 0:
        return images
    sigma = severity / 100 * images.shape[-1]
    kernel = 2 * min(int(3 * sigma + 1), images.shape[-1] // 2 - 1) + 1
    blurred = functional.gaussian_blur(images, [kernel, 1], [sigma, sigma])  # one axis after the other: 12 times faster
    return functional.gaussian_blur(blurred, [1, kernel], [sigma, sigma])


@corruption("contrast", severities=(20, 40, 60), unit="% of contrast lost")
def contrast(images: Tensor, severity: float) -> Tensor:
    """Each image drawn towards its own mean; severity is the percentage of contrast that is lost."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (1 - severity / 100) * (images - mean)


def corrupted_logits(
    model: nn.Module, images: ImageData, corruption: str | Choice, severity: float, seed: int = 0
) -> Tensor:
    """Logits (N, C) for the corrupted test images, the same draws for every model.

    Raises ValueError for an unknown corruption.
    """
    chosen = CORRUPTIONS.choose(corruption)
    draws = generator(seed, chosen.name, str(severity))
    corrupt = lambda batch: chosen(images=batch, severity=severity, generator=draws)  # noqa: E731
    return evaluation.predict(model, images.test, images, corrupt)


def robustness_table(model: nn.Module, images: ImageData, clean_logits: Tensor, seed: int = 0) -> list[dict]:
    """A row for each corruption and severity: corruption, severity, its unit, top1 in percent.

    Severity 0 is the clean test images, whose logits (N, C) the caller has.
    """
    labels = images.test.labels
    rows = []
    for name, entry in CORRUPTIONS.items():
        answers = {0.0: clean_logits}
        answers |= {value: corrupted_logits(model, images, name, value, seed) for value in entry.severities}
        about = {"corruption": name, "unit": entry.unit}
        rows += [about | {"severity": value, "top1": evaluation.accuracy(a, labels)} for value, a in answers.items()]
    return rows
