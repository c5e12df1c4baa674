"""Table in, matplotlib Figure out. A figure is saved as a PNG beside the CSV that it is drawn from, and from it alone.

The column `caption` holds, in its first row, what the numbers rest on. Lines and markers tell the series apart without
colour; error bars and bands are 95 % t-intervals of the mean over `n` seeds.
"""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = sns.color_palette("colorblind").as_hex()
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">"]
LINES = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1))]
METHODS = [("X", 7), ("s", 1), ("o", 0), ("^", 2), ("D", 4), ("v", 3), ("P", 5)]  # marker and colour, as they come
STYLE = sns.axes_style("whitegrid") | {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "figure.titlesize": 12,
    "savefig.dpi": 130,
    "legend.framealpha": 0.9,
}


def draw(name: str, table: pd.DataFrame) -> Figure:
    """The figure of this name from its table. Raises ValueError for an unknown name."""
    if name not in FIGURES:
        raise ValueError(f"unknown figure {name!r}; known: {', '.join(FIGURES)}")
    with rc_context(STYLE):
        return FIGURES[name](table)


def save(name: str, table: pd.DataFrame, folder: str | Path, caption: str) -> Figure:
    """Write <folder>/<name>.csv and draw <name>.png from it, in place of what was there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    captions = [caption] + [""] * (len(table) - 1)
    table.assign(caption=captions).to_csv(path, index=False, lineterminator="\n", float_format="%.6g")
    return redraw(path)


def redraw(path: str | Path) -> Figure:
    """Draw the PNG beside a CSV again. Raises FileNotFoundError, or ValueError for a CSV that is of no figure of ours."""
    path = Path(path)
    try:
        figure = draw(path.stem, pd.read_csv(path))
    except (KeyError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is not the table of this figure: {error}") from None
    with rc_context(STYLE):
        figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
    return figure


def redraw_all(root: str | Path) -> list[Path]:
    """Draw every figure under `root` again from its CSV; the paths of the PNGs."""
    paths = [path for path in sorted(Path(root).rglob("*.csv")) if path.stem in FIGURES]
    for path in paths:
        redraw(path)
    return [path.with_suffix(".png") for path in paths]


def _figure(
    table: pd.DataFrame, title: str, columns: int = 1, size: tuple[float, float] = (6.4, 4)
) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    figure.suptitle(title)
    figure.supxlabel(_wrap(table["caption"].iloc[0], int(size[0] * 14)), fontsize=8, color="0.3")
    return figure, axes


def _wrap(text: str, width: int) -> str:
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


def _lines(
    axes: Axes, table: pd.DataFrame, x: str, y: str, series: str, band: str | None = None, markers: bool = True
) -> None:
    """One line a series, told apart by colour, dash and marker; `band`: the column with the half width of its interval."""
    looks = zip(cycle(COLOURS), cycle(LINES), cycle(MARKERS), strict=False)
    for (name, rows), (colour, line, marker) in zip(table.groupby(series, sort=False), looks, strict=False):
        axes.plot(
            rows[x], rows[y], label=name, color=colour, linestyle=line, marker=marker if markers else None, markersize=5
        )
        if band is not None and rows[band].notna().any():
            axes.fill_between(
                rows[x], rows[y] - rows[band], rows[y] + rows[band], color=colour, alpha=0.15, linewidth=0
            )


def _dots(axes: Axes, table: pd.DataFrame, value: str, xlabel: str) -> None:
    """One row an arm, first on top: the mean and its interval; filled where the pruned teacher takes part."""
    rows = np.arange(len(table))[::-1]
    styles = dict(zip(dict.fromkeys(table["method"]), cycle(METHODS), strict=False))
    for row, (_, arm) in zip(rows, table.iterrows(), strict=True):
        marker, colour = styles[arm["method"]][0], COLOURS[styles[arm["method"]][1]]
        half_width = arm["half_width"] if pd.notna(arm["half_width"]) else 0
        axes.errorbar(
            arm[value],
            row,
            xerr=half_width,
            fmt=marker,
            color=colour,
            markerfacecolor=colour if arm["pruned"] else "white",
            capsize=3,
            markersize=7,
        )
    axes.set_yticks(rows, table["arm"])
    axes.set_xlabel(xlabel)


def _intervals(axes: Axes, names: list[str], means: pd.Series, half_widths: pd.Series, xlabel: str) -> None:
    """One row a name, first on top: a mean and its interval."""
    rows = np.arange(len(names))[::-1]
    errors = half_widths.fillna(0)
    axes.errorbar(means, rows, xerr=errors, fmt="o", color=COLOURS[0], capsize=3, markersize=7)
    axes.set_yticks(rows, names)
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def pruning_accuracy(table: pd.DataFrame) -> Figure:
    figure, (axes,) = _figure(table, "Pruning the teacher: accuracy")
    _lines(axes, table, "rate", "top1", "batchnorm")
    axes.set(xlabel="weights pruned from each layer (%)", ylabel="test accuracy (%)")
    axes.legend(title="BatchNorm of the pruned copy")
    return figure


def pruning_outputs(table: pd.DataFrame) -> Figure:
    figure, axes = _figure(table, "Pruning the teacher: its outputs", columns=3, size=(10, 3.9))
    labels = {
        "entropy": "mean entropy (nats)",
        "confidence": "mean confidence",
        "agreement": "agreement with the dense teacher (%)",
    }
    for panel, (column, label) in zip(axes, labels.items(), strict=True):
        _lines(panel, table, "rate", column, "batchnorm")
        panel.set(xlabel="weights pruned (%)", ylabel=label)
    axes[0].legend(title="BatchNorm")
    return figure


def pruning_layers(table: pd.DataFrame) -> Figure:
    size = (8, max(3.5, 0.17 * len(table) + 1.4))
    figure, axes = _figure(table, "What L1 pruning takes from each layer", columns=2, size=size)
    rows = np.arange(len(table))[::-1]
    axes[0].barh(rows, table["weights"], color="white", edgecolor="0.3", label="kept")
    axes[0].barh(rows, table["zeros"], color=COLOURS[0], edgecolor="0.3", label="pruned")
    axes[0].set_yticks(rows, table["layer"], fontsize=7)
    axes[0].set_xlabel("weights")
    axes[0].legend()
    axes[1].barh(rows, table["threshold"], color=COLOURS[2], edgecolor="0.3")
    axes[1].set_yticks(rows, [""] * len(rows))
    axes[1].set_xlabel("smallest |weight| that is left")
    return figure


def teacher_mixture(table: pd.DataFrame) -> Figure:
    figure, axes = _figure(
        table, "What the student is shown: dense, pruned and mixed teacher", columns=2, size=(9.5, 4.3)
    )
    labels = {"entropy": "mean entropy (nats)", "top1": "label of the (first) image named (%)"}
    views = list(dict.fromkeys(table["view"]))
    for panel, (column, label) in zip(axes, labels.items(), strict=True):
        for i, (name, rows) in enumerate(table.groupby("teacher", sort=False)):
            places = [views.index(view) + 0.2 * (i - 1) for view in rows["view"]]
            panel.plot(
                places, rows[column], linestyle="", marker=MARKERS[i], color=COLOURS[i], label=name, markersize=7
            )
        panel.set_xticks(range(len(views)), views, rotation=25)
        panel.set_ylabel(label)
    axes[0].legend(title="teacher")
    return figure


def distances(table: pd.DataFrame) -> Figure:
    panels = list(table.groupby("perturbation", sort=False))
    figure, axes = _figure(
        table, "KL divergence and correlation distance, on the teacher's own outputs", len(panels), (10, 4)
    )
    for panel, (name, rows) in zip(axes, panels, strict=True):
        _lines(panel, rows, "amount", "relative", "distance")
        panel.set(xlabel=name, ylabel="distance, as a share of its largest")
    axes[0].legend()
    return figure


def training_curves(table: pd.DataFrame) -> Figure:
    figure, (axes,) = _figure(table, f"Test accuracy over training ({_seeds(table)})", size=(7, 4.6))
    _lines(axes, table, "epoch", "mean", "arm", band="half_width", markers=False)
    axes.set(xlabel="epoch", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low = table.loc[table["epoch"] > table["epoch"].max() / 4, "mean"].min()
    axes.set_ylim(max(0, low - 5), min(100, table["mean"].max() + 3))
    axes.legend()
    return figure


def students(table: pd.DataFrame) -> Figure:
    figure, (axes,) = _figure(table, f"Students, last epoch ({_seeds(table)})", size=(7, 0.26 * len(table) + 1.8))
    _dots(axes, table, "mean", "test accuracy of the last epoch (%); bars: 95 % interval over seeds")
    teacher = table["teacher_top1"].iloc[0]
    axes.axvline(teacher, color="0.3", linestyle="--")
    axes.annotate(f"teacher {teacher:.1f}", (teacher, len(table) - 0.4), ha="center", fontsize=8, annotation_clip=False)
    return figure


def pruning_gain(table: pd.DataFrame) -> Figure:
    methods = list(dict.fromkeys(table["method"]))
    title = f"{' and '.join(methods)}: what the pruned teacher adds ({_seeds(table)}, paired)"
    names = table["augmentation"] if table["augmentation"].is_unique else table["arm"].str.replace(", pruned", "")
    figure, (axes,) = _figure(table, title, size=(7, 3.6))
    places = np.arange(len(table))
    axes.errorbar(
        places, table["mean"], yerr=table["half_width"].fillna(0), fmt="o", color=COLOURS[0], capsize=4, markersize=7
    )
    axes.axhline(0, color="0.3", linewidth=1)
    axes.set_xticks(places, names, rotation=0 if table["augmentation"].is_unique else 25)
    axes.set(xlabel="augmented view", ylabel="with minus without (points);\n95 % interval over seeds")
    return figure


def best_epoch(table: pd.DataFrame) -> Figure:
    figure, (axes,) = _figure(
        table,
        f"What choosing the best epoch on the test split adds ({_seeds(table)})",
        size=(7, 0.26 * len(table) + 1.8),
    )
    _dots(axes, table, "mean", "best minus last epoch's test accuracy (points); bars: 95 % interval")
    axes.axvline(0, color="0.3", linewidth=1)
    return figure


def ablation(table: pd.DataFrame) -> Figure:
    columns = {"top1": "test accuracy, last epoch (%)", "spearman": "rank correlation with the teacher"}
    title = f"As released, each switch alone, as intended ({_seeds(table)}; 95 % intervals)"
    figure, axes = _figure(table, title, columns=2, size=(9, 4.2))
    names = list(dict.fromkeys(table["arm"]))
    for panel, (measure, label) in zip(axes, columns.items(), strict=True):
        rows = table[table["measure"] == measure].set_index("arm").loc[names]
        _intervals(panel, names, rows["mean"], rows["half_width"], label)
    axes[1].set_yticklabels([])
    teacher = table["teacher_top1"].iloc[0]
    axes[0].set_title(f"teacher: {teacher:.1f} %", fontsize=9)
    return figure


def switch_effects(table: pd.DataFrame) -> Figure:
    title = f"What each switch changes against the released code ({_seeds(table)}, paired; 95 % intervals)"
    figure, axes = _figure(table, title, columns=2, size=(9, 4.2))
    labels = {"top1": "test accuracy (points)", "spearman": "rank correlation with the teacher"}
    names = list(dict.fromkeys(table["arm"]))[1:]  # the first has no teacher and is far off: it would hide the switches
    for panel, (measure, label) in zip(axes, labels.items(), strict=True):
        rows = table[table["measure"] == measure].set_index("arm").reindex(names)
        _intervals(panel, names, rows["mean"], rows["half_width"], f"change in {label}")
        panel.axvline(0, color="0.3", linewidth=1)
    axes[1].set_yticklabels([])
    return figure


def published(table: pd.DataFrame) -> Figure:
    present = int((table["status"] == "evaluated").sum())
    title = f"The authors' published students: {present} of {len(table)} present"
    figure, axes = _figure(table, title, columns=2, size=(9, 4.2))
    labels = {"top1": "top-1 accuracy (%)", "ece": "expected calibration error (%)"}
    pairs = list(dict.fromkeys(table["pair"]))
    for panel, (column, label) in zip(axes, labels.items(), strict=True):
        for i, (augmentation, rows) in enumerate(table.groupby("augmentation", sort=False)):
            places = [len(pairs) - 1 - pairs.index(pair) + 0.13 * (2 - i) for pair in rows["pair"]]
            panel.plot(rows[column], places, linestyle="", marker=MARKERS[i], color=COLOURS[i], label=augmentation)
        panel.set_yticks(range(len(pairs)), pairs[::-1])
        panel.set_ylim(-0.6, len(pairs) - 0.4)
        panel.set_xlabel(label)
    axes[1].set_yticklabels([])
    axes[0].legend(title="augmented view", fontsize=8)
    return figure


def robustness(table: pd.DataFrame) -> Figure:
    panels = list(table.groupby("corruption", sort=False))
    figure, axes = _figure(table, f"Accuracy under corruption ({_seeds(table)})", len(panels), (11, 4.3))
    for panel, (name, rows) in zip(axes, panels, strict=True):
        _lines(panel, rows, "severity", "mean", "arm", band="half_width")
        panel.set(title=name, xlabel=f"severity: {rows['unit'].iloc[0]}", ylabel="test accuracy (%)", ylim=(0, 100))
    axes[0].legend(loc="lower left")
    return figure


def robustness_students(table: pd.DataFrame) -> Figure:
    figure, (axes,) = _figure(
        table, f"Mean accuracy over all corruptions ({_seeds(table)})", size=(7, 0.26 * len(table) + 1.8)
    )
    _dots(axes, table, "mean", "accuracy, mean over corruptions and severities (%); bars: 95 % interval")
    return figure


def reliability(table: pd.DataFrame) -> Figure:
    figure, (axes,) = _figure(table, f"Reliability of the students ({_seeds(table)}, pooled)", size=(6.2, 5.2))
    axes.plot([0, 1], [0, 1], color="0.5", linewidth=1)
    named = table.assign(
        label=[f"{arm} (ECE {error:.1f} %)" for arm, error in zip(table["arm"], table["ece"], strict=True)]
    )
    _lines(axes, named, "confidence", "accuracy", "label")
    axes.set(xlabel="mean confidence of the bin", ylabel="accuracy of the bin", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left")
    return figure


def _seeds(table: pd.DataFrame) -> str:
    count = int(table["n"].iloc[0])
    return f"n = {count} seed" + ("s" if count > 1 else "")


FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    function.__name__: function
    for function in (
        pruning_accuracy,
        pruning_outputs,
        pruning_layers,
        teacher_mixture,
        distances,
        training_curves,
        students,
        pruning_gain,
        best_epoch,
        ablation,
        switch_effects,
        published,
        robustness,
        robustness_students,
        reliability,
    )
}
