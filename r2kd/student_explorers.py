"""Explorers of students: two arms against each other over training, where two students err, and one that is trained meanwhile."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache

import ipywidgets
import numpy as np
import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from . import drawings, evaluation, experiments, stats, training
from .augmentation import AUGMENTATIONS
from .config import DistillConfig
from .data import ImageData
from .experiments import Student, Study, in_minutes
from .explorers import LOOK, Explorer, photograph
from .methods import METHODS

SHOWN = 6  # classes that have bars
FEW = 12  # classes of a confusion matrix that is printed in numbers
ALONE = ("the first alone is right", "the second alone is right", "both are wrong")


def compare(students: Sequence[Student]) -> Explorer:
    """Two arms over training, each seed a thin line, and their difference paired by seed at the last epoch that both have.

    A metric is a column of the runs' metrics; of a record it is test_top1 alone. Smoothing: the mean over so many epochs.
    """
    arms = list(dict.fromkeys(student.arm for student in students))
    curves = pd.concat([s.run.metrics.assign(arm=s.arm, seed=s.config.seed) for s in students], ignore_index=True)
    metrics = [name for name in curves.columns.drop(["arm", "seed", "epoch"]) if curves[name].notna().any()]
    with rc_context(LOOK):
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 1))

    def show(arm: str, other: str, metric: str, smoothing: int) -> Figure:
        left.clear()
        right.clear()
        found = {name: _by_epoch(curves, name, metric, smoothing) for name in (arm, other)}
        for (name, table), colour, line in zip(found.items(), drawings.COLOURS, drawings.LINES, strict=False):
            left.plot(table, color=colour, linewidth=0.6, alpha=0.6)
            left.plot(table.mean(axis=1), line, color=colour, linewidth=2, label=f"{name} (n = {table.shape[1]})")
        left.set(xlabel="epoch", ylabel=metric.replace("_", " "))
        left.legend(title="the mean, and each seed")
        difference = (found[arm] - found[other]).dropna(axis=1, how="all").dropna()
        _paired(right, difference.iloc[-1] if len(difference) else pd.Series(dtype=float), metric)
        return figure

    return Explorer(
        "compare",
        show,
        arm=ipywidgets.Dropdown(options=arms, value=arms[-1]),
        other=ipywidgets.Dropdown(options=arms, value=arms[0], description="minus"),
        metric=ipywidgets.Dropdown(options=metrics, value="test_top1"),
        smoothing=ipywidgets.IntSlider(value=1, min=1, max=10, disabled=curves["epoch"].nunique() < 2),
    )


def live(study: Study, students: Sequence[Student], epochs: int = 20) -> Explorer:
    """A student of one's own choice, trained while one looks on: a point an epoch, beside the mean curves of `students`.

    Stopped, it goes on at its next epoch; what was trained before is drawn at once. Where the profile is not one of minutes, its
    networks and images are those of quick, as experiments.in_minutes has it, and `students` of other images are not drawn.
    """
    minutes = in_minutes(study, seeds=1).first.data
    with rc_context(LOOK):
        figure = Figure(figsize=(8, 3.8), layout="constrained")
        axes = figure.subplots()
    curves = [s.run.metrics[["epoch", "test_top1"]].assign(arm=s.arm) for s in students if s.config.data == minutes]
    nothing = pd.DataFrame({"epoch": [], "test_top1": [], "arm": []})
    rows = pd.concat(curves, ignore_index=True) if curves else nothing
    known = rows.pivot_table(index="epoch", columns="arm", values="test_top1", sort=False)
    wanted: dict[str, bool] = {}  # by address, whether its training is to go on
    opened = cache(training.open_data)

    def config_of(method: str, view: str, fidelity: str, temperature: float, pruned: int, seed: int) -> DistillConfig:
        settings = {"temperature": temperature} if "temperature" in METHODS[method].options else {}
        settings |= {"pruning_rate": pruned / 100} if "teacher" in METHODS[method].asks else {}
        arm = {"method": method, "view": view, "fidelity": fidelity, **settings}
        scale = {"epochs": epochs, "tested_from": 0.0, "corruptions": "none", "attacks": "none"}
        return replace(in_minutes(study, arms={"mine": arm}, seeds=1, **scale).arms["mine"], seed=seed)

    def train(config: DistillConfig, address: str) -> None:
        def look() -> None:
            explorer.refresh()
            if not wanted[address]:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            training.distill(config, opened(config), progress=False, after_epoch=look)
        wanted[address] = False

    def show(train_it: bool, **chosen) -> Figure:
        config = config_of(**chosen)
        run = config.run(opened(config))
        for address in wanted:
            wanted[address] &= train_it and address == run.address
        if train_it and not run.finished and not wanted.get(run.address):
            wanted[run.address] = True
            threading.Thread(target=train, args=(config, run.address), daemon=True).start()
        axes.clear()
        for arm, line in zip(known, drawings.LINES[1:], strict=False):
            axes.plot(known[arm], color="0.5", linestyle=line, label=arm, marker="o" if len(known) == 1 else None)
        if run.epochs:
            points = run.metrics
            axes.plot(points["epoch"], points["test_top1"], "o-", color=drawings.COLOURS[1], label="this student")
            state = f"epoch {len(points)} of {epochs}, {points['test_top1'].iloc[-1]:.1f} %"
        else:
            state = "not trained yet"
        what = "{method} {view}, {fidelity}, T = {temperature:g}, {pruned} % pruned, seed {seed}".format(**chosen)
        axes.set_title(f"{what}: {state}", fontsize=10)
        axes.set(xlabel="epoch", ylabel="test accuracy (%)", xlim=(0, epochs + 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend(loc="lower right")
        return figure

    explorer = Explorer(
        "live",
        show,
        train_it=ipywidgets.ToggleButton(value=False, description="train; again: stop"),
        method=ipywidgets.Dropdown(options=[(entry.label, name) for name, entry in METHODS.items()], value="r2kd"),
        view=ipywidgets.Dropdown(options=list(AUGMENTATIONS), value="cutout"),
        fidelity=ipywidgets.Dropdown(options=["released", "intended"]),
        temperature=ipywidgets.FloatSlider(value=4, min=1, max=8, step=0.5, continuous_update=False),
        pruned=ipywidgets.IntSlider(
            value=10, min=0, max=90, step=10, continuous_update=False, description="pruned (%)"
        ),
        seed=ipywidgets.IntSlider(value=0, min=0, max=9, continuous_update=False),
    )
    return explorer


def _by_epoch(curves: pd.DataFrame, arm: str, metric: str, smoothing: int) -> pd.DataFrame:
    """A column a seed, indexed by epoch."""
    table = curves[curves["arm"] == arm].pivot(index="epoch", columns="seed", values=metric).dropna(how="all")
    return table.rolling(smoothing, min_periods=1).mean()


def _paired(axes: Axes, difference: pd.Series, metric: str) -> None:
    """Each seed's difference, their mean and its interval."""
    axes.axhline(0, color="0.3", linewidth=1)
    axes.plot([0.2] * len(difference), difference, "o", color="0.35", markersize=4)
    found = stats.mean_interval(difference.to_frame("d").assign(arm="both"), ["arm"], "d")
    for row in found.itertuples():
        half_width = 0 if np.isnan(row.half_width) else row.half_width
        axes.errorbar(0, row.mean, yerr=half_width, fmt="s", color=drawings.COLOURS[0], capsize=4, markersize=8)
        axes.set_title(
            f"{row.mean:+.2f} ± {half_width:.2f} (n = {row.n})" if half_width else f"{row.mean:+.2f} (n = {row.n})"
        )
    axes.set(
        xlim=(-0.5, 0.7),
        xticks=[],
        ylabel=f"difference in {metric.replace('_', ' ')}",
        xlabel="paired by seed, 95 % interval",
    )


def errors(study: Study, images: ImageData, students: Sequence[Student]) -> Explorer | str:
    """Two students on the test images: what they take for what, the images that only one gets right, and what is said of one of them.

    Students of which there is a record alone have no weights to ask, and where fewer than two have, it is said in words.
    """
    here = {f"{s.arm}, seed {s.config.seed}": s for s in students if s.run.source == "run"}
    if len(here) < 2:
        return "The weights of fewer than two students are here: there is nobody to ask."
    names, labels = list(here), images.test.labels.cpu()

    @cache
    def logits(name: str | None) -> Tensor:
        """(N, C): what a student, or the teacher, answers to all test images."""
        if name is None:
            model = experiments.run_teacher(study, images)
        else:
            model = training.load_model(here[name].config, here[name].run, images.num_classes)
        return evaluation.predict(model.to(images.test.labels.device), images.test, images).float().cpu()

    with rc_context(LOOK):
        figure = Figure(figsize=(12, 4.6), layout="constrained")
        left, middle, right = figure.subfigures(1, 3, width_ratios=(1.15, 1, 1.1))
        matrix, bars = _confusion_axes(left.subplots(), images), right.subplots()
        blank = np.full_like(photograph(images.test, 0), 255)
        pictures, frame = _album(middle.subplots(), blank)
        compared: list[str] = []  # of the matrix

    def show(student: str, other: str, images_of: str, image: int, temperature: float) -> Figure:
        answers = {student: logits(student), other: logits(other)}
        first, second = answers[student].argmax(1), answers[other].argmax(1)
        mine, theirs = first == labels, second == labels
        chosen = {ALONE[0]: mine & ~theirs, ALONE[1]: theirs & ~mine, ALONE[2]: ~mine & ~theirs}[images_of]
        chosen = chosen.nonzero().flatten()
        few = chosen[torch.linspace(0, len(chosen) - 1, min(len(pictures), len(chosen))).long()].tolist()
        if compared != [student, other]:
            compared[:] = [student, other]
            _confusion(matrix, first, second, labels, images.num_classes)
        middle.suptitle(f"{images_of}: {len(chosen):,} of {len(labels):,}", fontsize=10)
        for i, (picture, name) in enumerate(pictures):
            picture.set_data(photograph(images.test, few[i]) if i < len(few) else blank)
            name.set_text(images.classes[int(labels[few[i]])] if i < len(few) else "")
        frame.set(visible=len(few) > 0, xy=pictures[image % len(few) if few else 0][0].get_extent()[::2])
        bars.clear()
        if few:
            index = few[image % len(few)]
            said = {name: values[index] for name, values in answers.items()}
            said["teacher"] = logits(None)[index]
            _answers(bars, said, temperature, int(labels[index]), images)
        return figure

    return Explorer(
        "errors",
        show,
        student=ipywidgets.Dropdown(options=names, value=names[0]),
        other=ipywidgets.Dropdown(options=names, value=names[-1]),
        images_of=ipywidgets.Dropdown(options=ALONE, description="images"),
        image=ipywidgets.IntSlider(value=0, min=0, max=11),
        temperature=ipywidgets.FloatSlider(value=1, min=1, max=8, step=0.5),
    )


def _album(axes: Axes, blank: np.ndarray) -> tuple[list[tuple[AxesImage, Text]], Rectangle]:
    """(twelve pictures with a word above each, the frame of one): in one panel, as twelve are slow."""
    places = [(1.1 * column, -1.25 * row) for row in range(4) for column in range(3)]
    found = [
        (axes.imshow(blank, extent=(x, x + 1, y, y + 1)), axes.text(x + 0.5, y + 1.03, "", ha="center", fontsize=7))
        for x, y in places
    ]
    axes.set(xlim=(-0.05, 3.25), ylim=(-3.8, 1.25))
    axes.set_axis_off()
    return found, axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, linewidth=3))


def _confusion_axes(axes: Axes, images: ImageData) -> AxesImage:
    count = images.num_classes
    artist = axes.imshow(np.zeros((count, count)), cmap="RdBu_r")
    axes.grid(False)
    axes.set(xlabel="answer", ylabel="class", title="answers of the first minus the second\n ")
    if count <= FEW:
        axes.set_xticks(range(count), images.classes, fontsize=7, rotation=45)
        axes.set_yticks(range(count), images.classes, fontsize=7)
    return artist


def _confusion(artist: AxesImage, first: Tensor, second: Tensor, labels: Tensor, count: int) -> None:
    """(class, answer): how many images more the first student answers so than the second; of few classes in numbers, from 2 on."""
    counts = [torch.bincount(labels * count + said, minlength=count**2) for said in (first, second)]
    difference = (counts[0] - counts[1]).view(count, count).numpy()
    limit = max(1, np.abs(difference).max())
    artist.set_data(difference)
    artist.set_clim(-1.6 * limit, 1.6 * limit)  # so that numbers can be read on them
    artist.axes.set_title(f"answers of the first minus the second\n(at most {limit} images a cell)", fontsize=10)
    for text in list(artist.axes.texts):
        text.remove()
    for row, column in np.argwhere(np.abs(difference) > 1) if count <= FEW else ():
        artist.axes.text(column, row, f"{difference[row, column]:+d}", ha="center", va="center", fontsize=7)


def _answers(axes: Axes, said: dict[str, Tensor], temperature: float, label: int, images: ImageData) -> None:
    """The probabilities that each gives to the classes that any of them finds likely; the label is marked."""
    p = {name: (logits / temperature).softmax(0) for name, logits in said.items()}
    likely = torch.stack([*p.values()]).amax(0)
    likely[label] += 1  # it is always shown
    order = likely.topk(min(SHOWN, images.num_classes)).indices
    rows = np.arange(len(order))[::-1]
    looks = zip(p.items(), drawings.COLOURS, ("", "///", "..."), strict=False)
    for i, ((name, values), colour, hatch) in enumerate(looks):
        places = rows + 0.26 * (1 - i)
        axes.barh(places, values[order], height=0.26, color=colour, hatch=hatch, edgecolor="0.2", label=name)
    names = [f"{images.classes[i]} (label)" if i == label else images.classes[i] for i in order.tolist()]
    axes.set_yticks(rows, names)
    axes.set(xlabel=f"probability at T = {temperature:g}", xlim=(0, 1), title="the framed image")
    axes.legend(fontsize=7)
