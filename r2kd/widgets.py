"""What the notebooks show of the images: figures that stay, and ipywidgets explorers for a live JupyterLab."""

import os
from collections.abc import Callable

import ipywidgets
import torch
from IPython.display import display
from matplotlib.figure import Figure
from torch import nn

from . import evaluation, pruning, robustness
from .augmentation import AUGMENTATIONS, augment
from .data import ImageData
from .randomness import generator

SHOWN = 8


def show_augmentations(images: ImageData, teacher: nn.Module, draw: int = 2, **switches: str) -> Figure:
    """Eight training images and each of their augmented views; `draw` seeds them, `switches` are draws and pick."""
    clean = images.normalize(images.train.images[: 2 * SHOWN])
    drawn = [entry for entry in AUGMENTATIONS.values() if entry.drawn]
    rows = [(entry.label, _view(entry.name, clean, images, teacher, draw, **switches)) for entry in drawn]
    return _gallery([("clean", clean), *rows], images)


def explore_augmentations(images: ImageData, teacher: nn.Module) -> ipywidgets.Widget | Figure:
    """Eight training images and their augmented view; a menu chooses the augmentation, a slider the draw."""

    def show(augmentation: str, draw: int) -> Figure:
        clean = images.normalize(images.train.images[: 2 * SHOWN])
        view = _view(augmentation, clean, images, teacher, draw)
        return _gallery([("clean", clean), (augmentation, view)], images)

    return _explorer(
        show,
        augmentation=ipywidgets.Dropdown(options=list(AUGMENTATIONS), value="cutmix"),
        draw=ipywidgets.IntSlider(value=2, min=0, max=20),
    )


def explore_pruning(images: ImageData, teacher: nn.Module) -> ipywidgets.Widget | Figure:
    """One test image and the probabilities that the dense and the pruned teacher give it; sliders choose image and rate."""

    def show(image: int, pruned: int, temperature: float) -> Figure:
        normalised = images.normalize(images.test.images[image : image + 1])
        other = pruning.prune_l1(teacher, pruned / 100)
        with torch.inference_mode():
            probabilities = [(model(normalised)[0] / temperature).softmax(0).cpu() for model in (teacher, other)]
        figure = Figure(figsize=(9, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 3))
        left.imshow(_pixels(normalised[0], images))
        left.set_axis_off()
        left.set_title(images.classes[int(images.test.labels[image])], fontsize=9)
        top = probabilities[0].topk(min(10, images.num_classes)).indices.sort().values
        for shift, (values, label, hatch) in enumerate(
            zip(probabilities, ("dense", f"pruned {pruned} %"), ("", "//"), strict=True)
        ):
            right.bar(
                torch.arange(len(top)) + 0.4 * shift - 0.2,
                values[top],
                width=0.4,
                label=label,
                hatch=hatch,
                edgecolor="0.2",
            )
        right.set_xticks(range(len(top)), [images.classes[i] for i in top.tolist()], rotation=30)
        right.set(ylabel=f"probability at T = {temperature:g}", ylim=(0, 1))
        entropies = [float(evaluation.entropy(values.log()[None])) for values in probabilities]
        right.set_title(f"entropy {entropies[0]:.2f} and {entropies[1]:.2f} nats", fontsize=9)
        right.legend()
        return figure

    return _explorer(
        show,
        image=ipywidgets.IntSlider(value=0, min=0, max=len(images.test) - 1, continuous_update=False),
        pruned=ipywidgets.IntSlider(value=50, min=0, max=90, step=10, continuous_update=False),
        temperature=ipywidgets.FloatSlider(value=4, min=1, max=8, step=1, continuous_update=False),
    )


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


def _explorer(show: Callable[..., Figure], **controls: ipywidgets.Widget) -> ipywidgets.Widget | Figure:
    """`show` under its controls; its first state as a plain figure where `run_all.py` executes the notebook.

    Nobody moves a slider there, and nbclient can wait for ever on a cell with an Output widget (jupyter/nbclient issue 312).
    """
    if os.environ.get("R2KD_PROGRESS") == "text":
        return show(**{name: control.value for name, control in controls.items()})
    return ipywidgets.interactive(lambda **values: display(show(**values)), **controls)


def _view(
    name: str, clean: torch.Tensor, images: ImageData, teacher: nn.Module, draw: int, **switches: str
) -> torch.Tensor:
    view = AUGMENTATIONS.choose(name)
    view = view.with_options(**{switch: value for switch, value in switches.items() if switch in view})
    context = {"mean": images.mean, "std": images.std, "policy": images.policy, "teacher": teacher}
    context |= {"target": images.train.labels[: len(clean)], "epoch": torch.tensor(1.0)}
    with torch.inference_mode():
        return augment(view, clean, generator(draw, name), **context)[0]


def _gallery(rows: list[tuple[str, torch.Tensor]], images: ImageData) -> Figure:
    """The first images of each batch, a titled row a batch."""
    figure = Figure(figsize=(SHOWN, 1.15 * len(rows)), layout="constrained")
    for panels, (title, batch) in zip(figure.subplots(len(rows), SHOWN), rows, strict=True):
        for panel, image in zip(panels, batch, strict=False):
            panel.imshow(_pixels(image, images))
            panel.set_axis_off()
        panels[0].set_title(title, loc="left", fontsize=9)
    return figure


def _pixels(image: torch.Tensor, images: ImageData):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (images.mean, images.std))
    return (image.cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
