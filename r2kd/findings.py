"""What a study found on clean images: tables of paired differences; words.py has the sentences that they allow.

`results` is experiments.results_table: a row a student, with arm, seed and its accuracies. Differences are paired by seed; a
family of verdicts is one table, Holm-adjusted in it; see stats.judged.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import reduce
from itertools import product
from operator import sub
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from . import records, stats
from .augmentation import AUGMENTATIONS, PICKED
from .experiments import Study
from .profiles import CHANGES, GRID, MEAN, PULLS, setting, subsets
from .tested import ARM

TWINS = {"cutmixpick": "cutmix"}  # a view that can be another once more; see `twin`
RADII = (0.5, 1, 2)  # in 1/255, of the attack that comparisons are made under: beyond them all are near 0


def grid_arms(study: Study) -> dict[tuple[str, str], str]:
    """(method's label, view) -> arm, of the arms that differ in method and view alone: no option turned, the dense teacher."""
    found, functions = {}, {}
    for arm, config in study.arms.items():
        plain = not (config.method.changed or config.view.changed or config.pruned)
        usual = all(config.method[name] == value for name, value in config.method.entry.usual.items())
        alike = config == replace(study.first, method=config.method, view=config.view, pruning=config.pruning)
        # two functions may have one label: lambdas
        same = functions.setdefault(config.method.label, config.method.entry.function) is config.method.entry.function
        if config.taught and plain and usual and alike and same and config.view.name in GRID:
            found.setdefault((config.method.label, config.view.name), arm)
    views = pd.Series([method for method, _ in found], dtype=object).value_counts()
    return {(method, view): arm for (method, view), arm in found.items() if views[method] > 1}


def grid(study: Study, results: pd.DataFrame, value: str = "last_top1") -> pd.DataFrame:
    """The grid as paired differences, one family, in which what is not trained yet counts: contrast, kind, view, mean, half_width,
    n, p, p_holm, verdict.

    kind "view": what a view adds to a distance beyond a second view that changes nothing (where there is none, beyond one
    view); "one view": what having no second view adds; "distance": the second distance minus the first under a view;
    "interaction": what a view adds to the second minus what it adds to the first. Of the kinds view and interaction the last
    rows, with MEAN as their view, are the means over all augmentations, where all are there: a family of their own.
    """
    wide = results.pivot_table(index="seed", columns="arm", values=value)
    wide = wide.reindex(columns=[*grid_arms(study).values()])
    cells = [(cell.contrast, cell.kind, cell.view, cell.difference(wide)) for cell in grid_cells(study)]
    tables = [stats.judged(_intervals(family), family=len(family)) for family in (cells, _means(cells, twin(study)))]
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


class Cell(NamedTuple):
    """A cell of the grid, as it was designed: the first arm of a pair minus the second; of two pairs, the first's difference minus
    the second's."""

    contrast: str
    kind: str
    view: str
    pairs: tuple[tuple[str, str], ...]

    def difference(self, wide: pd.DataFrame) -> pd.Series:
        """By seed, of a table with a column an arm."""
        return reduce(sub, (wide[arm] - wide[other] for arm, other in self.pairs))


def grid_cells(study: Study) -> list[Cell]:
    """All cells of the grid, trained or not, in their order; the means over the views are none of them."""
    arms = grid_arms(study)
    methods = list(dict.fromkeys(method for method, _ in arms))
    of: dict[str, dict[str, tuple[str, str]]] = {}  # by method and view: the arm and its control
    cells = []
    for method in methods:
        mine = {view: arms[(method, view)] for view in GRID if (method, view) in arms}
        control = min(mine, key=lambda view: (not AUGMENTATIONS[view].control, AUGMENTATIONS[view].drawn))
        of[method] = {view: (arm, mine[control]) for view, arm in mine.items() if view != control}
        for view, pair in of[method].items():
            cells.append(Cell(method, "view" if AUGMENTATIONS[view].drawn else "one view", view, (pair,)))
    for method in methods[1:]:
        first = methods[0]
        name = f"{method} - {first}"
        for view in GRID:
            if (method, view) in arms and (first, view) in arms:
                cells.append(Cell(name, "distance", view, ((arms[method, view], arms[first, view]),)))
        for view in GRID:
            if AUGMENTATIONS[view].drawn and view in of[method] and view in of[first]:
                cells.append(Cell(f"gain, {name}", "interaction", view, (of[method][view], of[first][view])))
    return cells


def twin(study: Study) -> dict[str, str]:
    """{"cutmixpick": "cutmix"} where the one is the other with draws of its own: as released it keeps every image of a batch of up to
    64; else empty."""
    if study.first.recipe.batch_size > PICKED:
        return {}
    of = {view: arm for (_, view), arm in grid_arms(study).items()}
    return {view: other for view, other in TWINS.items() if view in of and study.arms[of[view]]["pick"] == "before"}


Difference = tuple[str, str, str, pd.Series]  # contrast, kind, view, and the difference by seed


def _means(cells: list[Difference], twins: Mapping[str, str]) -> list[Difference]:
    """Over the views that augment, of each contrast and kind that has all of them; two that are one view count as one, their mean."""
    wanted = [view for view in GRID if AUGMENTATIONS[view].drawn and not AUGMENTATIONS[view].control]
    own = [twins.get(view, view) for view in wanted]
    weight = {view: 1 / (len(set(own)) * own.count(of)) for view, of in zip(wanted, own, strict=True)}
    there: dict[tuple[str, str], dict[str, pd.Series]] = {}
    for contrast, kind, view, difference in cells:
        if kind in ("view", "interaction") and view in weight:
            there.setdefault((contrast, kind), {})[view] = weight[view] * difference
    return [(*key, MEAN, sum(views.values())) for key, views in there.items() if len(views) == len(wanted)]


def _intervals(cells: list[Difference]) -> pd.DataFrame:
    keys = ["contrast", "kind", "view"]
    rows = [
        stats.mean_interval(
            difference.dropna().to_frame("d").assign(contrast=contrast, kind=kind, view=view), keys, "d"
        )
        for contrast, kind, view, difference in cells
        if difference.notna().any()
    ]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=[*keys, "mean", "n", "half_width"])


def weights(study: Study, results: pd.DataFrame, value: str = "last_top1") -> pd.DataFrame:
    """Accuracy under cutmixpick by the weight of the distance, in which alone the arms of a method differ; empty where none does.

    Columns: arm (the method), weight, pull (the weight in units of profiles.PULLS), mean, half_width, n.
    """
    usual, tables = grid_arms(study), []
    for method, (key, unit) in PULLS.items():
        plain = study.arms.get(usual.get((method, "cutmixpick")))
        of = {
            arm: config[key]
            for arm, config in study.arms.items()
            if plain and config.method.label == method and config == plain.with_settings({key: config[key]})
        }
        rows = results.assign(weight=results["arm"].map(of), arm=method).dropna(subset="weight").sort_values("weight")
        tables.append(rows.assign(pull=rows["weight"] / unit))
    table = stats.mean_interval(pd.concat(tables), ["arm", "weight", "pull"], value)
    return table if table["arm"].value_counts().gt(1).any() else table[:0]


def searched(results: pd.DataFrame) -> pd.DataFrame:
    """The settings that were searched, the best mean on the validation images first: arm, method, pruned, mean, half_width, n, each.

    Of the last epoch, which is what the confirmation reads. Raises ValueError where no student is there.
    """
    if results.empty:
        raise ValueError("no student of the search is trained or recorded yet: run it without --recorded")
    table = stats.mean_interval(results, ARM, "last_validation_top1")
    return table.sort_values("mean", ascending=False, kind="stable", ignore_index=True)


def searched_changes(results: pd.DataFrame, value: str = "last_validation_top1") -> pd.DataFrame:
    """What each of profiles.CHANGES adds, the mean over the settings of the others, paired by seed: arm (the change), mean,
    half_width, n, each."""
    wide, rows = results.pivot_table(index="seed", columns="arm", values=value), []
    for change in CHANGES:
        pairs = [(setting(chosen), setting(chosen - {change})) for chosen in subsets() if change in chosen]
        there = [wide[one] - wide[other] for one, other in pairs if {one, other} <= set(wide)]
        if there:
            rows.append(pd.DataFrame({"arm": change, "difference": sum(there) / len(there)}))
    return stats.mean_interval(pd.concat(rows), ["arm"], "difference")


def twice(study: Study, results: pd.DataFrame, value: str = "last_top1") -> pd.DataFrame:
    """What chance alone does to a paired difference: a distance with the same view drawn twice, as cutmixpick minus cutmix; see `twin`.

    arm (the method), mean, half_width, n, each; empty where the grid does not have both, or picks.
    """
    arms, rows = grid_arms(study), []
    for method, (view, other) in product(dict.fromkeys(method for method, _ in arms), twin(study).items()):
        picked, mixed = arms.get((method, view)), arms.get((method, other))
        if picked and mixed:
            rows.append(stats.paired_difference(results, picked, mixed, value).assign(arm=method))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["arm", "mean", "half_width", "n"])


def comparisons(study: Study, results: pd.DataFrame, value: str = "last_top1") -> pd.DataFrame:
    """The study's comparisons, one family; see stats.compared."""
    return stats.compared(results, study.comparisons, value)


def unlike_pairs(study: Study, results: pd.DataFrame) -> tuple[int, int]:
    """(how many pairs of students of one seed the comparisons and the grid are made of, how many of those were not computed in one
    precision)."""
    there = results.assign(precision=results["precision"].fillna("unknown"))
    wide = there.pivot(index="seed", columns="arm", values="precision")
    single = (cell.pairs[0] for cell in grid_cells(study) if len(cell.pairs) == 1)
    asked = dict.fromkeys((*study.comparisons, *single))
    pairs = [wide[list(pair)].dropna() for pair in asked if set(pair) <= set(wide)]
    return sum(map(len, pairs)), sum(int((both.nunique(axis=1) > 1).sum()) for both in pairs)


def switch_effects(of: Study, results: pd.DataFrame, value: str) -> pd.DataFrame:
    """What each switch of experiments.ablation changes in `value`, top1 or another, against "released": its comparisons, one family.

    The switch `reported` trains nothing and has no verdict: of "top1" its row is the released arm's last minus its best epoch.
    """
    table = comparisons(of, results, value)
    if value == "top1":
        released = results[results["arm"] == "released"]
        reported = released.assign(arm="reported: last", lost=released["top1"] - released["best_top1"])
        reported = stats.mean_interval(reported, ["arm"], "lost").assign(verdict="the same students")
        table = pd.concat([table, reported], ignore_index=True)
    return table


def robust_comparisons(study: Study, summary: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """The same comparisons, a family for each measure: corrupted, residual (at equal clean accuracy) and attacked, in points.

    summary: tested.summary. residual_compared: by a line through the compared arms alone, as a few students far from them may hold
    the slope; `slope` says both. attacked: under PGD in the cube at each of RADII, one family; `radius` says which.
    """
    tables = []
    if len(summary):
        among = stats.at_equal_clean(summary, through={arm for pair in study.comparisons for arm in pair})
        tables.append(comparisons(study, summary, "corrupted").assign(measure="corrupted"))
        for name, students in {"residual": summary, "residual_compared": among}.items():
            table = comparisons(study, students, "residual")
            tables.append(table.assign(measure=name, slope=students["slope"].iloc[0]))
    rows = tests[(tests["test"] == "attack") & (tests["name"] == "pgd") & tests["level"].isin(RADII)]
    attacked = [comparisons(study, at, "top1").assign(radius=radius) for radius, at in rows.groupby("level")]
    if attacked:
        family = len(attacked) * len(study.comparisons)
        tables.append(stats.judged(pd.concat(attacked, ignore_index=True), family=family).assign(measure="attacked"))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["arm", "other", "measure"])


def measures(results: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """arm and measure: mean, half_width, n, of what is told of a student beside its last epoch's accuracy.

    top5, ece, confidence, agreement and flattery in percent or points, loss and entropy in nats. flattery: the best epoch on the
    test images minus the last.
    """
    answers = tests[tests["test"] == "answers"].pivot_table(index=["arm", "seed"], columns="name", values="value")
    clean = tests[tests["test"] == "clean"].set_index(["arm", "seed"])[["loss", "ece"]]
    wide = results.set_index(["arm", "seed"]).join(answers).join(clean).reset_index()
    wide = wide.assign(flattery=wide["best_top1"] - wide["last_top1"])
    names = ("top5", "loss", "ece", "confidence", "entropy", "agreement", "rank_correlation", "flattery")
    tables = [stats.mean_interval(wide, ARM, name).assign(measure=name) for name in names if name in wide]
    return pd.concat(tables, ignore_index=True)


def spread_and_gain(spread: pd.DataFrame, table: pd.DataFrame, twins: Collection[str] = ()) -> pd.DataFrame:
    """What the teacher's test says of a view beside what the view adds to students: a row for each view and distance of the grid.

    spread: the table of the figure answer_spread (view, teacher, rate, and mean and half_width in percent), of which the dense
    teacher counts. table: `grid`. twins: `twin`, views that are another once more. Columns: method, view, spread and
    spread_half_width, mean, half_width, n (of the gain, in points), and of the method rank_correlation, its p, and over how many
    views: those that are no twins; of fewer than five, where no order has a p below 0.05, these are missing.
    """
    dense = spread.loc[spread["rate"] == 0, ["view", "mean", "half_width"]]
    dense = dense.rename(columns={"mean": "spread", "half_width": "spread_half_width"})
    gains = table[table["kind"] == "view"].rename(columns={"contrast": "method"})
    joined = gains.merge(dense, on="view")
    own = joined[~joined["view"].isin(twins)].groupby("method", sort=False)
    ranks = [
        (method, *stats.rank_correlation(rows["spread"], rows["mean"]), len(rows))
        for method, rows in own
        if len(rows) >= 5
    ]
    ranks = pd.DataFrame(ranks, columns=["method", "rank_correlation", "p", "views"])
    columns = ["method", "view", "spread", "spread_half_width", "mean", "half_width", "n"]
    return joined[columns].merge(ranks, on="method", how="left")


def noise_floor(path: Path) -> tuple[float, int] | None:
    """(standard deviation, seeds) of the difference, in points, between trainings that differ in precision alone; None without records.

    path: the records of one arm in two precisions.
    """
    if not path.exists():
        return None
    rows = pd.DataFrame(records.read([path]).values()).query("method == method")  # students: a teacher has no method
    twice = rows.pivot(index="seed", columns="precision", values="last_top1").dropna()
    return float(twice.diff(axis=1).iloc[:, -1].std()), len(twice)
