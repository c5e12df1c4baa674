"""What the tests of a study's students found, as the tables that its figures are drawn from.

Every function takes experiments.tests_table: a row a test of a student, with the columns arm, method, augmentation, pruned, seed, and
test, name, level, n, top1, loss, ece, confidence. Intervals are over seeds.
"""

import pandas as pd

from . import stats
from .attacks import ATTACKS
from .corruptions import CORRUPTIONS

ARM = ["arm", "method", "augmentation", "pruned"]
MEASURES = ["clean", "corrupted", "error", "drop", "relative_drop", "mce", "relative_mce", "residual"]
ALL = "all"  # the row of the mean over corruptions


def by_severity(tests: pd.DataFrame) -> pd.DataFrame:
    """The rows of corruptions, with the columns corruption, family and severity; 0 are the clean images that were corrupted."""
    rows = tests[tests["test"] == "corruption"].rename(columns={"name": "corruption", "level": "severity"})
    rows = rows.assign(severity=rows["severity"].astype(int))
    names = rows.loc[rows["severity"] > 0, ["corruption"]].drop_duplicates()
    clean = rows[rows["severity"] == 0].drop(columns="corruption").merge(names, how="cross")
    rows = pd.concat([clean, rows[rows["severity"] > 0]], ignore_index=True)
    return rows.assign(family=[CORRUPTIONS[name].family for name in rows["corruption"]])


def families(tests: pd.DataFrame) -> pd.DataFrame:
    """arm, family, severity: mean, half_width, n of the accuracy, the mean over the corruptions of the family."""
    rows = by_severity(tests)
    rows["family"] = pd.Categorical(rows["family"], list(dict.fromkeys(entry.family for entry in CORRUPTIONS.values())))
    by_seed = (
        rows.groupby(["arm", "seed", "family", "severity"], sort=False, observed=True)["top1"].mean().reset_index()
    )
    by_seed = by_seed.sort_values(["family", "severity"], kind="stable").astype({"family": str})
    table = stats.mean_interval(by_seed, ["arm", "family", "severity"], "top1")
    order = {arm: i for i, arm in enumerate(dict.fromkeys(tests["arm"]))}
    return table.sort_values("arm", key=lambda arms: arms.map(order), kind="stable", ignore_index=True)


def summary(tests: pd.DataFrame, reference: str | None = None) -> pd.DataFrame:
    """A row a student: clean, corrupted, error, drop, relative_drop, with a reference mce and relative_mce, and residual."""
    rows = by_severity(tests)
    if rows.empty:
        return pd.DataFrame(columns=[*ARM, "seed", *MEASURES])
    return stats.at_equal_clean(stats.corruption_summary(rows, reference, by=(*ARM, "seed")))


def arms(summary: pd.DataFrame) -> pd.DataFrame:
    """For each measure and arm: mean, half_width, n of corrupted accuracy, its drop, and what is beyond clean accuracy."""
    tables = [
        stats.mean_interval(summary, ARM, measure).assign(measure=measure)
        for measure in ("corrupted", "drop", "residual")
    ]
    return pd.concat(tables, ignore_index=True)


def differences(tests: pd.DataFrame, reference: str) -> pd.DataFrame:
    """arm, corruption: the accuracy minus the reference's, the mean over severities, paired by seed; last the mean over all."""
    rows = by_severity(tests)
    rows = rows[rows["severity"] > 0]
    if rows["arm"].nunique() < 2:
        return pd.DataFrame(columns=["arm", "corruption", "mean", "half_width", "n", "family", "reference"])
    by_seed = rows.groupby(["arm", "seed", "corruption"], sort=False)["top1"].mean().reset_index()
    overall = by_seed.groupby(["arm", "seed"], sort=False)["top1"].mean().reset_index().assign(corruption=ALL)
    table = stats.paired_differences(pd.concat([by_seed, overall]), reference, "top1", by=["corruption"])
    family = {name: entry.family for name, entry in CORRUPTIONS.items()}
    table = table.assign(family=[family.get(name, ALL) for name in table["corruption"]], reference=reference)
    order = {name: i for i, name in enumerate([*CORRUPTIONS, ALL])}
    return table.sort_values("corruption", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def attacks(tests: pd.DataFrame) -> pd.DataFrame:
    """attack, unit, epsilon, arm: mean, half_width, n of the accuracy."""
    rows = tests[tests["test"] == "attack"].rename(columns={"level": "epsilon"})
    said = {name: (entry.label, "/255" if entry.unit < 1 else "") for name, entry in ATTACKS.items()}
    rows = rows.assign(attack=[said[n][0] for n in rows["name"]], unit=[said[n][1] for n in rows["name"]])
    return stats.mean_interval(rows, ["attack", "unit", "epsilon", "arm"], "top1")


def calibration(tests: pd.DataFrame) -> pd.DataFrame:
    """A row a student: ece_before and ece_after its temperature, loss_before and loss_after, and temperature."""
    rows = tests[tests["test"] == "calibration"]
    if rows.empty:
        return pd.DataFrame(
            columns=[*ARM, "seed", "ece_after", "ece_before", "loss_after", "loss_before", "temperature"]
        )
    wide = rows.pivot(index=[*ARM, "seed"], columns="name", values=["ece", "loss", "level"])
    wide.columns = ["_".join(names) for names in wide.columns]
    order = list(rows.drop_duplicates([*ARM, "seed"]).set_index([*ARM, "seed"]).index)
    return wide.rename(columns={"level_after": "temperature"}).drop(columns="level_before").loc[order].reset_index()


def reliability(tests: pd.DataFrame) -> pd.DataFrame:
    """arm, bin: confidence and top1 in percent, samples (pooled over seeds); ece_before, ece_after and temperature of the arm."""
    rows = tests[tests["test"] == "reliability"].rename(columns={"level": "bin", "n": "samples"})
    weighted = rows.assign(**{name: rows[name] * rows["samples"] for name in ("confidence", "top1")})
    pooled = weighted.groupby(["arm", "bin"], sort=False)[["confidence", "top1", "samples"]].sum().reset_index()
    pooled = pooled.assign(**{name: pooled[name] / pooled["samples"] for name in ("confidence", "top1")})
    found = calibration(tests).groupby("arm", sort=False)
    named = found[["ece_before", "ece_after", "temperature"]].mean().assign(n=found.size()).reset_index()
    return pooled.merge(named, on="arm").sort_values(["arm", "bin"], ignore_index=True, key=lambda c: _rank(c, tests))


def ambiguity(tests: pd.DataFrame, name: str = "entropy") -> pd.DataFrame:
    """arm, bin, measure (top1 in percent, loss in nats): mean, half_width, n, from the images the teacher is surest of."""
    rows = tests[(tests["test"] == "ambiguity") & (tests["name"] == name)].rename(columns={"level": "bin"})
    tables = [stats.mean_interval(rows, ["arm", "bin"], value).assign(measure=value) for value in ("top1", "loss")]
    return pd.concat(tables, ignore_index=True)


def _rank(column: pd.Series, tests: pd.DataFrame) -> pd.Series:
    """Arms in the order of the study; numbers as they are."""
    if column.name != "arm":
        return column
    return column.map({arm: i for i, arm in enumerate(dict.fromkeys(tests["arm"]))})
