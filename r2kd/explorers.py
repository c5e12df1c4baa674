"""Explorers: a figure under controls in a live JupyterLab, and a plain function of the controls' values anywhere.

The picture is an output of its own, not a widget: the last one stays in the saved notebook, in its HTML, and for a reader
without a kernel. It is drawn between cells and of the controls' newest values: keys that come faster than pictures leave no queue, and
nothing that is drawn meets the random numbers of a training that a cell is at.
"""

import io
import os
import threading
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import Image, display
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from . import drawings, evaluation, experiments, files, randomness, training
from .augmentation import AUGMENTATIONS
from .corruptions import CORRUPTIONS, SEVERITIES, corrupt, missing
from .data import ImageData, Split
from .experiments import Student, Study
from .frozen import frozen
from .pruning import BATCHNORM_MODES
from .widgets import SHOWN, few, gallery, pixels, view_of

SHOWN_CLASSES, SHOWN_IMAGES = 10, 200
# fast: half the pixels, and no room is sought for titles
LOOK = drawings.STYLE | {"figure.dpi": 100, "axes.titley": 1.0}
WITHOUT_KERNEL = "Run this cell in JupyterLab to move its controls."  # also in the notebooks' metadata, by a panel's id


class Explorer:
    """A figure that its controls change: explorer(**values) -> Figure, of the controls' own values where none is given.

    `name`: of the explorer, one in a notebook. `draw`: the values by name -> a Figure, best a kept one with its artists updated;
    it is laid out once. As a cell's last line it shows itself: in JupyterLab under its controls, where an error of `draw` is a line
    below them; the first picture alone where `run_all.py` executes the notebook and nobody moves a slider.
    """

    def __init__(self, name: str, draw: Callable[..., Figure], /, **controls: ipywidgets.ValueWidget) -> None:
        self.name, self.draw, self.controls = name, draw, controls
        self.said = ipywidgets.Label(layout={"display": "none"})
        self._waiting = False  # for the thread of the cells
        self._drawing = threading.Lock()  # without a kernel, whoever asks draws

    def __call__(self, **values) -> Figure:
        with rc_context(LOOK):
            return self.draw(**{name: control.value for name, control in self.controls.items()} | values)

    def png(self) -> bytes:
        """The picture of the controls' values."""
        with self._drawing:
            return png(self())

    def _ipython_display_(self) -> None:
        first = Image(self.png())
        if os.environ.get("R2KD_PROGRESS") == "text":
            display(first)
            return
        display(self._panel()._repr_mimebundle_() | {"text/plain": WITHOUT_KERNEL}, raw=True)
        self._picture = display(first, display_id=True)
        for control in self.controls.values():
            control.observe(lambda _: self.refresh(), "value")

    def _panel(self) -> ipywidgets.Box:
        """The controls, with labels that can be read, as many in a row as there is room for; the last panel of the name is gone."""
        if self.name in _PANELS:
            _PANELS.pop(self.name).close()
        for name, control in self.controls.items():
            control.description = control.description or name.replace("_", " ")
            control.style.description_width, control.layout.width = "9em", "26em"
        row = ipywidgets.Box([*self.controls.values()], layout=ipywidgets.Layout(flex_flow="row wrap"))
        _PANELS[self.name] = ipywidgets.VBox([row, self.said], model_id=f"r2kd-{self.name}")
        return _PANELS[self.name]

    def refresh(self) -> None:
        """Draw the newest of the controls' values, between two cells."""
        if not self._waiting:
            self._waiting = True
            _between_cells(self._update)

    def _update(self) -> None:
        self._waiting = False  # first: a value that comes now is drawn next
        self.said.value = ""
        try:
            self._picture.update(Image(self.png()))
        except Exception as error:  # whatever it is, it is said where the reader looks
            self.said.value = f"{type(error).__name__}: {files.first_line(error)}"
        self.said.layout.display = None if self.said.value else "none"


_PANELS: dict[str, ipywidgets.Widget] = {}


def _between_cells(call: Callable[[], None]) -> None:
    """On the kernel's own thread, when no cell is running: JupyterLab's controls speak to another thread. At once without a kernel."""
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        call()
    else:
        kernel.io_loop.add_callback(call)


def png(figure: Figure) -> bytes:
    """Rendered fast. The first time lays the figure out, which takes longer than to draw it; it stays so."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, pil_kwargs={"compress_level": 1})  # savefig draws twice
    figure.set_layout_engine("none")
    return content.getvalue()


def augmentation(images: ImageData, teacher: nn.Module) -> Explorer:
    """Eight training images and their augmented view, of one draw for the batch; a menu chooses the view, a slider the draw."""
    shown = few(images)
    clean, labels = images.normalize(shown.images[:]), shown.labels
    figure = gallery([("clean", clean), ("view", clean)], images)
    panels = figure.axes[SHOWN:]

    def show(view: str, draw: int) -> Figure:
        for panel, image in zip(panels, view_of(view, clean, labels, images, teacher, draw), strict=False):
            panel.images[0].set_data(pixels(image, images))
        panels[0].set_title(AUGMENTATIONS[view].label, loc="left", fontsize=9)
        return figure

    return Explorer(
        "augmentation",
        show,
        view=ipywidgets.Dropdown(
            options=[(entry.label, name) for name, entry in AUGMENTATIONS.items()], value="cutmix"
        ),
        draw=ipywidgets.IntSlider(value=27, min=0, max=40),
    )


def pruning(
    images: ImageData,
    test: Split,
    answers: Mapping[tuple[int, str], Tensor],
    quality: pd.DataFrame,
    dense_weight: float,
    temperature: float,
) -> Explorer:
    """What the dense teacher, its pruned copy and their mixture say of an image: bars of the classes, surest first, and a marker on
    the curve of accuracy.

    `answers`: by rate in percent and BatchNorm's statistics, "running" or "batch", the logits (N, C) of the first N images of
    `test`; those of the dense teacher at (0, "running"). `quality`: rate, batchnorm, top1 in percent.
    """
    test = test.take(torch.arange(len(answers[0, "running"])))
    many, places = images.num_classes > SHOWN_CLASSES, np.arange(min(SHOWN_CLASSES, images.num_classes))
    with rc_context(LOOK):
        figure = Figure(figsize=(11, 3.2), layout="constrained")
        picture, bars, curve = figure.subplots(1, 3, width_ratios=(1, 3.4, 2))
        shown = picture.imshow(photograph(test, 0))
        picture.set_axis_off()
        looks = zip(("dense", "pruned", "mixed"), drawings.COLOURS, ("", "///", "..."), strict=False)
        heights = [
            bars.bar(places + 0.27 * i - 0.27, 0, width=0.27, label=label, color=colour, hatch=hatch, edgecolor="0.2")
            for i, (label, colour, hatch) in enumerate(looks)
        ]
        bars.set_xticks(places, [images.classes[i] for i in places], rotation=30)
        bars.grid(axis="x", visible=False)
        bars.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
        for (mode, rows), line in zip(quality.groupby("batchnorm"), drawings.LINES, strict=False):
            curve.plot(rows["rate"], rows["top1"], line, color="0.3", label=f"{mode} statistics")
        (marker,) = curve.plot(0, quality["top1"].max(), "o", color=drawings.COLOURS[1], markersize=9)
        curve.set(xlabel="weights pruned (%)", ylabel="test accuracy (%)")
        curve.legend()

    def show(image: int, pruned: int, statistics: str, dense_weight: float, temperature: float) -> Figure:
        dense, sparse = answers[0, "running"][image], answers[pruned, statistics][image]
        logits = torch.stack((dense, sparse, dense_weight * dense + (1 - dense_weight) * sparse)) / temperature
        p, entropies = logits.softmax(1), evaluation.entropy(logits).tolist()
        order = p.amax(0).topk(SHOWN_CLASSES).indices if many else torch.arange(images.num_classes)
        order = order[p[0, order].argsort(descending=True)] if many else order
        for of, values in zip(heights, p[:, order].tolist(), strict=True):
            for bar, value in zip(of, values, strict=True):
                bar.set_height(value)
        bars.set_xticks(places, [images.classes[i] for i in order.tolist()])
        bars.set(ylim=(0, 1.1 * float(p.max())), ylabel=f"probability at T = {temperature:g}")
        bars.set_title("entropy " + ", ".join(f"{value:.2f}" for value in entropies) + " nats", loc="left", fontsize=9)
        shown.set_data(photograph(test, image))
        picture.set_title(images.classes[int(test.labels[image])])
        at = quality[(quality["rate"] == pruned) & (quality["batchnorm"] == statistics)]
        marker.set_data(at["rate"], at["top1"])
        return figure

    return Explorer(
        "pruning",
        show,
        image=ipywidgets.IntSlider(value=0, min=0, max=len(answers[0, "running"]) - 1),
        pruned=ipywidgets.SelectionSlider(
            options=[(f"{rate} %", rate) for rate in sorted({rate for rate, _ in answers})], value=50
        ),
        statistics=ipywidgets.Dropdown(options=list(BATCHNORM_MODES), description="BatchNorm"),
        dense_weight=ipywidgets.FloatSlider(value=dense_weight, min=0, max=1, step=0.05),
        temperature=ipywidgets.FloatSlider(value=temperature, min=1, max=8, step=0.5),
    )


def answering(study: Study, images: ImageData, students: Sequence[Student]) -> dict[str, nn.Module]:
    """The teacher and, by their arms, the first seed's students of crowded figures: those of which there are weights here."""
    found, own = {}, study.teacher_images(images)
    if study.recorded:
        training.put_back(study.teacher, own)
    if not study.recorded or study.teacher.run(own).finished:
        found["teacher"] = experiments.run_teacher(study, images)
    for arm, config, run in students:
        if run.source == "run" and config.seed == study.seeds[0] and arm in (study.shown or study.arms):
            found[arm] = training.load_model(config, run, images.num_classes).to(images.test.labels.device)
    return found


def corruption(images: ImageData, networks: Mapping[str, nn.Module]) -> Explorer:
    """A test image under a corruption, or an augmented view of it and the next fifteen, and what each network answers, with which confidence.

    `networks`: by their labels, the teacher first, which is what a view asks. A right answer is a full bar, a wrong one a hatched one.
    The strength is a corruption's severity, of which 0 is clean; draws are of the views that have one for the batch or for each image.
    """
    split = images.test.take(torch.arange(min(SHOWN_IMAGES, len(images.test))))
    frozen_networks = {label: frozen(network) for label, network in networks.items()}
    teacher = next(iter(networks.values()))
    kinds = {f"corruption: {e.label}": ("corruption", name) for name, e in CORRUPTIONS.items() if not missing(name)}
    kinds |= {f"view: {e.label}": ("view", name) for name, e in AUGMENTATIONS.items() if e.drawn}
    places = np.arange(len(networks))[::-1]
    with rc_context(LOOK):
        figure = Figure(figsize=(10, 1.2 + max(1.4, 0.28 * len(networks))), layout="constrained")
        clean, shown, bars = figure.subplots(1, 3, width_ratios=(1, 1, 2))
        pictures = [panel.imshow(photograph(split, 0)) for panel in (clean, shown)]
        for panel in (clean, shown):
            panel.set_axis_off()
        drawn = bars.barh(places, 0, color=drawings.COLOURS[0], edgecolor="0.2")
        texts = [bars.text(0, place, "", va="center", fontsize=9) for place in places]
        bars.set(xlim=(0, 1.25), xlabel="confidence", xticks=np.linspace(0, 1, 6))
        bars.set_yticks(places, networks)
        bars.set_title("hatched: wrong", loc="left", fontsize=9)
        bars.grid(axis="y", visible=False)

    def show(kind: tuple[str, str], strength: int, image: int, draw: int, draws: str) -> Figure:
        what, name = kind
        if what == "view":
            of = torch.arange(image, image + 2 * SHOWN) % len(split)
            batch, labels = images.normalize(split.images[of]), split.labels[of]
            given = view_of(name, batch, labels, images, teacher, draw, draws=draws)[:1]
        else:
            one = split.images[image : image + 1]
            one = corrupt(one, name, strength, randomness.generator(draw, name, strength)) if strength else one
            given = images.normalize(one)
        with torch.inference_mode():
            p = torch.cat([network(given).softmax(1) for network in frozen_networks.values()]).cpu()
        truth = int(split.labels[image])
        for bar, text, confidence, answer in zip(drawn, texts, *p.max(1), strict=True):
            bar.set(
                width=float(confidence), hatch="" if answer == truth else "///", alpha=1 if answer == truth else 0.4
            )
            text.set(x=float(confidence) + 0.02, text=images.classes[answer])
        pictures[0].set_data(photograph(split, image))
        pictures[1].set_data(pixels(given[0], images))
        clean.set_title(images.classes[truth])
        shown.set_title(name.replace("_", " ") + (f", {strength}" if what == "corruption" else ""))
        return figure

    controls = {
        "kind": ipywidgets.Dropdown(options=kinds),
        "strength": ipywidgets.IntSlider(value=3, min=0, max=len(SEVERITIES)),
        "image": ipywidgets.IntSlider(min=0, max=len(split) - 1),
        "draw": ipywidgets.IntSlider(min=0, max=20),
        "draws": ipywidgets.Dropdown(options={"one for the batch": "batch", "one for each image": "sample"}),
    }

    def disable(change: dict | None = None) -> None:
        what, name = controls["kind"].value
        controls["strength"].disabled = what == "view"
        controls["draws"].disabled = what != "view" or "draws" not in AUGMENTATIONS[name].options

    controls["kind"].observe(disable, "value")
    disable()
    return Explorer("corruption", show, **controls)


def photograph(split: Split, index: int) -> np.ndarray:
    """(H, W, 3) uint8."""
    return split.images[index].permute(1, 2, 0).cpu().numpy()
