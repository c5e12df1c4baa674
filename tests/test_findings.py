import re

from r2kd import data, experiments, figures, findings, stats, teachers, words
from r2kd.profiles import GRID

import numpy as np
import pandas as pd
import pytest
import torch


@pytest.fixture(scope="module")
def study():
    return experiments.study("small")


def results(study, gains, noise=0.1, seeds=6):
    """A table as experiments.results_table: `gains` by arm, points above 30."""
    draws, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        shared = draws.normal(0, 1)
        for arm, config in study.arms.items():
            top1 = 30 + shared + gains.get(arm, 0) + noise * draws.normal()
            row = {"arm": arm, "method": config.method.label, "augmentation": config.view.name, "pruned": config.pruned}
            rows.append(row | {"seed": seed, "last_top1": top1, "best_top1": top1 + 0.25})
    return pd.DataFrame(rows)


def test_the_grid_is_of_arms_that_differ_in_distance_and_view_alone(study):
    arms = findings.grid_arms(study)
    assert set(arms) == {(method, view) for method in ("KD", "R2KD") for view in GRID}
    assert arms["R2KD", "cutmixpick"] == "R2KD cutmixpick" and arms["KD", "none"] == "KD"


def test_a_view_is_compared_with_the_identity_view_by_seed(study):
    found = findings.grid(study, results(study, {"KD identity": 1, "KD mixup": 3, "R2KD cutout": -1}, noise=1e-6))
    cells = found.set_index(["contrast", "view"])["mean"]
    assert cells["KD", "mixup"] == pytest.approx(2, abs=1e-4) and cells["KD", "none"] == pytest.approx(-1, abs=1e-4)
    assert cells["KD", "autoaug"] == pytest.approx(-1, abs=1e-4) and cells["R2KD", "cutout"] == pytest.approx(
        -1, abs=1e-4
    )
    assert cells["R2KD - KD", "identity"] == pytest.approx(-1, abs=1e-4)
    assert cells["gain, R2KD - KD", "mixup"] == pytest.approx(-2, abs=1e-4)
    assert cells["KD", "mean"] == pytest.approx((2 - 3) / 4, abs=1e-4)  # cutmix and cutmixpick are one of four
    assert cells["R2KD", "mean"] == pytest.approx(-1 / 4, abs=1e-4)
    assert cells["gain, R2KD - KD", "mean"] == pytest.approx(0, abs=1e-4)
    assert found["n"].eq(6).all() and len(found) == 6 + 6 + 7 + 5 + 3
    assert len(findings.grid_cells(study)) == 6 + 6 + 7 + 5
    picking = experiments.study("small", batch_size=128)
    mixed = findings.grid(picking, results(picking, {"KD cutmix": 5}, noise=1e-6)).set_index(["contrast", "view"])
    assert mixed["mean"]["KD", "mean"] == pytest.approx(1, abs=1e-4)  # there they are two of five


def test_the_means_over_the_views_are_a_family_of_their_own_of_seeds_that_have_all_of_them(study):
    table = results(study, {"R2KD mixup": 5}, noise=1).query("arm != 'R2KD autoaug' or seed < 4")
    whole = findings.grid(study, table).query("view == 'mean'").set_index("contrast")
    assert whole["n"].to_dict() == {"KD": 6, "R2KD": 4, "gain, R2KD - KD": 4}
    alone = stats.judged(whole.drop(columns=["p", "p_holm", "verdict"]), family=3)
    assert whole["p_holm"].tolist() == alone["p_holm"].tolist()
    without = findings.grid(study, table.query("arm != 'KD cutout'"))
    assert without.query("view == 'mean'")["contrast"].tolist() == ["R2KD"]
    assert "their mean" in words.views(findings.grid(study, table))[1]


def test_of_arms_that_are_not_trained_yet_nothing_is_said(study):
    few = results(study, {}).query("arm in ['KD cutmixpick', 'R2KD cutmixpick', 'R2KD, released']")
    found = findings.grid(study, few)
    assert found[["contrast", "kind", "view"]].values.tolist() == [["R2KD - KD", "distance", "cutmixpick"]]
    assert words.views(found) == []
    assert len(findings.comparisons(study, few)) == 3 and findings.comparisons(study, few[:0]).empty


def test_pairs_of_students_that_were_not_computed_alike_are_counted(study):
    few = results(study, {}, seeds=3).query("arm in ['R2KD, released', 'DKD', 'DIST']")
    table = few.assign(precision="bfloat16")
    assert findings.unlike_pairs(study, table) == (6, 0)
    assert words.arithmetic(table, 6, 0) == "All 9 students were computed in bfloat16."
    table.loc[(table["arm"] != "DIST") & (table["seed"] == 2), "precision"] = "bfloat16 in float32"
    assert findings.unlike_pairs(study, table) == (6, 1)
    assert "7 in bfloat16 and 2 in bfloat16 in float32. In 1 of the 6 pairs" in words.arithmetic(table, 6, 1)
    table.loc[table["arm"] == "DIST", "precision"] = None
    assert findings.unlike_pairs(study, table) == (6, 3)
    assert "3 in an unknown precision" in words.arithmetic(table, 6, 3)
    grid = results(study, {}, seeds=2).query("arm in ['KD', 'KD identity', 'KD mixup', 'R2KD mixup']")
    grid = grid.assign(precision="bfloat16")
    grid.loc[(grid["arm"] == "KD mixup") & (grid["seed"] == 1), "precision"] = "float32"
    assert findings.unlike_pairs(study, grid) == (6, 2)  # mixup and its control, R2KD and KD under mixup


def test_beyond_clean_accuracy_there_are_two_lines_and_students_that_nobody_compares_move_one_of_them(study):
    clean = results(study, {"cross-entropy": -20, "DIST": 3}, noise=0.5)
    clean = clean[clean["arm"].isin(["cross-entropy", "R2KD, released", "DKD", "DIST"])]
    clean = clean.rename(columns={"last_top1": "clean"})
    summary = clean.assign(corrupted=0.2 * clean["clean"] + 5.0 * (clean["arm"] != "cross-entropy"))
    told = findings.robust_comparisons(
        study, stats.at_equal_clean(summary), pd.DataFrame(columns=["test", "name", "level"])
    )
    slopes = told.dropna(subset="slope").groupby("measure")["slope"].first()
    assert slopes["residual_compared"] == pytest.approx(0.2) and slopes["residual"] > 0.35
    both = told[told["measure"] == "residual_compared"]
    assert both["mean"].abs().max() < 1e-9 and len(both) == 2
    assert "by a line through those that are compared (slope 0.20): " in words.robust_comparisons(told)


def test_without_an_identity_view_the_control_is_having_none():
    quick = experiments.study("quick")
    found = findings.grid(quick, results(quick, {"R2KD mixup": 2}, noise=1e-6))
    assert found.set_index(["contrast", "view"])["mean"]["R2KD", "mixup"] == pytest.approx(2, abs=1e-4)
    assert set(found["kind"]) == {"view", "distance", "interaction"}


def test_the_sentence_of_the_grid_calls_help_and_hurt_what_the_table_does(study):
    table = findings.grid(study, results(study, {"KD mixup": 2, "KD cutmix": -4}))
    kd, r2kd, gains = words.views(table)
    assert re.fullmatch(
        r"Added to KD: mixup \+[\d.]+ ± [\d.]+ \*, cutmix -[\d.]+ ± [\d.]+ \*, cutout .*; 2 told apart from 0 \(\*\)\.",
        kd,
    )
    assert r2kd.startswith("Added to R2KD: ") and "*" not in r2kd and r2kd.endswith("; none told apart from 0.")
    assert gains.startswith("Added to R2KD more than to KD: mixup -")
    young = table.assign(verdict="too few seeds")
    assert (
        words.views(young)[1] == "Added to R2KD: mixup, cutmix, cutout, autoaug and cutmixpick have too few seeds yet."
    )


def test_the_designed_comparisons_are_paired_and_one_family(study):
    table = findings.comparisons(study, results(study, {"R2KD, released": 1, "DKD": 3}))
    assert list(zip(table["arm"], table["other"], strict=True)) == list(study.comparisons)
    told = table.set_index(["arm", "other"])
    assert told.loc[("R2KD, released", "DKD"), "verdict"] == "lower"
    assert told.loc[("R2KD, released", "DIST"), "verdict"] == "higher"
    assert told.loc[("R2KD cutmixpick", "KD cutmixpick"), "verdict"] == "not told apart"
    said = words.compared(table)
    assert said[1].startswith("R2KD, released is below DKD: -") and said[1].endswith(
        "points (n = 6, adjusted p < 0.001)."
    )


def test_the_weights_of_a_distance_are_those_of_arms_that_differ_in_nothing_else(study, tmp_path):
    gains = {"KD cutmixpick, weight 4": 5, "R2KD cutmixpick, weight 0.5": -5, "KD, 0.1 and 0.9": 9, "R2KD, released": 9}
    table = findings.weights(study, results(study, gains, noise=1e-6, seeds=3))
    assert table[["arm", "weight", "pull", "n"]].values.tolist() == [
        *(["KD", 1, 1, 3], ["KD", 4, 4, 3], ["KD", 8, 8, 3]),
        *(["R2KD", 0.5, 1, 3], ["R2KD", 2, 4, 3], ["R2KD", 4, 8, 3]),
    ]
    assert (table["mean"] - table["mean"][0]).round(3).tolist() == [0, 5, 0, -5, 0, 0]
    figures.save("distance_weights", table, tmp_path, "of a test")
    assert "R2KD 25." in (said := words.distance_weights(table)) and "at weight 0.5" in said
    quick = experiments.study("quick")
    assert findings.weights(quick, results(quick, {})).empty


def test_of_what_is_searched_the_best_on_validation_images_is_first_and_each_change_has_its_mean(study):
    search = experiments.search(study)
    gains = {arm: 2.0 * ("value 4" in arm) - 1.0 * ("soft rank" in arm) for arm in search.arms} | {"value 8": 0.5}
    rows = results(search, gains, noise=1e-6, seeds=3).rename(columns={"last_top1": "last_validation_top1"})
    table = findings.searched(rows.assign(last_top1=-rows["last_validation_top1"]))
    assert set(table["arm"][:2]) == {"value 4", "value 4 + views as described"} and len(table) == 9
    changes = findings.searched_changes(rows).set_index("arm")
    assert changes["mean"].round(3).to_dict() == {"value 4": 2, "soft rank": -1, "views as described": 0}
    assert changes["n"].eq(3).all()
    assert words.search(table).startswith(f"Of 9 settings {table['arm'][0]} has the highest mean")
    with pytest.raises(ValueError, match="no student of the search"):
        findings.searched(rows[:0])


def test_what_a_switch_does_is_paired_with_the_released_run_of_its_seed_and_adjusted():
    ablation = experiments.ablation(experiments.study("quick"))
    top1 = {
        "released": (50, 60, 40),
        "rank: soft": (52, 62.1, 41.9),
        "intended": (41, 69, 41),
        "cross-entropy": (9, 9, 9),
    }
    rows = [(arm, seed, value, value + 1 + seed) for arm, of in top1.items() for seed, value in enumerate(of)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "top1", "best_top1"])
    effects = findings.switch_effects(ablation, table, "top1").set_index("arm")
    assert list(effects.index) == ["rank: soft", "intended", "reported: last"]
    assert effects["mean"].round(6).tolist() == [2, pytest.approx(1 / 3), -2]
    assert effects["verdict"].tolist() == ["higher", "not told apart", "the same students"]
    assert effects["p_holm"]["rank: soft"] == pytest.approx(
        6 * effects["p"]["rank: soft"]
    )  # five switches, and all of them
    assert len(findings.switch_effects(ablation, table.assign(spearman=table["top1"]), "spearman")) == 2


def test_the_same_treatment_twice_is_cutmix_and_the_released_cutmixpick(study):
    table = findings.twice(study, results(study, {"KD cutmix": 1, "R2KD cutmixpick": 1}, noise=1e-6))
    assert table["arm"].tolist() == ["KD", "R2KD"] and table["mean"].round(3).tolist() == [-1, 1]
    picking = experiments.study("small", fidelity="intended")
    assert findings.twice(picking, results(picking, {})).empty


def test_a_grid_has_no_arm_that_differs_in_more_than_method_and_view():
    arms = "ce; kd; kd cutmix label_noise=0.4; kd mixup; r2kd pruning_rate=0; r2kd mixup pruning_rate=0"
    found = findings.grid_arms(experiments.study("quick", arms=arms))
    assert set(found) == {(method, view) for method in ("KD", "R2KD") for view in ("none", "mixup")}
    one, other = (lambda student, teacher, p=p: (student - teacher).abs().pow(p).mean() for p in (1, 2))
    arms = {"a": {"method": one}, "b": {"method": other, "view": "cutmix"}, "c": {"method": one, "view": "mixup"}}
    assert set(findings.grid_arms(experiments.study("quick", arms=arms)).values()) == {"a", "c"}


def test_what_seeds_can_find_is_by_the_differences_themselves():
    table = pd.DataFrame(
        {
            "mean": 0.0,
            "n": [5, 5, 2],
            "half_width": [
                stats.mean_interval(pd.DataFrame({"arm": "a", "v": [0, 0, 0, 0, 5**0.5]}), ["arm"], "v")["half_width"][
                    0
                ]
            ]
            * 3,
        }
    )
    assert stats.deviations(table)[0] == pytest.approx(1)
    alone, first = stats.detectable(1, 10), stats.detectable(1, 10, level=0.01)
    said = words.resolution(table, 5, 10)
    assert (
        "(median 1.0, 2 pairs)" in said
        and f"of {alone:.1f} points at 5 %, and of {first:.1f} as the first of a family of 5" in said
    )
    assert words.resolution(table[2:], 5, 10) == "No pair has three seeds yet."


def test_holms_adjustment_is_that_of_his_example():
    means, n = [4.0, 3.0, 2.5, 0.0], 10
    table = pd.DataFrame({"mean": means, "half_width": 2.0, "n": n})
    told = stats.judged(table)
    order = told["p"].to_numpy()
    assert (np.diff(order) > 0).all()
    by_hand = np.maximum.accumulate(np.minimum(order * np.array([4, 3, 2, 1]), 1))
    assert told["p_holm"].to_numpy() == pytest.approx(by_hand)
    assert told["p"][3] == 1 and told["verdict"][3] == "not told apart"
    planned = stats.judged(table, family=6)["p_holm"].to_numpy()  # two have no seeds yet
    assert planned == pytest.approx(np.maximum.accumulate(np.minimum(order * np.array([6, 5, 4, 3]), 1)))
    edge = stats.judged(pd.DataFrame({"mean": [2.0], "half_width": [2.0], "n": [n]}))
    assert edge["p"][0] == pytest.approx(0.05)


def test_one_or_two_seeds_have_no_verdict():
    told = stats.judged(pd.DataFrame({"mean": [1.0, 5.0, 5.0], "half_width": [np.nan, 1.0, 0.1], "n": [1, 5, 2]}))
    assert told["verdict"].tolist() == ["too few seeds", "higher", "too few seeds"]


def test_what_a_test_can_find_it_finds_as_often_as_promised():
    from scipy.stats import ttest_1samp

    shift = stats.detectable(2.0, 10, power=0.8)
    draws = np.random.default_rng(0).normal(shift, 2.0, (4000, 10))
    assert (ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.02)
    with pytest.raises(ValueError, match="three pairs"):
        stats.detectable(1.0, 2)


def test_a_teachers_spread_beside_the_gains_of_its_students(study):
    gains = {f"{method} {view}": i for method in ("KD", "R2KD") for i, view in enumerate(GRID[2:])}
    table = findings.grid(study, results(study, gains, noise=1e-6))
    spread = pd.DataFrame(
        [{"view": v, "teacher": "dense", "rate": 0, "mean": 9 - i, "half_width": 0.1} for i, v in enumerate(GRID)]
        + [{"view": v, "teacher": "pruned", "rate": 10, "mean": 1, "half_width": 0.1} for v in GRID]
    )
    joined = findings.spread_and_gain(spread, table)
    assert len(joined) == 10 and joined["rank_correlation"].tolist() == pytest.approx([-1] * 10)
    assert "rank correlation -1.00 over 5 views (p = 0.02)" in words.answer_spread_gain(joined)
    without = findings.spread_and_gain(spread, table, findings.twin(study))
    assert len(without) == 10 and without["rank_correlation"].isna().all()  # four views can tell nothing
    assert "too few views to say" in words.answer_spread_gain(without)
    assert "pruned teacher's spread is lower under 7 and higher under 0 of 7" in words.spread(spread, 10)


def test_flattery_is_of_all_runs(study):
    assert "0.25 points above the last on average (0.25 to 0.25)" in words.flattery(results(study, {}))


def test_a_mean_answer_varies_as_its_groups_do():
    made = experiments.study("smoke")
    images = data.load("digits").subset(320, 10)

    class Steady(torch.nn.Linear):
        def forward(self, images):
            return torch.zeros(len(images), 10)

    class Bright(torch.nn.Linear):
        def forward(self, images):
            return torch.stack([images.mean(dim=(1, 2, 3))] + 9 * [torch.zeros(len(images))], dim=1)

    still = teachers.answer_spread(made, images, Steady(1, 1), rates=(), groups=3, repeats=1)
    assert still["spread"].max() < 1e-5 and set(still["view"]) == set(made.views)
    found = teachers.answer_spread(made, images, Bright(1, 1), rates=(), groups=3, repeats=1).set_index("view")[
        "spread"
    ]
    assert found["identity"] == pytest.approx(found["none"], rel=1e-4) and found["none"] > 0


@pytest.mark.parametrize("name", ["grid", "comparisons"])
def test_a_finding_is_drawn_from_its_table(study, tmp_path, name):
    table = getattr(findings, name)(study, results(study, {"KD mixup": 2}))
    assert figures.save(name, table, tmp_path, "made up") is not None
    assert (tmp_path / f"{name}.png").stat().st_size > 5_000
