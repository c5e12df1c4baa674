"""Each figure as a function of its table: a matplotlib Figure. Its docstring says how the figure is read.

Lines and markers tell the series apart without colour; error bars are 95 % t-intervals of the mean over `n` seeds, and the small
dots beside them `each` seed. The column `caption` holds, in its first row, what the numbers rest on.
"""

from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import stats, words
from .profiles import MEAN

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
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "legend.framealpha": 0.9,
}


def _figure(
    table: pd.DataFrame,
    title: str,
    columns: int = 1,
    size: tuple[float, float] = (6.4, 4),
    rows: int = 1,
    **shared: bool,
) -> tuple[Figure, np.ndarray]:
    """With its title and caption, and its axes row by row; `shared`: sharex, sharey."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared).flatten()
    figure.suptitle(_wrap(title, int(size[0] * 11)))
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


def _lines(axes: Axes, table: pd.DataFrame, x: str, y: str, series: str, band: str | None = None) -> None:
    """One line a series, told apart by colour, dash and marker; `band`: the column with the half width of its interval."""
    looks = zip(cycle(COLOURS), cycle(LINES), cycle(MARKERS), strict=False)
    for (name, rows), (colour, line, marker) in zip(table.groupby(series, sort=False), looks, strict=False):
        axes.plot(rows[x], rows[y], label=name, color=colour, linestyle=line, marker=marker, markersize=5)
        if band is not None and rows[band].notna().any():
            axes.fill_between(
                rows[x], rows[y] - rows[band], rows[y] + rows[band], color=colour, alpha=0.15, linewidth=0
            )


def _curves(
    table: pd.DataFrame,
    title: str,
    panels: Sequence[pd.DataFrame],
    x: str,
    width: float = 2.6,
    spread: float = 0.5,
    highest: Sequence[float] | None = None,
    **shared: bool,
) -> tuple[Figure, np.ndarray]:
    """A panel for each of `panels`: a line an arm, with thin intervals, a little beside the last arm's; one legend.

    `spread`: the share of the gap between two places on the x axis that the arms lie side by side in. `highest`: of each panel,
    the value that no interval goes beyond [100, of percent]; the lowest is 0.
    """
    arms = list(dict.fromkeys(table["arm"]))
    size = (width * len(panels) + 0.08 * max(map(len, arms)) + 1.4, max(4, 0.21 * len(arms) + 1.4))
    figure, axes = _figure(table, title, len(panels), size, **shared)
    for panel, rows, most in zip(axes, panels, highest or [100] * len(panels), strict=True):
        gap = min(np.diff(np.unique(rows[x])), default=1)
        looks = zip(arms, cycle(COLOURS), cycle(LINES), cycle(MARKERS), strict=False)
        for i, (arm, colour, line, marker) in enumerate(looks):
            of = rows[rows["arm"] == arm].sort_values(x)
            panel.errorbar(
                of[x] + spread * gap * ((i + 0.5) / len(arms) - 0.5),
                of["mean"],
                yerr=[of["half_width"].clip(upper=room) for room in (of["mean"], most - of["mean"])],
                label=arm,
                color=colour,
                linestyle=line,
                marker=marker,
                markersize=5,
                linewidth=1.4,
                elinewidth=0.8,
                capsize=2,
            )
    title = "bars: 95 % interval\nover seeds" if table["half_width"].notna().any() else None
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", title=title, handlelength=3.5)
    return figure, axes


def _within_percent(axes: Axes) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))


def _row(axes: Axes, row: float, found: pd.Series, value: str = "mean", filled: bool = True, **look: str) -> None:
    """A mean and its interval, and each seed's value a little below."""
    look = {"fmt": "o", "color": COLOURS[0]} | look
    half_width = found["half_width"] if pd.notna(found["half_width"]) else 0
    face = look["color"] if filled else "white"
    axes.errorbar(found[value], row, xerr=half_width, markerfacecolor=face, capsize=3, markersize=7, **look)
    seeds = stats.numbers(found["each"])
    axes.plot(seeds, [row - 0.27] * len(seeds), ".", color="0.35", markersize=3.5, alpha=0.8, zorder=1)


def _dots(axes: Axes, table: pd.DataFrame, value: str, xlabel: str) -> None:
    """One row an arm, first on top: the mean and its interval; filled where the pruned teacher takes part."""
    rows = np.arange(len(table))[::-1]
    styles = dict(zip(sorted(set(table["method"])), cycle(METHODS), strict=False))  # the same in all figures of a study
    for row, (_, arm) in zip(rows, table.iterrows(), strict=True):
        marker, colour = styles[arm["method"]][0], COLOURS[styles[arm["method"]][1]]
        _row(axes, row, arm, value, filled=bool(arm["pruned"]), fmt=marker, color=colour)
    axes.set_yticks(rows, table["arm"])
    axes.set_xlabel(xlabel)


def _intervals(axes: Axes, names: list[str], table: pd.DataFrame, xlabel: str) -> None:
    """One row a name, first on top: a mean and its interval, of a table indexed by name."""
    rows = np.arange(len(names))[::-1]
    for row, (_, found) in zip(rows, table.iterrows(), strict=True):
        _row(axes, row, found)
    axes.set_yticks(rows, names)
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def pruning_accuracy(table: pd.DataFrame) -> Figure:
    """Test accuracy of the pruned copy by the share of weights that is gone, with running and with the batch's BatchNorm statistics."""
    figure, (axes,) = _figure(table, "Pruning the teacher: accuracy")
    _lines(axes, table, "rate", "top1", "batchnorm")
    axes.set(xlabel="weights pruned from each layer (%)", ylabel="test accuracy (%)")
    axes.legend(title="BatchNorm of the pruned copy")
    return figure


def pruning_outputs(table: pd.DataFrame) -> Figure:
    """Of the same copies: how undecided their answers are, how sure, and how often they name the dense teacher's class."""
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
    """Weights of each layer, kept and pruned, and the smallest that is left."""
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
    """What three teachers say to training images under each view; a mark is the mean over batches, each with its own draw."""
    title = "What the student is shown: dense, pruned and mixed teacher (bars: standard deviation over batches)"
    figure, axes = _figure(table, title, columns=2, size=(9.5, 4.3))
    labels = {"entropy": "mean entropy (nats)", "top1": "label of the (first) image named (%)"}
    views = list(dict.fromkeys(table["view"]))
    for panel, (column, label) in zip(axes, labels.items(), strict=True):
        for i, (name, rows) in enumerate(table.groupby("teacher", sort=False)):
            places = [views.index(view) + 0.2 * (i - 1) for view in rows["view"]]
            spread = rows[f"{column}_spread"]
            most = 100 if column == "top1" else np.inf
            within = [spread.clip(upper=room) for room in (rows[column], most - rows[column])]
            look = {"marker": MARKERS[i], "color": COLOURS[i], "markersize": 6, "elinewidth": 0.8}
            panel.errorbar(places, rows[column], yerr=within, linestyle="", label=name, **look)
        panel.set_xticks(range(len(views)), views, rotation=25)
        panel.set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", title="teacher")
    return figure


def distances(table: pd.DataFrame) -> Figure:
    """How far the distances say that distorted logits of the teacher are from the original."""
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
    """A panel a student: its mean (black), its seeds (thin), the others' means (grey), and where the learning rate drops (dotted)."""
    arms = list(dict.fromkeys(table["arm"]))
    rows = -(-len(arms) // 4)
    columns = -(-len(arms) // rows)
    title = f"Test accuracy over training ({_seeds(table)}): the mean, each seed, and the other students' means in grey"
    size = (2.7 * columns + 1, 2.5 * rows + 1.2)
    figure, axes = _figure(table, title, columns, size, rows, sharex=True, sharey=True)
    means = table.pivot(index="epoch", columns="arm", values="mean")[arms]
    marker = "o" if len(means) == 1 else None
    for panel, arm in zip(axes, arms, strict=False):
        of = table[table["arm"] == arm]
        seeds = pd.DataFrame([stats.numbers(values) for values in of["each"]], index=of["epoch"])
        panel.plot(means, color="0.8", linewidth=1, marker=marker, markersize=3)
        panel.plot(seeds, color=COLOURS[0], linewidth=0.5, alpha=0.7, marker=marker, markersize=3)
        panel.plot(means[arm], color="black", linewidth=1.6, marker=marker)
        for drop in stats.numbers(table["drops"].iloc[0]):
            panel.axvline(drop, color="0.3", linestyle=":", linewidth=1)
        panel.set_title(arm)
    first, last = means.index.min(), means.index.max()
    axes[0].set_xlim(first - 0.5, last + 0.5)
    axes[0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    low = means[means.index > last / 4].min().min()
    axes[0].set_ylim(max(0, low - 5), min(100, means.max().max() + 5))
    for panel in axes[len(arms) :]:
        panel.set_axis_off()
    for i, panel in enumerate(axes):
        if i % columns == 0:
            panel.set_ylabel("test accuracy (%)")
        if i + columns >= len(arms):
            panel.set_xlabel("epoch; dotted: learning rate / 10")
            panel.tick_params(labelbottom=True)
    return figure


def students(table: pd.DataFrame) -> Figure:
    """A row a student, the best mean first; filled where the pruned teacher takes part, one marker a method."""
    figure, (axes,) = _figure(table, f"Students, last epoch ({_seeds(table)})", size=(7, 0.26 * len(table) + 2))
    _dots(axes, table, "mean", "test accuracy of the last epoch (%)\nbars: 95 % interval; dots: seeds")
    teacher = table["teacher_top1"].iloc[0]
    axes.axvline(teacher, color="0.3", linestyle="--")
    axes.text(teacher, 0, f"teacher {teacher:.1f}\n", ha="right", va="center", fontsize=8, rotation=90)
    return figure


def search(table: pd.DataFrame) -> Figure:
    """The settings that a better one was looked for among, by their validation images: the highest mean is the choice."""
    figure, (axes,) = _figure(
        table, f"Searched, on validation images ({_seeds(table)})", size=(7, 0.26 * len(table) + 2)
    )
    _dots(axes, table, "mean", "validation accuracy of the last epoch (%)\nbars: 95 % interval; dots: seeds")
    return figure


def confirmation(table: pd.DataFrame) -> Figure:
    """The setting that was chosen against the others, on fresh seeds and the test images, each a difference paired by seed."""
    return comparisons(table, "Confirmed on test images?")


def distance_weights(table: pd.DataFrame) -> Figure:
    """Accuracy by the weight of the distance, a line a method; side by side are weights that bring the two gradients nearer."""
    title = f"Under cutmixpick: the distance, or its weight? ({_seeds(table)})"
    table = table.assign(place=np.log2(table["pull"]))
    figure, (axes,) = _curves(table, title, [table], "place", width=4.5, spread=0.1)
    ticks = {
        place: "\n".join([f"{2**place:g}", *(f"{row.arm}: {row.weight:g}" for row in rows.itertuples())])
        for place, rows in table.groupby("place")
    }
    axes.set_xticks([*ticks], [*ticks.values()])
    axes.set(
        xlabel="weight of the distance, in units that bring the two gradients nearer\n(KD: 1, R2KD: 0.5; KD's gradient is then the larger)",
        ylabel="test accuracy of the last epoch (%)",
    )
    return figure


def pruning_gain(table: pd.DataFrame) -> Figure:
    """The same student with the pruned teacher minus without, seed by seed."""
    methods = list(dict.fromkeys(table["method"]))
    title = f"{' and '.join(methods)}: what the pruned teacher adds ({_seeds(table)}, paired)"
    names = table["augmentation"] if table["augmentation"].is_unique else table["arm"].str.replace(", pruned", "")
    figure, (axes,) = _figure(table, title, size=(7, 3.6))
    places = np.arange(len(table))
    axes.errorbar(
        places, table["mean"], yerr=table["half_width"].fillna(0), fmt="o", color=COLOURS[0], capsize=4, markersize=7
    )
    for place, values in zip(places, table["each"], strict=True):
        axes.plot(place + 0.12, [stats.numbers(values)], ".", color="0.35", markersize=3.5, alpha=0.8)
    axes.axhline(0, color="0.3", linewidth=1)
    axes.set_xticks(places, names, rotation=0 if table["augmentation"].is_unique else 25)
    axes.set(xlabel="augmented view", ylabel="with minus without (points);\n95 % interval; dots: seeds")
    return figure


def best_epoch(table: pd.DataFrame) -> Figure:
    """What a report of the best epoch on the test images would add to each student."""
    figure, (axes,) = _figure(
        table,
        f"What choosing the best epoch on the test split adds ({_seeds(table)})",
        size=(7, 0.26 * len(table) + 1.8),
    )
    _dots(axes, table, "mean", "best minus last epoch's test accuracy (points)\nbars: 95 % interval; dots: seeds")
    axes.axvline(0, color="0.3", linewidth=1)
    return figure


def grid_corrupted(table: pd.DataFrame) -> Figure:
    """As the grid on clean images, of the mean accuracy over corruptions and severities."""
    return grid(table, "Under corruption")


def grid(table: pd.DataFrame, where: str = "On clean images") -> Figure:
    """A cell is a difference paired by seed: what a view adds to a distance, which distance is ahead, and what a view adds more to the one."""
    contrasts = list(dict.fromkeys(table["contrast"]))
    single = table[table["view"] != MEAN]
    views = max((list(rows["view"]) for _, rows in single.groupby("contrast")), key=len)
    views += [view for view in dict.fromkeys([*single["view"], *table["view"]]) if view not in views]
    title = f"{where}: what a view adds, and which distance is ahead ({_seeds(table)}, paired; points ± 95 % interval)"
    figure, (axes,) = _figure(table, title, size=(9.4, 0.62 * len(contrasts) + 2.1))
    wide = table.pivot(index="contrast", columns="view", values="mean").loc[contrasts, views]
    limit = max(table["mean"].abs().max(), 1e-9)
    axes.imshow(wide, cmap="RdBu_r", vmin=-1.6 * limit, vmax=1.6 * limit, aspect="auto")
    for row in table.to_dict("records"):
        half_width = f" ± {row['half_width']:.1f}" if pd.notna(row["half_width"]) else ""
        told = row["verdict"] in ("higher", "lower")
        place = (views.index(row["view"]), contrasts.index(row["contrast"]))
        words = f"{row['mean']:+.1f}{half_width}" + (" *" if told else "")
        axes.text(*place, words, ha="center", va="center", fontsize=9, weight="bold" if told else "normal")
    gains = set(table.loc[table["kind"] == "view", "contrast"])
    axes.set_yticks(range(len(contrasts)), [f"{c}: view minus control" if c in gains else c for c in contrasts])
    axes.set_xticks(range(len(views)), views)
    axes.set_xlabel(
        "second view (control: identity, where it was trained)\n"
        "* bold: told apart from 0, Holm-adjusted over all cells of views, and over those of their mean"
    )
    axes.grid(False)
    return figure


def comparisons(table: pd.DataFrame, title: str = "The study's comparisons") -> Figure:
    """The study's comparisons, each a difference paired by seed, all one family. An arm may have more views, and passes, than the other."""
    title = f"{title} ({_seeds(table)}, paired; filled: told apart, Holm-adjusted)"
    figure, (axes,) = _figure(table, title, size=(8.6, 0.34 * len(table) + 1.8))
    _told(axes, table)
    axes.set_xlabel("difference in test accuracy, last epoch (points; 95 % interval)")
    return figure


def robust_comparisons(table: pd.DataFrame) -> Figure:
    """The same comparisons under corruption, beyond two lines of corrupted on clean accuracy, through all students and through the compared ones, and under PGD."""
    panels = words.measured(table)
    title = f"The comparisons beside clean images ({_seeds(table)}, paired; filled: told apart, Holm-adjusted)"
    height = max(map(len, panels.values()))
    figure, axes = _figure(
        table, title, columns=len(panels), size=(2.6 * len(panels) + 2.4, 0.34 * height + 2.1), sharey=True
    )
    for panel, (name, rows) in zip(axes, panels.items(), strict=True):
        _told(panel, rows)
        panel.set_xlabel(_wrap(f"{name} (points)", 24))
    return figure


def _told(axes: Axes, table: pd.DataFrame) -> None:
    """One row a comparison, first on top: filled where it is told apart from 0."""
    rows = np.arange(len(table))[::-1]
    for row, (_, found) in zip(rows, table.iterrows(), strict=True):
        _row(axes, row, found, filled=found["verdict"] in ("higher", "lower"))
    axes.set_yticks(rows, table["arm"] + "  minus  " + table["other"])
    axes.axvline(0, color="0.3", linewidth=1)


def measures(table: pd.DataFrame) -> Figure:
    """How well probabilities fit, how far confidence is from accuracy, and how much a student answers like its teacher."""
    labels = {
        "loss": "negative log-likelihood (nats)",
        "ece": "calibration error (%)",
        "agreement": "agreement with the teacher (%)",
        "rank_correlation": "rank correlation with the teacher",
    }
    shown = {name: label for name, label in labels.items() if name in set(table["measure"])}
    arms = list(dict.fromkeys(table["arm"]))
    title = f"Beside accuracy, on clean test images, last epoch ({_seeds(table)}; 95 % intervals)"
    figure, axes = _figure(table, title, columns=len(shown), size=(12, 0.26 * len(arms) + 1.8))
    for panel, (measure, label) in zip(axes, shown.items(), strict=True):
        rows = table[table["measure"] == measure].set_index("arm").reindex(arms).reset_index()
        _dots(panel, rows.astype({"pruned": object}).fillna({"method": "", "pruned": False}), "mean", label)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    for panel in axes[1:]:
        panel.set_yticklabels([])
    return figure


def answer_spread(table: pd.DataFrame) -> Figure:
    """How much a teacher's mean answer varies over groups of batches, by the view and the share of weights that is gone."""
    kinds = [kind for kind in ("pruned", "mixed") if kind in set(table["teacher"])]
    title = "How much a teacher's mean answer varies, by the view: lower is said to teach better"
    figure, axes = _figure(table, title, columns=len(kinds), size=(9, 4.2), sharey=True)
    dense = table[table["teacher"] == "dense"]
    for panel, kind in zip(axes, kinds, strict=True):
        _lines(panel, pd.concat([dense, table[table["teacher"] == kind]]), "rate", "mean", "view", band="half_width")
        panel.set_title(f"{kind} teacher; 0 %: dense")
        panel.set_xlabel("pruned (% of the weights)")
    axes[0].set_ylabel("standard deviation of the\nmean probability (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", title="view")
    return figure


def answer_spread_gain(table: pd.DataFrame) -> Figure:
    """A mark a view: the dense teacher's spread under it, and what it adds to students."""
    methods = list(dict.fromkeys(table["method"]))
    title = f"The teacher's test of a view, and what the view adds to students ({_seeds(table)}; 95 % intervals)"
    figure, axes = _figure(table, title, columns=len(methods), size=(9, 4), sharey=True)
    for panel, method in zip(axes, methods, strict=True):
        rows = table[table["method"] == method]
        for (_, row), colour, marker in zip(rows.iterrows(), cycle(COLOURS), cycle(MARKERS), strict=False):
            errors = row[["half_width", "spread_half_width"]].fillna(0)
            panel.errorbar(
                row["spread"],
                row["mean"],
                *errors,
                fmt=marker,
                color=colour,
                capsize=3,
                label=row["view"],
                markersize=7,
            )
        panel.axhline(0, color="0.3", linewidth=1)
        found, over = rows["rank_correlation"].iloc[0], rows["views"].iloc[0]
        panel.set_title(method + (f": rank correlation {found:+.2f} over {over:.0f} views" if pd.notna(found) else ""))
        panel.set_xlabel("standard deviation of the teacher's\nmean probability (%)")
    axes[0].set_ylabel("gain of the view over its\ncontrol (points)")
    axes[0].legend(fontsize=8)
    return figure


def ablation(table: pd.DataFrame) -> Figure:
    """R2KD as released, with each switch alone, and as intended; beside accuracy the rank correlation with the teacher."""
    columns = {"top1": "test accuracy, last epoch (%)", "spearman": "rank correlation with the teacher"}
    title = f"As released, each switch alone, as intended ({_seeds(table)}; 95 % intervals)"
    columns = {measure: label for measure, label in columns.items() if measure in set(table["measure"])}
    figure, axes = _figure(table, title, columns=len(columns), size=(9, 4.2))
    names = list(dict.fromkeys(table["arm"]))
    for panel, (measure, label) in zip(axes, columns.items(), strict=True):
        rows = table[table["measure"] == measure].set_index("arm").reindex(names)
        _intervals(panel, names, rows, label)
    for panel in axes[1:]:
        panel.set_yticklabels([])
    teacher = table["teacher_top1"].iloc[0]
    axes[0].set_title(f"teacher: {teacher:.1f} %", fontsize=9)
    return figure


def switch_effects(table: pd.DataFrame) -> Figure:
    """What each switch changes, paired by seed."""
    title = f"What each switch changes against the released code ({_seeds(table)}, paired; 95 % intervals)"
    labels = {"top1": "test accuracy (points)", "spearman": "rank correlation with the teacher"}
    labels = {measure: label for measure, label in labels.items() if measure in set(table["measure"])}
    figure, axes = _figure(table, title, columns=len(labels), size=(9, 4.2))
    names = list(dict.fromkeys(table["arm"]))
    for panel, (measure, label) in zip(axes, labels.items(), strict=True):
        rows = table[table["measure"] == measure].set_index("arm").reindex(names)
        _intervals(panel, names, rows, f"change in {label}")
        panel.axvline(0, color="0.3", linewidth=1)
    for panel in axes[1:]:
        panel.set_yticklabels([])
    return figure


def published(table: pd.DataFrame) -> Figure:
    """A mark a published student: its accuracy and its calibration error on the validation split."""
    present = int((table["status"] == "evaluated").sum())
    title = f"The authors' published students: {present} of {len(table)} present"
    figure, axes = _figure(table, title, columns=2, size=(9, 4.2))
    labels = {
        "top1": "top-1 accuracy (%); bars: 95 % interval of\nso many images (Wilson), one seed",
        "ece": "expected calibration error (%)",
    }
    pairs = list(dict.fromkeys(table["pair"]))
    for panel, (column, label) in zip(axes, labels.items(), strict=True):
        for i, (augmentation, rows) in enumerate(table.groupby("augmentation", sort=False)):
            places = [len(pairs) - 1 - pairs.index(pair) + 0.13 * (2 - i) for pair in rows["pair"]]
            look = {"marker": MARKERS[i], "color": COLOURS[i], "markersize": 5, "elinewidth": 0.8}
            errors = stats.binomial_errors(rows["top1"], rows["n"]) if column == "top1" else None
            panel.errorbar(rows[column], places, xerr=errors, linestyle="", label=augmentation, **look)
        panel.set_yticks(range(len(pairs)), pairs[::-1])
        panel.set_ylim(-0.6, len(pairs) - 0.4)
        panel.set_xlabel(label)
    axes[1].set_yticklabels([])
    axes[0].legend(title="augmented view", fontsize=8)
    return figure


def robustness(table: pd.DataFrame) -> Figure:
    """Mean accuracy over the corruptions of a family, by severity."""
    families = list(table.groupby("family", sort=False))
    title = f"Accuracy under corruption ({_seeds(table)})"
    figure, axes = _curves(table, title, [rows for _, rows in families], "severity", sharey=True)
    severities = np.unique(table["severity"])
    for panel, (name, _) in zip(axes, families, strict=True):
        panel.set(title=name, xlabel="severity")
        panel.set_xticks(severities, [f"{severity:g}" if severity else "clean" for severity in severities])
    axes[0].set_ylabel("test accuracy (%)")
    _within_percent(axes[0])
    return figure


def robustness_students(table: pd.DataFrame) -> Figure:
    """A row a student: accuracy under corruption, what it loses against clean, and what clean accuracy does not explain."""
    labels = {
        "corrupted": "mean accuracy\nunder corruption (%)",
        "drop": "drop against clean\n(points)",
        "residual": "corrupted accuracy beyond what\nclean accuracy explains (points)",
    }
    known = set(table.loc[table["mean"].notna(), "measure"])
    labels = {measure: label for measure, label in labels.items() if measure in known}
    arms = table[["arm", "method", "pruned"]].drop_duplicates("arm")
    bars = "; bars: 95 % interval over seeds" if table["half_width"].notna().any() else ""
    title = f"Students under corruption ({_seeds(table)}{bars})"
    size = (2.7 * len(labels) + 0.08 * max(map(len, arms["arm"])), 0.26 * len(arms) + 2)
    figure, axes = _figure(table, title, len(labels), size, sharey=True)
    for panel, (measure, label) in zip(axes, labels.items(), strict=True):
        measured = table.loc[table["measure"] == measure, ["arm", "mean", "half_width", "each"]]
        _dots(panel, arms.merge(measured, on="arm", how="left"), "mean", label)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        if measure == "residual":
            panel.axvline(0, color="0.3", linewidth=1)
    axes[0].set_ylim(-0.6, len(arms) - 0.4)
    return figure


def corruption_differences(table: pd.DataFrame) -> Figure:
    """A cell is a student's accuracy minus the reference's under one corruption, over its severities, paired by seed."""
    arms = list(dict.fromkeys(table["arm"]))
    of = table[table["corruption"] != "all"].drop_duplicates("corruption").groupby("family", sort=False)["corruption"]
    families = {family: list(names) for family, names in of}
    names = [name for names in families.values() for name in names] + ["all"] * ("all" in set(table["corruption"]))
    means, half_widths = (
        table.pivot(index="corruption", columns="arm", values=value).loc[names, arms].to_numpy()
        for value in ("mean", "half_width")
    )
    title = f"Accuracy minus that of {table['reference'].iloc[0]} (points; {_seeds(table)}, paired)"
    figure, (axes,) = _figure(
        table, title, size=(max(6, 0.55 * len(arms) + 3.5), 0.25 * len(names) + 0.05 * max(map(len, arms)) + 1.7)
    )
    colours = sns.diverging_palette(30, 250, s=80, l=70, as_cmap=True)
    limit = max(0.1, *np.abs(means[~np.isnan(means)]))
    axes.imshow(means, cmap=colours, vmin=-limit, vmax=limit, aspect="auto")
    axes.grid(False)
    for (row, column), mean in np.ndenumerate(means):
        look = {"weight": "bold"} if abs(mean) > half_widths[row, column] else {"color": "0.3"}
        axes.text(column, row, "" if np.isnan(mean) else f"{mean:+z.1f}", ha="center", va="center", fontsize=8, **look)
    bold = "bold: the 95 % interval leaves out 0" if table["half_width"].notna().any() else "one seed: no interval"
    axes.set_title(bold, fontsize=9)
    axes.set_xticks(range(len(arms)), arms, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    said = [name.replace("_", " ") if name != "all" else "mean of all" for name in names]
    axes.set_yticks(range(len(names)), said, fontsize=9)
    ends = np.cumsum([len(rows) for rows in families.values()]) - 0.5
    for end in ends[: None if "all" in names else -1]:
        axes.axhline(end, color="0.1", linewidth=2 if end == ends[-1] and "all" in names else 0.8)
    starts = [-0.5, *ends[:-1]]
    axes.secondary_yaxis("right").set_yticks((starts + ends) / 2, families, fontsize=9)
    return figure


def attacks(table: pd.DataFrame) -> Figure:
    """Accuracy by the radius of each attack; random signs of the same size are the control."""
    table = table.assign(place=table.groupby("attack")["epsilon"].rank("dense"))
    panels = list(table.groupby("attack", sort=False))
    title = f"Accuracy under attack ({_seeds(table)})"
    figure, axes = _curves(table, title, [rows for _, rows in panels], "place", sharey=True)
    for panel, (name, rows) in zip(axes, panels, strict=True):
        unit = rows["unit"].iloc[0]  # none is "" in the table, NaN in its CSV
        radius = f"radius ({'1' * unit.startswith('/')}{unit})" if isinstance(unit, str) and unit else "radius"
        panel.set(title=name, xlabel=radius)
        panel.set_xticks(np.unique(rows["place"]), [f"{epsilon:g}" for epsilon in np.unique(rows["epsilon"])])
    axes[0].set_ylabel("test accuracy (%)")
    _within_percent(axes[0])
    return figure


def reliability(table: pd.DataFrame) -> Figure:
    """Accuracy against confidence in equal bins (point size and bars: share of the images); a calibrated student is on the diagonal."""
    arms = list(table.groupby("arm", sort=False))
    rows = -(-len(arms) // 6)
    columns = -(-len(arms) // rows)
    title = f"Reliability ({_seeds(table)}, pooled)"
    size = (max(4.5, 2.3 * columns + 0.8), max(4.5 if len(arms) == 1 else 0, 2.7 * rows + 1))
    figure, axes = _figure(table, title, columns, size, rows, sharex=True, sharey=True)
    for i, (panel, (arm, bins)) in enumerate(zip(axes, arms, strict=False)):
        share = 100 * bins["samples"] / bins["samples"].sum()
        width = 100 / stats.BINS
        panel.bar((bins["bin"] - 0.5) * width, share, width=width, color="0.85", edgecolor="0.6", linewidth=0.5)
        panel.plot([0, 100], [0, 100], color="0.3", linewidth=1, linestyle="--")
        full = bins[bins["samples"] >= 10]
        panel.plot(full["confidence"], full["top1"], color=COLOURS[0], linewidth=1.2)
        panel.scatter(full["confidence"], full["top1"], s=10 + share[full.index], color=COLOURS[0], zorder=3)
        found = bins.iloc[0]
        error = f"ECE {found['ece_before']:.1f} → {found['ece_after']:.1f} % at T = {found['temperature']:.2f}"
        panel.set_title(f"{arm}\n{error}", fontsize=9)
        panel.set(xlim=(-4, 104), ylim=(-4, 104))
        if i % columns == 0:
            panel.set_ylabel("accuracy, and share of\nthe images (bars), in %")
        if i + columns >= len(arms):
            panel.set_xlabel("confidence (%)")
            panel.tick_params(labelbottom=True)
    for panel in axes[len(arms) :]:
        panel.set_axis_off()
    return figure


def ambiguity(table: pd.DataFrame) -> Figure:
    """Test images in fifths by the teacher's entropy: accuracy and likelihood of the students in each."""
    labels = {"top1": "test accuracy (%)", "loss": "negative log-likelihood (nats)"}
    labels = {measure: label for measure, label in labels.items() if measure in set(table["measure"])}
    panels = [table[table["measure"] == measure] for measure in labels]
    title = f"Students, by how sure the teacher is of the image ({_seeds(table)})"
    highest = [100 if label.endswith("(%)") else np.inf for label in labels.values()]
    figure, axes = _curves(table, title, panels, "bin", width=3.5, highest=highest)
    bins = np.unique(table["bin"])
    for panel, label in zip(axes, labels.values(), strict=True):
        panel.set(xlabel="fifth of the images (1: teacher surest)", ylabel=label)
        panel.set_xticks(bins, [f"{i:g}" for i in bins])
        if label.endswith("(%)"):
            _within_percent(panel)
    return figure


def pruned_teachers(table: pd.DataFrame) -> Figure:
    """Accuracy of the dense, the pruned and the mixed teacher on clean and corrupted images."""
    figure, (axes,) = _figure(table, "Pruning the teacher: clean and corrupted images", size=(7.4, 4.2))
    for column, line in (("clean", "-"), ("corrupted", "--")):
        for i, (name, rows) in enumerate(table[table["teacher"] != "dense"].groupby("teacher", sort=False)):
            axes.plot(
                rows["rate"],
                rows[column],
                label=f"{name}, {column}",
                color=COLOURS[i],
                linestyle=line,
                marker=MARKERS[i],
                markerfacecolor=COLOURS[i] if line == "-" else "white",
            )
        for value in table.loc[table["teacher"] == "dense", column]:
            axes.axhline(value, color="0.3", linestyle=line, linewidth=1, label=f"dense, {column}")
    axes.set(xlabel="weights pruned from each layer (%)", ylabel="test accuracy (%)")
    figure.legend(loc="outside right center", title="teacher, images", handlelength=3.5)
    return figure


def label_noise(table: pd.DataFrame) -> Figure:
    """Accuracy by the share of training labels that were flipped, for teacher and students alike."""
    title = f"Trained on wrong labels, last epoch ({_seeds(table)})"
    figure, (axes,) = _curves(table, title, [table], "rate", width=4.5, spread=0.2)
    axes.set(xlabel="training labels flipped (%)", ylabel="test accuracy of the last epoch (%)")
    axes.set_xticks(np.unique(table["rate"]))
    _within_percent(axes)
    return figure


def published_robustness(table: pd.DataFrame) -> Figure:
    """A mark a published student, a bar the mean over the pairs."""
    panels = list(table.groupby("measure", sort=False))
    augmentations, pairs = (list(dict.fromkeys(table[column])) for column in ("augmentation", "pair"))
    rows = 1 if len(panels) <= 3 else 2
    columns = -(-len(panels) // rows)
    counts = f"{table['present'].iloc[0]:g} of {table['known'].iloc[0]:g}"
    title = f"The published students under corruption and attack: {counts}"
    size = (max(6, 2.7 * columns + 2.6), (0.5 * len(augmentations) + 1) * rows + 1)
    figure, axes = _figure(table, title, columns, size, rows, sharey=True)
    places = np.arange(len(augmentations))[::-1]
    for panel, (_, measured) in zip(axes, panels, strict=False):
        for i, pair in enumerate(pairs):
            of = measured[measured["pair"] == pair].set_index("augmentation")["value"].reindex(augmentations)
            shift = 0.6 * ((i + 0.5) / len(pairs) - 0.5)
            panel.plot(of, places - shift, linestyle="", marker=MARKERS[i], color=COLOURS[i], label=pair)
        mean = measured.groupby("augmentation")["value"].mean().reindex(augmentations)
        panel.vlines(mean, places - 0.38, places + 0.38, color="0.4", linewidth=2, zorder=1, label="mean of the pairs")
        panel.set_xlabel(_wrap(measured["label"].iloc[0], 36))
        panel.xaxis.set_major_locator(MaxNLocator(4))
    axes[0].set_yticks(places, augmentations)
    axes[0].set_ylim(-0.6, len(augmentations) - 0.4)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", title="teacher and student")
    return figure


def _seeds(table: pd.DataFrame) -> str:
    fewest, most = int(table["n"].min()), int(table["n"].max())
    return f"n = {fewest} to {most} seeds" if fewest < most else f"n = {most} seed" + ("s" if most > 1 else "")


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
        distance_weights,
        pruning_gain,
        best_epoch,
        grid,
        grid_corrupted,
        comparisons,
        robust_comparisons,
        measures,
        answer_spread,
        answer_spread_gain,
        ablation,
        switch_effects,
        published,
        robustness,
        robustness_students,
        corruption_differences,
        attacks,
        reliability,
        ambiguity,
        pruned_teachers,
        label_noise,
        published_robustness,
        search,
        confirmation,
    )
}
