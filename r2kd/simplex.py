"""What a distillation loss sees: its value over the student's answers for three classes, and where its gradient leads."""

import warnings
from collections.abc import Callable
from functools import partial

import ipywidgets
import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from . import losses
from .explorers import LOOK, Explorer

HEIGHT = 3**0.5 / 2  # of a triangle whose side is 1
CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, HEIGHT]])  # (3, 2): where a class has probability 1
COLUMNS, ARROWS, LEVELS = 61, 8, 14  # of the raster, along a side, of the colours
LOSSES = {  # of one sample, over its classes
    "KL divergence\nof KD": losses.kd_loss,
    "value, cosine\nas released": losses.value_loss,
    "value, Pearson\nas intended": partial(losses.dist_loss, gamma=0),
    "rank, hard\nas released": losses.rank_loss,
    "rank, soft\nas intended": losses.soft_rank_loss,
}


def distances(loss: Callable[..., Tensor], student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(N,): the loss of each of N students' logits (N, C) alone, against one teacher's (C,)."""
    with warnings.catch_warnings(action="ignore"):  # vmap has no rule of its own for KL divergence, and says so
        return torch.vmap(lambda logits: loss(logits[None], teacher[None], temperature))(student)


def descent(loss: Callable[..., Tensor], student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(N, C): how the softened probabilities of each student begin to move where its logits (N, C) go down the gradient."""
    down = torch.func.grad(lambda logits: -distances(loss, logits, teacher, temperature).sum())(student)
    p = (student / temperature).softmax(dim=1)
    return p * (down - (p * down).sum(dim=1, keepdim=True)) / temperature


def explorer(temperature: float = 4.0) -> Explorer:
    """Five losses over the simplex of the student's softened probabilities: dark is near, arrows go down.

    The teacher has three logits, of which two can be moved and the third is 0. A batch of one sample.
    """
    raster, inside = _raster()
    points = _lattice()
    from_, extent = points @ CORNERS, (0, 1, 0, HEIGHT)
    with rc_context(LOOK):
        figure = Figure(figsize=(12, 3.2), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.1)
        panels = figure.subplots(1, len(LOSSES))
        for panel in panels:
            panel.set(xlim=(-0.08, 1.08), ylim=(-0.12, 1), aspect="equal")
            panel.set_axis_off()
            panel.plot(*CORNERS[[0, 1, 2, 0]].T, color="0.2", linewidth=1)
            panel.plot(*CORNERS.mean(dim=0), "+", color="white", markersize=8)
            for name, (x, y) in zip("ABC", CORNERS.tolist(), strict=True):
                panel.text(
                    x, y + (0.03 if name == "C" else -0.03), name, ha="center", va="bottom" if name == "C" else "top"
                )
        look = {
            "cmap": colormaps["cividis"].resampled(LEVELS),
            "norm": PowerNorm(0.5, 0, 1),
            "extent": extent,
            "origin": "lower",
        }
        maps = [panel.imshow(np.zeros(inside.shape), **look) for panel in panels]
        arrows = [
            panel.quiver(
                *from_.T,
                *from_.T,
                pivot="middle",
                scale=9,
                width=0.012,
                headwidth=3.5,
                color="white",
                edgecolor="k",
                linewidth=0.4,
            )
            for panel in panels
        ]
        own = [panel.plot([], [], "o", color="white", markeredgecolor="k", markersize=5)[0] for panel in panels]
        softened = [panel.plot([], [], "*", color="white", markeredgecolor="k", markersize=13)[0] for panel in panels]
        said = "dark: near, bright: the largest value    ☆ the teacher at T    ○ at T = 1    + all classes alike"
        figure.supxlabel(said, fontsize=9)  # a colour bar and a legend are slow

    def show(logit_of_A: float, logit_of_B: float, temperature: float) -> Figure:
        teacher = torch.tensor([logit_of_A, logit_of_B, 0.0])
        for place, (name, loss) in enumerate(LOSSES.items()):
            found = distances(loss, temperature * raster.log(), teacher, temperature)
            values = np.full(inside.shape, np.nan)
            values[inside] = found / found.max()
            maps[place].set_data(values)
            panels[place].set_title(f"{name}, up to {float(found.max()):.3g}")
            moved = descent(loss, temperature * points.log(), teacher, temperature) @ CORNERS
            arrows[place].set_UVC(*_directions(moved).T)
        for marks, t in ((own, 1.0), (softened, temperature)):
            (x, y) = (teacher / t).softmax(0) @ CORNERS
            for mark in marks:
                mark.set_data([x], [y])
        return figure

    logits = {"min": -4, "max": 8, "step": 0.25}
    return Explorer(
        "losses",
        show,
        logit_of_A=ipywidgets.FloatSlider(value=5, **logits),
        logit_of_B=ipywidgets.FloatSlider(value=3, **logits),
        temperature=ipywidgets.FloatSlider(value=temperature, min=1, max=8, step=0.5),
    )


def _raster() -> tuple[Tensor, np.ndarray]:
    """((N, 3) probabilities of the pixels in the triangle, which of the (rows, columns) these are)."""
    rows = round(COLUMNS * HEIGHT)
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(COLUMNS) + 0.5) / COLUMNS, indexing="ij")
    p = torch.stack((1 - x - y / 2, x - y / 2, y), dim=2)
    inside = (p > 0).all(dim=2)
    return p[inside], inside.numpy()


def _lattice() -> Tensor:
    """(N, 3) probabilities, evenly in the triangle, none on its edge and none at its centre."""
    steps = [(a, b, ARROWS - a - b) for a in range(1, ARROWS) for b in range(1, ARROWS - a)]
    return torch.tensor(steps) / ARROWS


def _directions(moved: Tensor) -> Tensor:
    """(N, 2), of length 1, or 0 where nothing moves."""
    length = moved.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-6 * length.max().clamp(min=1e-6), moved / length.clamp(min=1e-12), 0)
