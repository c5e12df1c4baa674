from r2kd import stats

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

TESTS = [("noise", 0), ("noise", 1), ("noise", 2), ("blur", 0), ("blur", 1), ("blur", 2)]


def rows_of(models, tests=TESTS):
    """A row a model and test, of {(arm, seed): top1 of each test}."""
    rows = [(*model, *test, value) for model, top1 in models.items() for test, value in zip(tests, top1, strict=True)]
    return pd.DataFrame(rows, columns=["arm", "seed", "corruption", "severity", "top1"])


A = [80.0, 60, 40, 80, 70, 50]  # errors: noise 40 + 60, blur 30 + 50; less the clean 20 each: 60, 40
B = [88.0, 75, 45, 88, 85, 55]  # errors: noise 25 + 55, blur 15 + 45; less the clean 12 each: 56, 36
accuracies = st.lists(st.floats(0, 100), min_size=6, max_size=6)


def test_a_corruption_summary_by_hand():
    summary = stats.corruption_summary(rows_of({("b", 0): B, ("a", 0): A}), "a")
    assert summary["arm"].tolist() == ["b", "a"] and summary["seed"].tolist() == [0, 0]
    assert summary["clean"].tolist() == [88, 80]
    assert summary["corrupted"].tolist() == pytest.approx([(60 + 70) / 2, (50 + 60) / 2])
    assert summary["error"].tolist() == pytest.approx([35, 45])
    assert summary["drop"].tolist() == pytest.approx([23, 25])
    assert summary["relative_drop"].tolist() == pytest.approx([100 * 23 / 88, 100 * 25 / 80])
    assert summary["mce"].tolist() == pytest.approx([100 * (80 / 100 + 60 / 80) / 2, 100])
    assert summary["relative_mce"].tolist() == pytest.approx([100 * (56 / 60 + 36 / 40) / 2, 100])


def test_without_a_reference_there_is_no_mce():
    summary = stats.corruption_summary(rows_of({("b", 0): B}))
    assert list(summary) == ["arm", "seed", "clean", "corrupted", "error", "drop", "relative_drop"]


def test_a_corruption_of_few_severities_counts_as_one_of_many():
    tests = [("clean", 0), ("noise", 20), ("noise", 40), ("noise", 60), ("blur", 4)]
    (row,) = stats.corruption_summary(rows_of({("a", 0): [90, 60, 50, 40, 80]}, tests)).to_dict("records")
    assert row["clean"] == 90 and row["corrupted"] == pytest.approx((50 + 80) / 2)


def test_the_reference_is_that_of_the_same_seed():
    worse = [70.0, 50, 30, 70, 60, 40]  # errors: noise 50 + 70, blur 40 + 60
    table = rows_of({("a", 0): A, ("a", 1): worse, ("b", 1): B, ("b", 0): B, ("b", 2): B})
    mce = stats.corruption_summary(table, "a").set_index(["arm", "seed"])["mce"]
    assert mce["b", 0] == pytest.approx(77.5) and mce["b", 1] == pytest.approx(100 * (80 / 120 + 60 / 100) / 2)
    assert mce["a"].tolist() == pytest.approx([100, 100])
    assert np.isnan(mce["b", 2])


@given(accuracies, accuracies)
def test_the_reference_has_100_and_error_and_drop_follow_from_the_accuracies(first, second):
    summary = stats.corruption_summary(rows_of({("a", 0): first, ("b", 0): second}), "a")
    for name in ("mce", "relative_mce"):
        assert summary[name][0] == pytest.approx(100) or np.isnan(summary[name][0])
    assert not np.isinf(summary.drop(columns=["arm", "seed"]).to_numpy(float)).any()
    assert (summary["corrupted"] + summary["error"]).tolist() == pytest.approx([100, 100])


def test_what_would_be_divided_by_nothing_is_missing():
    unhurt = [80.0, 60, 40, 80, 90, 70]  # blur takes away 10 and -10
    perfect = [99.0, 60, 40, 99, 100, 100]
    blind = [0.0, 0, 0, 0, 1, 1]
    mce = ["mce", "relative_mce"]
    summary = stats.corruption_summary(rows_of({("a", 0): unhurt, ("b", 0): B}), "a")
    assert summary[mce].isna().to_numpy().tolist() == [[False, True]] * 2
    summary = stats.corruption_summary(rows_of({("a", 0): perfect, ("b", 0): B}), "a")
    assert summary[mce].isna().to_numpy().tolist() == [[True, True]] * 2
    summary = stats.corruption_summary(rows_of({("a", 0): blind, ("b", 0): B}))
    assert summary["relative_drop"].isna().tolist() == [True, False]


def test_models_are_told_apart_by_the_columns_that_are_named():
    table = pd.concat([rows_of({("a", 0): A}), rows_of({("a", 0): B}).assign(method="kd")], ignore_index=True)
    summary = stats.corruption_summary(table, by=["method", "arm", "seed"])
    assert summary["clean"].tolist() == [80, 88] and pd.isna(summary["method"][0])
    with pytest.raises(ValueError, match="duplicate"):
        stats.corruption_summary(table)
    with pytest.raises(ValueError, match="the reference 'a' has several models of one seed"):
        stats.corruption_summary(table, "a", by=["method", "arm", "seed"])


@pytest.mark.parametrize("lost", ["severity > 0 and corruption == 'blur'", "severity == 2", "severity == 0"])
def test_models_that_were_tested_differently_are_not_compared(lost):
    table = rows_of({("a", 0): A, ("b", 3): B})
    incomplete = table.drop(table.query(f"arm == 'b' and {lost}").index)
    with pytest.raises(ValueError, match=r"not tested.*\[{'arm': 'b', 'seed': 3}\]"):
        stats.corruption_summary(incomplete)
    with pytest.raises(ValueError, match="not tested"):
        stats.corruption_summary(table.assign(top1=table["top1"].where(table.index != 1)))


def test_a_table_of_clean_images_alone_has_no_corruption_summary():
    with pytest.raises(ValueError, match=r"not tested.*any model"):
        stats.corruption_summary(rows_of({("a", 0): A}).query("severity == 0"))


def test_a_reference_that_is_not_there_is_named():
    table = rows_of({("a", 0): A, ("b", 0): B})
    with pytest.raises(ValueError, match="no arm 'c'; there are a, b"):
        stats.corruption_summary(table, "c")
    with pytest.raises(ValueError, match="no arm 'c'; there are a, b"):
        stats.paired_differences(table, "c", "top1", ["corruption", "severity"])


def students(**corrupted):
    """A summary of arms with three seeds each, clean 70, 80, 90."""
    parts = [pd.DataFrame({"arm": arm, "clean": [70.0, 80, 90], "corrupted": y}) for arm, y in corrupted.items()]
    return pd.concat(parts, ignore_index=True)


def test_students_on_one_line_are_as_good_as_their_clean_accuracy():
    summary = students(a=[45.0, 50, 55], b=[45.0, 50, 55])
    table = stats.at_equal_clean(summary)
    assert table["slope"].tolist() == pytest.approx([0.5] * 6)
    assert table["residual"].tolist() == pytest.approx([0] * 6, abs=1e-9)
    assert "residual" not in summary and len(table) == 6


def test_an_arm_that_is_better_at_equal_clean_accuracy_lies_above_the_line():
    table = stats.at_equal_clean(students(a=[45.0, 50, 55], b=[49.0, 54, 59]))
    means = stats.mean_interval(table, ["arm"], "residual").set_index("arm")["mean"]
    assert means["a"] == pytest.approx(-2) and means["b"] == pytest.approx(2)
    assert table["slope"].tolist() == pytest.approx([0.5] * 6)


def test_the_line_is_the_least_squares_line_of_any_column():
    table = stats.at_equal_clean(students(a=[1.0, 3, 2]).rename(columns={"corrupted": "mce"}), "mce")
    assert table["slope"].tolist() == pytest.approx([0.05] * 3)  # (10 * 2 - 10 * 1) / (10² + 10²)
    assert table["residual"].tolist() == pytest.approx([-0.5, 1, -0.5])


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=3, max_size=12), st.floats(-5, 5))
def test_residuals_know_nothing_of_clean_accuracy(points, slope):
    summary = pd.DataFrame(points, columns=["clean", "corrupted"])
    assume(np.ptp(summary["clean"]) > 1)
    residual = stats.at_equal_clean(summary)["residual"]
    assert residual.sum() == pytest.approx(0, abs=1e-6)
    assert (residual * summary["clean"]).sum() == pytest.approx(0, abs=1e-4)
    tilted = summary.assign(corrupted=summary["corrupted"] + slope * summary["clean"] + 3)
    assert stats.at_equal_clean(tilted)["residual"].tolist() == pytest.approx(residual.tolist(), abs=1e-6)


def test_without_a_line_there_are_no_residuals():
    summary = students(a=[45.0, 50, 55])
    for unfit in (summary[:2], summary.assign(clean=80.0), summary.assign(corrupted=[np.nan, 50, 55])):
        table = stats.at_equal_clean(unfit)
        assert table["residual"].isna().all() and table["slope"].isna().all()


def test_who_reads_a_test_again_and_again_calls_more_zeros_a_difference():
    draws = np.random.default_rng(0).standard_normal((50_000, 10))
    for looks, rate in (((5, 10), 9), (range(3, 11), 17)):  # what notebook 02 and profiles.study_arms say
        called = np.zeros(len(draws), bool)
        for n in looks:
            seen = draws[:, :n]
            half_width = scipy.stats.t.ppf(0.975, n - 1) * seen.std(1, ddof=1) / n**0.5
            called |= abs(seen.mean(1)) > half_width
        assert round(100 * called.mean()) == rate


def test_a_line_can_be_of_some_students_alone():
    summary = students(a=[45.0, 50, 55], b=[0.0, 50, 100])
    table = stats.at_equal_clean(summary, through=["a"])
    assert table["slope"].tolist() == pytest.approx([0.5] * 6)
    assert table["residual"].tolist() == pytest.approx([0, 0, 0, -45, 0, 45], abs=1e-9)


def test_a_student_without_a_value_does_not_count():
    table = stats.at_equal_clean(students(a=[45.0, 50, 55], b=[np.nan, 50, 55]))
    assert table["residual"].isna().tolist() == [False, False, False, True, False, False]
    assert table["slope"].tolist() == pytest.approx([0.5] * 6)


def test_paired_differences_are_the_paired_difference_of_each_arm_and_group():
    draws = np.random.default_rng(0).uniform(0, 100, (8, 6))
    models = [(arm, seed) for arm in ("c", "a", "b") for seed in (2, 0, 1)][:-1]  # b lacks a seed
    table = rows_of(dict(zip(models, draws, strict=True)))
    by = ["corruption", "severity"]
    differences = stats.paired_differences(table, "a", "top1", by)
    assert list(differences) == ["arm", *by, "mean", "half_width", "n", "each"]
    assert differences[["arm", *by]].to_numpy().tolist() == [[arm, *test] for arm in ("c", "b") for test in TESTS]
    for row in differences.to_dict("records"):
        part = table[(table["corruption"] == row["corruption"]) & (table["severity"] == row["severity"])]
        (expected,) = stats.paired_difference(part, row["arm"], "a", "top1").to_dict("records")
        each, of_row = expected.pop("each"), {name: row[name] for name in expected}
        assert sorted(row["each"].split()) == sorted(each.split()) and of_row == pytest.approx(expected)


def test_without_groups_there_is_one_row_an_arm():
    rows = [("a", 0, 50.0), ("a", 1, 60), ("b", 1, 63), ("b", 0, 51), ("b", 7, 99), ("c", 1, 59), ("d", 9, 1)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "corrupted"])
    b, c = stats.paired_differences(table, "a", "corrupted").to_dict("records")  # d has no seed of a
    assert b == {
        "arm": "b",
        "mean": 2,
        "half_width": pytest.approx(12.7062047),
        "n": 2,
        "each": "3 1",
    }  # t(0.975, 1) * sqrt(2) / sqrt(2)
    assert (c["arm"], c["mean"], c["n"]) == ("c", -1, 1) and np.isnan(c["half_width"])


def test_severities_do_not_pass_for_seeds():
    with pytest.raises(ValueError, match="several rows of one arm and corruption and seed: average them first"):
        stats.paired_differences(rows_of({("a", 0): A, ("b", 0): B}), "a", "top1", ["corruption"])
