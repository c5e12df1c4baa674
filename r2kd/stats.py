"""Intervals over seeds, paired differences, and what may be said of them."""

import pandas as pd


def mean_interval(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Over each group of rows: `mean`, `half_width` of the 95 % t-interval of the mean, `n`; the groups in their order.

    The interval is over training seeds, on one training set and one teacher. n = 1 has none (NaN).
    """
    from scipy import stats  # so that a machine that only trains does without

    groups = table.groupby(by, sort=False, dropna=False)[value]
    summary = groups.agg(mean="mean", deviation="std", n="count").reset_index()
    quantile = stats.t.ppf(0.975, (summary["n"] - 1).clip(lower=1))
    summary["half_width"] = quantile * summary["deviation"] / summary["n"] ** 0.5
    return summary.drop(columns="deviation")


def paired_difference(table: pd.DataFrame, arm: str, other: str, value: str) -> pd.DataFrame:
    """One row: mean, n and half_width of `value` of `arm` minus that of `other`, seed by seed.

    `table`: a row a run, with the columns arm, seed and `value`; what one of the two has no run for is left out.
    """
    of = {name: table[table["arm"] == name].set_index("seed")[value] for name in (arm, other)}
    difference = (of[arm] - of[other]).dropna().to_frame("difference").assign(arm=arm)
    return mean_interval(difference, ["arm"], "difference").drop(columns="arm")


def switch_effects(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """What each arm of the ablation changes in `value`, by seed: mean, half_width, n of arm minus "released", and a verdict.

    `table`: a row a run, with the columns arm, seed, top1, best_top1 and `value`. The switch `reported` trains nothing: of
    "top1" its row is the released arm's last minus its best epoch.
    """
    wide = table.pivot_table(index="seed", columns="arm", values=value, sort=False)
    changed = wide.drop(columns="released").sub(wide["released"], axis=0)
    if value == "top1":
        released = table[table["arm"] == "released"].set_index("seed")
        changed.insert(len(changed.columns) - 1, "reported: last", released["top1"] - released["best_top1"])
    long = changed.melt(var_name="arm", value_name="difference", ignore_index=False).reset_index()
    effects = mean_interval(long, ["arm"], "difference")
    effects["verdict"] = [verdict(*row) for row in zip(effects["mean"], effects["half_width"], strict=True)]
    same = (effects["arm"] == "reported: last") & (effects["verdict"] == "hurts")
    effects.loc[same, "verdict"] = "a lower number for the same students"
    return effects


def verdict(mean: float, half_width: float) -> str:
    """In words, of a difference where more is better and its interval."""
    if half_width != half_width:  # NaN
        return "one seed, no interval"
    if abs(mean) <= half_width:
        return "no difference we can see at this scale"
    return "helps" if mean > 0 else "hurts"
