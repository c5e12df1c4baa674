"""Intervals over seeds, paired differences, robustness to corruptions, and what may be said of them."""

from collections.abc import Collection, Sequence
from itertools import permutations

import numpy as np
import pandas as pd

BINS = 15  # of confidence, from 0 to 1: of a calibration error and of a reliability diagram


def mean_interval(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Over each group of rows: `mean`, `half_width` of the 95 % t-interval of the mean, `n`, `each`; the groups in their order.

    The interval is over training seeds, on one training set and one teacher. n = 1 has none (NaN). each: the n values, as words.
    Raises ValueError for two rows of one group and seed: n counts seeds.
    """
    from scipy import stats  # so that a machine that only trains does without

    if "seed" in table and table.duplicated(once := [*by, "seed"]).any():
        raise ValueError(f"several rows of one {' and '.join(once)}: average them first")
    groups = table.groupby(by, sort=False, dropna=False)[value]
    each = lambda values: " ".join(f"{found:.6g}" for found in values.dropna())  # noqa: E731
    summary = groups.agg(mean="mean", deviation="std", n="count", each=each).reset_index()
    quantile = stats.t.ppf(0.975, (summary["n"] - 1).clip(lower=1))
    summary["half_width"] = quantile * summary["deviation"] / summary["n"] ** 0.5
    return summary.drop(columns="deviation")


def numbers(each: str | float) -> list[float]:
    """Of a cell with several, as `each` is; pandas has read a single one as a number."""
    return [float(word) for word in str(each).split()]


def binomial_errors(percent: pd.Series, images: pd.Series) -> np.ndarray:
    """(2, rows): how far the 95 % interval of an accuracy reaches below and above it, in points, by the images alone (Wilson, 1927).

    NaN where either is missing.
    """
    from scipy import stats  # so that a machine that only trains does without

    share, z = percent.to_numpy(float) / 100, stats.norm.ppf(0.975)
    n = images.to_numpy(float, na_value=np.nan)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return 100 * np.abs([share - (centre - half), centre + half - share])


def paired_difference(table: pd.DataFrame, arm: str, other: str, value: str) -> pd.DataFrame:
    """One row: mean, n, each and half_width of `value` of `arm` minus that of `other`, seed by seed.

    `table`: a row a run, with the columns arm, seed and `value`; what one of the two has no run for is left out.
    """
    of = {name: table[table["arm"] == name].set_index("seed")[value] for name in (arm, other)}
    difference = (of[arm] - of[other]).dropna().to_frame("difference").assign(arm=arm)
    return mean_interval(difference, ["arm"], "difference").drop(columns="arm")


def paired_differences(table: pd.DataFrame, reference: str, value: str, by: Sequence[str] = ()) -> pd.DataFrame:
    """A row for each arm but the reference and each group of `by`: arm, *by, and mean, half_width, n, each of a difference.

    The difference is `value` of the arm minus that of the reference, seed by seed; an arm without a common seed has no
    row. Raises ValueError for a reference that is not there, and for two rows of one arm, group and seed.
    """
    _check_arm(table, reference)
    by = list(by)
    is_reference = table["arm"] == reference
    subtracted = table.loc[is_reference, [*by, "seed", value]].rename(columns={value: "subtracted"})
    pairs = table[~is_reference].merge(subtracted, on=[*by, "seed"])
    pairs["difference"] = pairs[value] - pairs["subtracted"]
    differences = mean_interval(pairs.dropna(subset="difference"), ["arm", *by], "difference")
    return differences[["arm", *by, "mean", "half_width", "n", "each"]]


def corruption_summary(
    table: pd.DataFrame, reference: str | None = None, by: Sequence[str] = ("arm", "seed")
) -> pd.DataFrame:
    """A row a model, told apart by the columns `by`: clean, corrupted, error, drop, relative_drop; mce, relative_mce.

    `table`: a row a model and test, with the columns `by`, corruption, severity (0 is clean: one row, or one a
    corruption) and top1 in percent.

    clean: top1 at severity 0. corrupted: top1, mean over corruptions of the mean over severities, unnormalised, as
    CIFAR-C is reported by AugMix (Hendrycks et al., ICLR 2020) and RobustBench. error: 100 - corrupted. drop: clean -
    corrupted, in points. relative_drop: drop in percent of clean.

    With a reference, an arm (`by` then holds arm and seed): mce and relative_mce in percent, Hendrycks & Dietterich,
    ICLR 2019. For each corruption, the sum over severities of the error (relative: of the error minus the clean error)
    is divided by that of the reference of the same seed; then the mean over corruptions. The reference has 100. NaN
    where the reference has no such seed, or where the divisor is not above 0 (relative: the reference loses nothing
    under a corruption).

    Raises ValueError for a reference that is not there or has two models of one seed, for models that were not all
    tested on clean images and under the same corruptions and severities, and for two rows of one model and test.
    """
    by = list(by)
    if reference is not None:
        _check_arm(table, reference)
    models = table[by].drop_duplicates(ignore_index=True)
    # by number, as pandas does not find again an index of several columns that holds NaN
    numbered = table.assign(model=table.groupby(by, sort=False, dropna=False).ngroup())
    corrupted = numbered[numbered["severity"] > 0]
    tests = corrupted.pivot(index="model", columns=["corruption", "severity"], values="top1").reindex(models.index)
    clean = numbered[numbered["severity"] == 0].groupby("model")["top1"].mean().reindex(models.index)
    lacking = tests.isna().any(axis=1) | clean.isna()
    if tests.empty or lacking.any():
        names = models[lacking].to_dict("records")
        raise ValueError(f"not tested clean and under all the corruptions and severities: {names or 'any model'}")
    accuracy = tests.T.groupby(level="corruption").mean().T
    summary = models.assign(clean=clean, corrupted=accuracy.mean(axis=1))
    summary["error"] = 100 - summary["corrupted"]
    summary["drop"] = clean - summary["corrupted"]
    summary["relative_drop"] = 100 * summary["drop"] / clean.where(clean > 0)
    if reference is not None:
        summary["mce"] = _percent_of_reference(100 - accuracy, models, reference)
        summary["relative_mce"] = _percent_of_reference(accuracy.rsub(clean, axis=0), models, reference)
    return summary


def _percent_of_reference(errors: pd.DataFrame, models: pd.DataFrame, reference: str) -> pd.Series:
    """(models,) errors in percent of the reference arm's of the same seed, mean over the columns; NaN where one is."""
    is_reference = models["arm"] == reference
    by_seed = errors[is_reference].set_axis(models.loc[is_reference, "seed"])
    if by_seed.index.has_duplicates:
        raise ValueError(f"the reference {reference!r} has several models of one seed")
    divisor = by_seed.reindex(models["seed"]).set_axis(errors.index)
    # all models have the same severities, so that means divide as sums do; 1e-9: what rounding leaves of 0
    return (100 * errors / divisor.where(divisor > 1e-9)).mean(axis=1, skipna=False)


def _check_arm(table: pd.DataFrame, arm: str) -> None:
    """Raises ValueError for an arm without rows."""
    if arm not in set(table["arm"]):
        raise ValueError(f"no arm {arm!r}; there are {', '.join(map(str, table['arm'].unique()))}")


def at_equal_clean(
    summary: pd.DataFrame, value: str = "corrupted", through: Collection[str] | None = None
) -> pd.DataFrame:
    """A copy of a table of students with `residual`, `value` minus what clean accuracy predicts, and `slope`.

    The prediction is one least-squares line of `value` on `clean` through all rows, or those of the arms `through`, after the
    effective robustness of Taori et al., NeurIPS 2020. So a residual is relative to the other students of the table and
    changes with them, and the slope (units of `value` a point, the same in every row) is of differences between students: it
    says nothing of what more clean accuracy would do to one. mean_interval of `residual` by arm says which arm is better than its
    clean accuracy explains.

    Rows where either is missing count for nothing and have no residual. Both columns are NaN with fewer than three
    rows that count, or where `clean` is the same in all.
    """
    drawn = summary if through is None else summary[summary["arm"].isin(through)]
    known = drawn[["clean", value]].dropna()
    slope = intercept = np.nan
    if len(known) >= 3 and np.ptp(known["clean"]) > 1e-9:
        slope, intercept = np.polyfit(known["clean"], known[value], 1)
    return summary.assign(residual=summary[value] - (slope * summary["clean"] + intercept), slope=slope)


def rank_correlation(one: pd.Series, other: pd.Series) -> tuple[float, float]:
    """(Spearman's, the share of all orders whose is at least as far from 0): for a few values, as all orders are tried."""
    ranks, others = one.rank().reset_index(drop=True), other.rank().reset_index(drop=True)
    found = ranks.corr(others)
    orders = [abs(ranks.corr(pd.Series(order))) for order in permutations(others)]
    return found, sum(far >= abs(found) - 1e-9 for far in orders) / len(orders)


def compared(table: pd.DataFrame, pairs: Sequence[tuple[str, str]], value: str) -> pd.DataFrame:
    """A row a pair of arms: arm, other, mean, half_width, n, each of `value` of the arm minus that of the other, paired by seed.

    With p, p_holm and verdict, see `judged`: the pairs are one family, in which one that has no seeds yet counts. A pair of which
    an arm is not there has no row.
    """
    there = [pair for pair in pairs if set(pair) <= set(table["arm"])]
    rows = [paired_difference(table, arm, other, value).assign(arm=arm, other=other) for arm, other in there]
    columns = ["arm", "other", "mean", "half_width", "n", "each"]
    found = pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)
    return judged(found, family=len(pairs))


def judged(table: pd.DataFrame, level: float = 0.05, family: int = 0) -> pd.DataFrame:
    """The same rows, each a mean, a half_width of its 95 % t-interval and n, as one family of verdicts.

    p: of the two-sided t-test that the mean is 0. p_holm: adjusted, so that of all true zeros of the family one is called
    a difference in at most 5 of 100 such tables. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    family: how many were designed, if more than have a p: a verdict of a study under way must not rest on what is missing.
    verdict: "higher" or "lower" where p_holm is below `level`, else "not told apart"; of fewer than three seeds "too few seeds".
    """
    from scipy import stats  # so that a machine that only trains does without

    if table.empty:
        return table.assign(p=[], p_holm=[], verdict=[])
    errors = deviations(table) / table["n"] ** 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf((table["mean"].abs() / errors).astype(float), (table["n"].astype(int) - 1).clip(lower=1))
    p = pd.Series(np.where(table["mean"] == 0, 1.0, p), index=table.index).where(table["half_width"].notna())
    order = p.dropna().sort_values(kind="stable")
    adjusted = (order * (max(family, len(order)) - np.arange(len(order)))).cummax().clip(upper=1)
    told = table.assign(p=p, p_holm=adjusted.reindex(table.index))
    sign = np.where(told["mean"] > 0, "higher", "lower")
    verdicts = np.where(told["p_holm"] < level, sign, "not told apart")
    return told.assign(verdict=np.where(told["p_holm"].isna() | (told["n"] < 3), "too few seeds", verdicts))


def deviations(table: pd.DataFrame) -> pd.Series:
    """The standard deviation between seeds, of each row with a half_width of its 95 % t-interval and n; NaN of one seed."""
    from scipy import stats  # so that a machine that only trains does without

    freedom = (table["n"].astype(int) - 1).clip(lower=1)
    return table["half_width"] * table["n"] ** 0.5 / stats.t.ppf(0.975, freedom)


def detectable(deviation: float, n: int, power: float = 0.8, level: float = 0.05) -> float:
    """The true mean difference that a two-sided paired t-test at this level finds with this power, from n pairs.

    `deviation`: the standard deviation of the paired differences, of which the result has the unit. Raises ValueError for n < 3.
    """
    from scipy import optimize, stats

    if n < 3:
        raise ValueError(f"the power of a paired test takes three pairs at least, not {n}")
    quantile = stats.t.ppf(1 - level / 2, n - 1)
    missing = lambda shift: stats.nct.sf(quantile, n - 1, shift) - power  # noqa: E731
    return deviation * optimize.brentq(missing, 0, 3 * quantile + 2) / n**0.5
