"""What may be said, in sentences, from tables alone: of each figure for figures/README.md and the report, and of more in notebooks.

A sentence names extremes and intervals; where a family of verdicts stands in the table, it says no more than the verdicts.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from . import stats, tables
from .profiles import MATCHED, MEAN, ONE_VIEW

MEASURED = {
    "corrupted": "Under corruption",
    "residual": "Beyond what clean accuracy explains, by a line through all students",
    "residual_compared": "The same, by a line through those that are compared",
    "attacked": "Under PGD",
}
JUDGED = {"higher": "supported", "lower": "contradicted", "not told apart": "not told apart from 0"}
TELLS = {
    "higher": "is above",
    "lower": "is below",
    "not told apart": "is not told apart from",
    "too few seeds": "has too few seeds yet to be told from",
}


def seen(name: str, table: pd.DataFrame) -> str:
    """Of the figure of this name. Raises ValueError for an unknown name."""
    if name not in SEEN:
        raise ValueError(f"no words for a figure {name!r}; known: {', '.join(SEEN)}")
    return SEEN[name](table)


def title(name: str) -> str:
    """Of the figure of this name."""
    return name.replace("_", " ").capitalize()


def told(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """What one sees in those of the figures that lie in a folder, by title."""
    there = {name: folder / f"{name}.csv" for name in names}
    return {title(name): seen(name, tables.read(path)) for name, path in there.items() if path.is_file()}


def conclusions(folder: Path, *names: str) -> str:
    """The same as a list in Markdown."""
    return "\n".join(f"- **{title}.** {said}" for title, said in told(folder, names).items()) or "Nothing was measured."


def value(row: pd.Series, unit: str = " %", digits: int = 1) -> str:
    """ "43.8 ± 2.8 %"; of one seed without the interval."""
    half_width = "" if pd.isna(row["half_width"]) else f" ± {row['half_width']:.{digits}f}"
    return f"{row['mean']:.{digits}f}{half_width}{unit}"


def _ends(table: pd.DataFrame, unit: str = " %", digits: int = 1) -> str:
    """The arms with the highest and the lowest mean, of three seeds or more where there are such; the arm, where there is one."""
    table = table.dropna(subset="mean")
    table = table[table["n"] >= min(3, table["n"].max())]
    if table.empty:
        return "not measured"
    if len(table) == 1:
        return f"{table['arm'].iloc[0]} ({value(table.iloc[0], unit, digits)})"
    highest, lowest = (table.loc[getattr(table["mean"], find)()] for find in ("idxmax", "idxmin"))
    return f"highest {highest['arm']} ({value(highest, unit, digits)}), lowest {lowest['arm']} ({value(lowest, unit, digits)})"


def _beyond(table: pd.DataFrame) -> str:
    """How many of the differences that have an interval have one without 0."""
    apart = table["mean"].abs() > table["half_width"]
    return f"{int(apart.sum())} of {table['half_width'].notna().sum()} intervals leave out 0 (unadjusted)"


def pruning_accuracy(table: pd.DataFrame) -> str:
    wide = table.pivot(index="rate", columns="batchnorm", values="top1")
    if wide.shape[1] < 2:
        return f"Unpruned the teacher has {wide.iloc[0, 0]:.1f} %, at {wide.index[-1]:g} % pruned {wide.iloc[-1, 0]:.1f} %."
    dense, first = wide["running"].iloc[0], wide.index[1]
    gap = (wide["batch"] - wide["running"]).idxmax()
    return (
        f"Pruning {first:g} % takes {dense - wide['running'][first]:.1f} points from the teacher's {dense:.1f} %; the batch's statistics "
        f"take {dense - wide['batch'].iloc[0]:.1f} with nothing pruned. The two ways to ask are furthest apart at {gap:g} % pruned: "
        f"batch {wide['batch'][gap]:.1f} %, running {wide['running'][gap]:.1f} %."
    )


def pruning_outputs(table: pd.DataFrame) -> str:
    agreement = table.pivot(index="rate", columns="batchnorm", values="agreement")
    running = table[table["batchnorm"] == "running"]
    surest = running.loc[running["confidence"].idxmax()]
    first = agreement.index[1]
    said = f"At {first:g} % pruned the copy agrees with the dense teacher on {agreement['running'][first]:.1f} % of the images"
    if "batch" in agreement:
        said += f"; with the batch's statistics on {agreement['batch'][first]:.1f} %, unpruned on {agreement['batch'].iloc[0]:.1f} %"
    return (
        f"{said}. With running statistics it is surest of itself at {surest['rate']:g} % pruned: mean confidence "
        f"{surest['confidence']:.2f}, and {surest['top1']:.1f} % right."
    )


def pruning_layers(table: pd.DataFrame) -> str:
    least, most = table["threshold"].min(), table["threshold"].max()
    return (
        f"Every layer loses the same share, {100 * table['sparsity'].median():.0f} %; the smallest weight that is left lies between "
        f"{least:.2g} and {most:.2g}, by the layer's scale."
    )


def teacher_mixture(table: pd.DataFrame) -> str:
    wide = table.pivot(index="view", columns="teacher", values=["entropy", "top1"])
    surer = int((wide["entropy"]["pruned"] < wide["entropy"]["dense"]).sum())
    hardest = wide["top1"]["dense"].idxmin()
    return (
        f"The pruned copy's mean entropy is above the dense teacher's under {len(wide) - surer} of {len(wide)} views. The dense "
        f"teacher names the fewest labels under {hardest}, {wide['top1']['dense'][hardest]:.1f} %."
    )


def distances(table: pd.DataFrame) -> str:
    scaled = table[(table["perturbation"] == table["perturbation"].iloc[0]) & (table["amount"] != 1)]
    most = scaled.groupby("distance", sort=False)["relative"].max()
    return f"Scaled logits move each distance up to this share of its largest: {', '.join(f'{name} {share:.2f}' for name, share in most.items())}."


def answer_spread(table: pd.DataFrame) -> str:
    rates = table.loc[table["rate"] > 0, "rate"]
    return spread(table, rates.min())


def students(table: pd.DataFrame) -> str:
    return f"Last epoch: {_ends(table)}; the teacher has {table['teacher_top1'].iloc[0]:.1f} %. Neighbours may be the same."


def training_curves(table: pd.DataFrame) -> str:
    wide = table.pivot(index="epoch", columns="arm", values="mean")
    last = max((drop for drop in stats.numbers(table["drops"].iloc[0]) if drop < wide.index.max()), default=0)
    settled = wide[wide.index > last]
    moved = (settled.max() - settled.min()).max()
    since = "After the last drop of the learning rate" if last else "From the first test on"
    return f"{since} the mean of each student drawn stays within {moved:.1f} points."


def grid(table: pd.DataFrame) -> str:
    return " ".join(views(table)) or "No view can be compared with its control yet."


def comparisons(table: pd.DataFrame) -> str:
    told = [
        f"{row['arm']} {'above' if row['mean'] > 0 else 'below'} {row['other']} ({value(row, '', 2)})"
        for _, row in table.iterrows()
        if row["verdict"] in ("higher", "lower")
    ]
    counts = table["verdict"].value_counts()
    for verdict, said in (("not told apart", "not told apart"), ("too few seeds", "of too few seeds")):
        if count := counts.get(verdict, 0):
            told.append(f"{count} of {len(table)} pairs {'is' if count == 1 else 'are'} {said}")
    return f"{'; '.join(told)}."


def measured(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each measure of `robust_comparisons`, by what it is called; of an attack those of each radius."""
    parts = {}
    for name, rows in table.groupby("measure", sort=False):
        if name == "attacked":
            parts |= {f"{MEASURED[name]} at {radius:g}/255": at for radius, at in rows.groupby("radius")}
        else:
            slope = rows["slope"].iloc[0] if "slope" in rows else float("nan")
            parts[MEASURED[name] + (f" (slope {slope:.2f})" if pd.notna(slope) else "")] = rows
    return parts


def robust_comparisons(table: pd.DataFrame) -> str:
    return " ".join(f"{name}: {comparisons(rows)}" for name, rows in measured(table).items())


def search(table: pd.DataFrame) -> str:
    first, *others = (row for _, row in table.iterrows())
    released = next((f"; as released {value(row)}" for row in others if row["arm"] == "released"), "")
    return f"Of {len(table)} settings {first['arm']} has the highest mean on the validation images, {value(first)}{released}."


def distance_weights(table: pd.DataFrame) -> str:
    said = [
        f"{method} {', '.join(f'{value(row)} at weight {row.weight:g}' for _, row in rows.iterrows())}"
        for method, rows in table.groupby("arm", sort=False)
    ]
    return f"{'; '.join(said)}. Of the first two pairs the comparisons have a verdict."


def pruning_gain(table: pd.DataFrame) -> str:
    return f"The pruned teacher adds, in points: {_ends(table, '')}; {_beyond(table)}."


def best_epoch(table: pd.DataFrame) -> str:
    return f"The best epoch on the test images flatters each student, in points: {_ends(table, '', 2)}."


def measures(table: pd.DataFrame) -> str:
    units = {
        "Negative log-likelihood": ("loss", " nats", 2),
        "Calibration error": ("ece", " %", 1),
        "Agreement with the teacher": ("agreement", " %", 1),
        "Rank correlation with it": ("rank_correlation", "", 2),
    }
    found = {name: (table[table["measure"] == of], unit, digits) for name, (of, unit, digits) in units.items()}
    return " ".join(f"{name}: {_ends(*how)}." for name, how in found.items() if len(how[0]))


def answer_spread_gain(table: pd.DataFrame) -> str:
    """Whether the views of a lower spread are those that add more: rank correlations, and how often chance alone gives as much."""
    said = []
    for method, rows in table.groupby("method", sort=False):
        if pd.notna((first := rows.iloc[0])["rank_correlation"]):
            over = f"over {first['views']:.0f} views (p = {first['p']:.2f})"
            said.append(f"{method}: rank correlation {first['rank_correlation']:+.2f} {over}")
    return (
        f"Spread against gain: {'; '.join(said) or 'too few views to say'}. Claimed is a negative one: the lower the spread, the better "
        "the students."
    )


def robustness(table: pd.DataFrame) -> str:
    means = table.groupby(["arm", "severity"], sort=False)["mean"].mean().unstack()
    lost = means[means.columns.min()] - means[means.columns.max()]
    return (
        f"From clean to severity {means.columns.max():g}, over the families, {lost.idxmin()} loses least ({lost.min():.1f} points) and "
        f"{lost.idxmax()} most ({lost.max():.1f})."
    )


def robustness_students(table: pd.DataFrame) -> str:
    of = {name: rows.dropna(subset="mean") for name, rows in table.groupby("measure", sort=False)}
    said = f"Mean accuracy under corruption: {_ends(of['corrupted'])}."
    if len(of.get("residual", ())):
        known = of["residual"].dropna(subset="half_width")
        beyond = int((known["mean"].abs() > known["half_width"]).sum())
        said += f" Beyond what clean accuracy explains, {beyond} of {len(known)} students lie off 0 by more than their interval."
    return said


def corruption_differences(table: pd.DataFrame) -> str:
    overall = table[table["corruption"] == "all"]
    return f"Mean over all corruptions, in points against {table['reference'].iloc[0]}: {_ends(overall, '')}; {_beyond(overall)}."


def attacks(table: pd.DataFrame) -> str:
    said = []
    for name, rows in table.groupby("attack", sort=False):
        radius = rows.loc[rows["epsilon"] > 0, "epsilon"].min()
        unit = rows["unit"].iloc[0]
        said.append(
            f"{name} at {radius:g}{unit if isinstance(unit, str) else ''}: {_ends(rows[rows['epsilon'] == radius])}"
        )
    return f"{'; '.join(said)}."


def reliability(table: pd.DataFrame) -> str:
    first = table.drop_duplicates("arm").set_index("arm")
    before, after = first["ece_before"], first["ece_after"]
    return (
        f"Calibration error from {before.min():.1f} % ({before.idxmin()}) to {before.max():.1f} % ({before.idxmax()}); after one "
        f"temperature from {after.min():.1f} % to {after.max():.1f} %."
    )


def ambiguity(table: pd.DataFrame) -> str:
    wide = table[table["measure"] == "top1"].pivot(index="arm", columns="bin", values="mean")
    first, last = wide[wide.columns.min()], wide[wide.columns.max()]
    lost = first - last
    return (
        f"From the fifth that the teacher is surest of to the one it is least sure of, accuracy falls by {lost.min():.1f} "
        f"({lost.idxmin()}) to {lost.max():.1f} points ({lost.idxmax()})."
    )


def pruned_teachers(table: pd.DataFrame) -> str:
    dense = table[table["teacher"] == "dense"].iloc[0]
    said = []
    for name, rows in table[table["teacher"] != "dense"].groupby("teacher", sort=False):
        best = rows.loc[rows["corrupted"].idxmax()]
        said.append(f"{name} at most {best['corrupted']:.1f} % ({best['rate']:g} % gone)")
    return f"Dense {dense['clean']:.1f} % clean, {dense['corrupted']:.1f} % corrupted; corrupted, {', '.join(said)}."


def label_noise(table: pd.DataFrame) -> str:
    wide = table.pivot(index="arm", columns="rate", values="mean")
    most = wide.columns.max()
    lost = wide[wide.columns.min()] - wide[most]
    return f"With {most:g} % of the labels flipped, accuracy falls by {', '.join(f'{fall:.1f} points ({arm})' for arm, fall in lost.items())}."


def ablation(table: pd.DataFrame) -> str:
    return f"Last epoch: {_ends(table[table['measure'] == 'top1'])}."


def switch_effects(table: pd.DataFrame) -> str:
    rows = table[table["measure"] == "top1"]
    return " ".join(f"{row['arm']}: {value(row, ' points', 2)}, {row['verdict']}." for _, row in rows.iterrows())


def published(table: pd.DataFrame) -> str:
    there = table[table["status"] == "evaluated"]
    if there.empty:
        return f"None of the {len(table)} students is here."
    best, worst = there.loc[there["top1"].idxmax()], there.loc[there["top1"].idxmin()]
    said = [f"{row['pair']} with {row['augmentation']} ({row['top1']:.2f} %)" for row in (best, worst)]
    return f"{len(there)} of {len(table)} students are here: from {said[1]} to {said[0]}, each its run's best epoch on this split."


def published_robustness(table: pd.DataFrame) -> str:
    means = table.groupby(["label", "augmentation"], sort=False)["value"].mean().unstack().dropna(how="all")
    said = [
        f"{' '.join(label.split())}: from {row.min():.1f} ({row.idxmin()}) to {row.max():.1f} ({row.idxmax()})"
        for label, row in means.iterrows()
    ]
    return f"Means over the pairs. {'; '.join(said)}. One seed each: no ranking."


def compared(table: pd.DataFrame) -> list[str]:
    """A sentence a row of `comparisons`: the interval is of the one difference, p and verdict are adjusted."""
    return [
        f"{row.arm} {TELLS[row.verdict]} {row.other}: {row.mean:+.2f} ± {row.half_width:.2f} points "
        f"(n = {row.n}, adjusted p {'< 0.001' if row.p_holm < 0.001 else f'= {row.p_holm:.3f}'})."
        for row in table.itertuples()
    ]


def abstract(comparisons: pd.DataFrame, robust: pd.DataFrame, grid: pd.DataFrame) -> str:
    """A list in Markdown: what the study's tables support of the paper's abstract, what they contradict, and what they say beyond it."""
    large, small = MATCHED
    released = "R2KD, released"
    distance = ("R2KD cutmixpick", "KD cutmixpick")
    alone = {
        "each at its own weight": distance,
        "KL at four times its weight": large,
        "R2KD at a quarter of its weight": small,
    }
    field = {f"R2KD as released against {other}": (released, other) for other in ("DKD", "DIST")}
    field |= {
        f"R2KD against {other}, both with one view and the dense teacher": (one, other) for one, other in ONE_VIEW
    }
    parts = measured(robust)
    corrupted = parts.get(MEASURED["corrupted"], comparisons[:0])
    said = {
        "**Clean.** R2KD's distance (as released: a cosine that is not centred, a rank term without a gradient) in place of KL "
        "divergence, both with cutmixpick": [f"{how}: {_claim(comparisons, *pair)}" for how, pair in alone.items()],
        "R2KD as a whole; as released it has two views, and with them twice the passes of DKD and DIST": [
            *(f"{what}: {_claim(comparisons, *pair)}" for what, pair in field.items()),
            f"the pruned teacher in the mixture: {_claim(comparisons, released, 'R2KD cutmixpick')}",
        ],
        "**Augmentation.** Does it hurt KL divergence and help R2KD's distance? Points beyond a second clean view (cutmixpick, as "
        "released, is cutmix with other draws)": views(grid) or ["not measured yet"],
        "**Beyond the abstract.** R2KD as released against KD, both with cutmixpick": [
            f"{name[0].lower()}{name[1:]}: {_claim(rows, released, 'KD cutmixpick')}" for name, rows in parts.items()
        ],
        "Under corruption, the distance alone": [f"{how}: {_claim(corrupted, *pair)}" for how, pair in alone.items()],
    }
    return "\n".join(
        f"- {head}:\n" + "\n".join(f"  - {line.rstrip('.')}" for line in lines) for head, lines in said.items()
    )


def _claim(table: pd.DataFrame, arm: str, other: str) -> str:
    """What a pair of a table of comparisons says of the claim that the first is better."""
    rows = table[(table["arm"] == arm) & (table["other"] == other)]
    if rows.empty or rows["n"].iloc[0] < 3:
        return "too few seeds yet"
    row = rows.iloc[0]
    return f"{row['mean']:+.2f} ± {row['half_width']:.2f} points (n = {row['n']}), {JUDGED[row['verdict']]}"


def views(table: pd.DataFrame) -> list[str]:
    """A sentence a distance: what each view adds to it; and one of what it adds more to the second than to the first."""
    said = []
    for (name, kind), rows in table.groupby(["contrast", "kind"], sort=False):
        if kind not in ("view", "interaction"):
            continue
        told = rows[rows["verdict"] != "too few seeds"]
        cells = [
            f"{'their mean' if row.view == MEAN else row.view} {row.mean:+.1f} ± {row.half_width:.1f}"
            f"{' *' if row.verdict in ('higher', 'lower') else ''}"
            for row in told.itertuples()
        ]
        few = rows.loc[rows["verdict"] == "too few seeds", "view"]
        if few := [view for view in few if view != MEAN]:
            cells.append(f"{_listed(few)} {'has' if len(few) == 1 else 'have'} too few seeds yet")
        apart = told[told["verdict"].isin(["higher", "lower"])]
        counted = [str(count)] if (count := int((apart["view"] != MEAN).sum())) else []
        counted += ["the mean"] if (apart["view"] == MEAN).any() else []
        stars = f"{_listed(counted)} told apart from 0 (*)" if counted else "none told apart from 0"
        whose = name if kind == "view" else " more than to ".join(name.removeprefix("gain, ").split(" - "))
        said.append(f"Added to {whose}: {', '.join(cells)}{f'; {stars}' if len(told) else ''}.")
    return said


def spread(table: pd.DataFrame, rate: float) -> str:
    """What a table of mean spreads (view, teacher, rate in percent, mean, half_width) says of the views, and of pruning at `rate`."""
    dense = table[table["rate"] == 0].sort_values("mean")
    order = ", ".join(f"{row.view} ({row.mean:.2f} %)" for row in dense.itertuples())
    said = [f"By the dense teacher, from the lowest spread: {order}."]
    of_dense = dense.set_index("view")
    for kind in dict.fromkeys(table.loc[table["rate"] == rate, "teacher"]):
        rows = table[(table["rate"] == rate) & (table["teacher"] == kind)].set_index("view")
        apart = rows["mean"] - of_dense["mean"].loc[rows.index]
        beyond = apart.abs() > rows["half_width"] + of_dense["half_width"].loc[rows.index]
        lower, higher = int((beyond & (apart < 0)).sum()), int((beyond & (apart > 0)).sum())
        said.append(
            f"With {rate:g} % pruned, the {kind} teacher's spread is lower under {lower} and higher under {higher} of {len(rows)} "
            "views by more than the two intervals."
        )
    return " ".join(said)


def flattery(results: pd.DataFrame) -> str:
    """How much the best epoch on the test images flatters, over all runs, and what validation images would choose."""
    added = results["best_top1"] - results["last_top1"]
    said = f"Over {len(added)} runs the best epoch is {added.mean():.2f} points above the last on average ({added.min():.2f} to {added.max():.2f})."
    if "chosen_top1" in results:
        chosen = (results["chosen_top1"] - results["last_top1"]).mean()
        said += f" The epoch that the validation images choose is {chosen:+.2f} points from it."
    return said


def resolution(table: pd.DataFrame, family: int, seeds: int) -> str:
    """What so many seeds can find, by the spread of the differences of a table, alone and as one of a family of verdicts."""
    known = table[table["n"] >= 3]
    if known.empty:
        return "No pair has three seeds yet."
    spread = stats.deviations(known)
    alone, first = (stats.detectable(spread.median(), seeds, level=0.05 / count) for count in (1, family))
    return (
        f"Between seeds the differences vary with a standard deviation of {spread.min():.1f} to {spread.max():.1f} points (median "
        f"{spread.median():.1f}, {len(known)} pairs). With {seeds} seeds a test then finds, with 80 % chance, a true difference of "
        f"{alone:.1f} points at 5 %, and of {first:.1f} as the first of a family of {family}."
    )


def arithmetic(results: pd.DataFrame, pairs: int, unlike: int) -> str:
    """In what the students of a study were computed, and of how many pairs the two differ in it."""
    kinds = results["precision"].fillna("an unknown precision").value_counts()
    if len(kinds) < 2:
        return f"All {len(results)} students were computed in {kinds.index[0]}."
    counted = _listed([f"{count} in {kind}" for kind, count in kinds.items()])
    return (
        f"{len(results)} students were computed: {counted}. In {unlike} of the {pairs} pairs of one seed that are compared, here or in "
        "the grid, the two differ in that."
    )


def power(floor: tuple[float, int] | None) -> str:
    """What so many seeds can find above a noise floor."""
    if floor is None:
        return "The pilot's records are not here."
    told = ", ".join(f"{stats.detectable(floor[0], n):.2f} with {n}" for n in (3, 5, 10))
    return (
        f"Standard deviation of the difference: **{floor[0]:.2f} points** ({floor[1]} seeds). A paired test at 5 % then finds with 80 % "
        f"chance a true difference of so many points: {told} seeds. Methods that differ in more vary more."
    )


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


SEEN: dict[str, Callable[[pd.DataFrame], str]] = {
    function.__name__: function
    for function in (
        *(pruning_accuracy, pruning_outputs, pruning_layers, teacher_mixture, distances, answer_spread),
        *(students, training_curves, grid, comparisons, distance_weights, pruning_gain),
        *(best_epoch, measures, answer_spread_gain),
        *(robustness, robustness_students, corruption_differences, robust_comparisons, attacks, reliability, ambiguity),
        *(pruned_teachers, label_noise, ablation, switch_effects, published, published_robustness, search),
    )
} | {"grid_corrupted": grid, "confirmation": comparisons}
