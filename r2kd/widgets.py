"""What the notebooks show of the images."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from . import robustness
from .augmentation import AUGMENTATIONS, augment
from .data import ImageData, Split
from .randomness import generator

SHOWN = 8


def few(images: ImageData) -> Split:
    """Some training images, of all classes: a set may have them class by class."""
    return images.train.subset(2 * SHOWN)


def show_augmentations(images: ImageData, teacher: nn.Module, draw: int = 27, **switches: str) -> Figure:
    """Eight training images and each of their augmented views; `draw` seeds them, `switches` are draws and pick."""
    shown = few(images)
    clean, labels = images.normalize(shown.images[:]), shown.labels
    drawn = [entry for entry in AUGMENTATIONS.values() if entry.drawn]
    rows = [(entry.label, view_of(entry.name, clean, labels, images, teacher, draw, **switches)) for entry in drawn]
    return gallery([("clean", clean), *rows], images)


def show_corruptions(images: ImageData, index: int = 0, severity: int = 3, columns: int = 5) -> Figure:
    """One test image, clean and under each corruption that can be made here."""
    one = images.test.take(torch.tensor([index]))
    shown = {"clean": one} | {
        entry.label: robustness.corrupted(one, name, severity)
        for name, entry in robustness.CORRUPTIONS.items()
        if not robustness.missing(name)
    }
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel in panels:
        panel.set_axis_off()
    for panel, (label, split) in zip(figure.axes, shown.items(), strict=False):
        panel.imshow(split.images[0].permute(1, 2, 0).cpu().numpy())
        panel.set_title(label, fontsize=9)
    figure.suptitle(f"severity {severity}")
    return figure


def view_of(
    name: str,
    clean: torch.Tensor,
    labels: torch.Tensor,
    images: ImageData,
    teacher: nn.Module,
    draw: int,
    **switches: str,
) -> torch.Tensor:
    """(B, 3, H, W): the view of a normalised batch; `draw` seeds it, `switches` are options, for the views that have them."""
    view = AUGMENTATIONS.choose(name)
    view = view.with_options(**{switch: value for switch, value in switches.items() if switch in view})
    context = {"mean": images.mean, "std": images.std, "policy": images.policy, "teacher": teacher}
    context |= {"target": labels, "epoch": torch.tensor(1.0)}
    with torch.inference_mode():
        return augment(view, clean, generator(draw, name), **context)[0]


def gallery(rows: list[tuple[str, torch.Tensor]], images: ImageData) -> Figure:
    """The first images of each batch, a titled row a batch."""
    figure = Figure(figsize=(SHOWN, 1.15 * len(rows)), layout="constrained")
    for panels, (title, batch) in zip(figure.subplots(len(rows), SHOWN), rows, strict=True):
        for panel, image in zip(panels, batch, strict=False):
            panel.imshow(pixels(image, images))
            panel.set_axis_off()
        panels[0].set_title(title, loc="left", fontsize=9)
    return figure


def pixels(image: torch.Tensor, images: ImageData) -> np.ndarray:
    """A normalised image (3, H, W) as matplotlib shows it: (H, W, 3), from 0 to 1."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (images.mean, images.std))
    return (image.cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
