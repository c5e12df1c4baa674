import pandas as pd
import pytest

from r2kd import experiments, fidelity
from r2kd.augmentation import AUGMENTATIONS


def test_the_pairs_are_the_papers():
    assert experiments.PAIRS == {
        "wrn402_wrn162": ("wrn_40_2", "wrn_16_2"),
        "res56_res20": ("resnet56", "resnet20"),
        "res32x4_res8x4": ("resnet32x4", "resnet8x4"),
        "vgg13_vgg8": ("vgg13", "vgg8"),
        "vgg13_mv2": ("vgg13", "MobileNetV2"),
        "res32x4_shuv2": ("resnet32x4", "ShuffleV2"),
    }


def test_the_paper_profile_is_the_released_recipe():
    study = experiments.study("paper", pair="vgg13_mv2")
    teacher, students = study.teacher, study.students(0)
    assert (teacher.epochs, teacher.batch_size, teacher.learning_rate) == (240, 64, 0.05)
    assert (teacher.momentum, teacher.weight_decay, teacher.train_images) == (0.9, 5e-4, None)
    assert {student.learning_rate for student in students} == {0.01}
    r2kd = [student for student in students if student.method == "r2kd"]
    assert {(s.temperature, s.value_weight, s.rank_weight, s.dense_weight) for s in r2kd} == {(4.0, 2.0, 2.0, 0.7)}
    assert {(s.switch("pruned_batchnorm"), s.pruning_rate) for s in r2kd} == {("batch", 0.0), ("batch", 0.1)}


@pytest.mark.parametrize("profile", experiments.PROFILES)
def test_a_study_has_each_method_each_augmentation_with_and_without_pruning(profile):
    study = experiments.study(profile)
    arms = [experiments.arm(student) for student in study.students(0)]
    assert len({arm["arm"] for arm in arms}) == len(arms)
    assert {arm["method"] for arm in arms} == {"cross-entropy", "KD", "R2KD"}
    r2kd = {(arm["augmentation"], arm["pruned"]) for arm in arms if arm["method"] == "R2KD"}
    assert r2kd == {(augmentation, pruned) for augmentation in AUGMENTATIONS for pruned in (False, True)}
    assert len(study.seeds) >= (2 if profile == "smoke" else 3)


def test_intervals_are_students_t_over_seeds():
    table = pd.DataFrame({"arm": ["a"] * 3 + ["b"], "top1": [90.0, 92, 94, 80]})
    summary = experiments.mean_interval(table, ["arm"], "top1").set_index("arm")
    assert summary.loc["a", ["mean", "n"]].tolist() == [92, 3]
    assert summary.loc["a", "half_width"] == pytest.approx(4.302653 * 2 / 3**0.5, rel=1e-6)
    assert summary.loc["b", "n"] == 1 and pd.isna(summary.loc["b", "half_width"])


def test_differences_are_paired_by_seed():
    rows = [("mixup", pruned, seed, 90 + 10 * seed + pruned) for pruned in (False, True) for seed in (0, 1, 2)]
    table = pd.DataFrame(rows, columns=["augmentation", "pruned", "seed", "last_top1"])
    (row,) = experiments.paired_difference(table, "pruned", "last_top1", ["augmentation"]).to_dict("records")
    assert row == {"augmentation": "mixup", "mean": 1, "n": 3, "half_width": 0}


def test_the_ablation_turns_each_switch_alone_and_all_of_them():
    arms = experiments.study("small").ablation(1)
    turned = {name: config for name, config in arms.items() if config.method == "r2kd"}
    assert list(arms) == ["cross-entropy", "released", *list(turned)[1:-1], "intended"]
    for name, config in turned.items():
        assert (config.augmentation, config.pruning_rate, config.seed) == ("cutmixpick", 0.1, 1)
        away = [s.name for s in fidelity.SWITCHES if config.switch(s.name) != s.released]
        expected = {"released": [], "intended": list(fidelity.NAMES)}.get(name, [name.split(":")[0]])
        assert away == expected
    assert {name.split(":")[0] for name in turned} == {"released", "intended", *fidelity.NAMES} - {"reported"}


def test_a_study_as_intended_has_the_same_arms_and_figures_of_its_own():
    released, intended = (experiments.study("smoke", fidelity=name) for name in fidelity.PRESETS)
    assert [experiments.arm(c) for c in released.students(0)] == [experiments.arm(c) for c in intended.students(0)]
    taught = [config for config in intended.students(0) if config.method != "ce"]
    assert all(config.switch(s.name) == s.intended for config in taught for s in fidelity.SWITCHES)
    assert intended.figures.name == f"{released.figures.name}-intended" and intended.teacher == released.teacher
    with pytest.raises(ValueError, match="unknown fidelity 'hearsay'"):
        experiments.study("smoke", fidelity="hearsay")


def test_what_a_switch_does_is_paired_with_the_released_run_of_its_seed():
    rows = [("released", 0, 50, 51), ("released", 1, 60, 62), ("released", 2, 40, 43)]
    rows += [
        ("rank: soft", seed, top1 + added, 0) for (_, seed, top1, _), added in zip(rows, (2, 2.1, 1.9), strict=True)
    ]
    rows += [
        ("intended", seed, top1 + added, 0) for (_, seed, top1, _), added in zip(rows[:3], (-9, 9, 1), strict=True)
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "top1", "best_top1"])
    effects = experiments.switch_effects(table, "top1").set_index("arm")
    assert list(effects.index) == ["rank: soft", "reported: last", "intended"]
    assert effects["mean"].round(6).tolist() == [2, -2, pytest.approx(1 / 3)]
    assert effects["verdict"].tolist() == ["helps", *["no difference we can see at this scale"] * 2]
    assert experiments.verdict(-1, 0.5) == "hurts" and experiments.verdict(1, float("nan")) == "one seed, no interval"
    assert "spearman" not in experiments.switch_effects(table.assign(spearman=table["top1"]), "spearman").columns


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="unknown profile 'huge'; known: smoke, quick"):
        experiments.study("huge")
    with pytest.raises(ValueError, match="unknown pair 'res1_res2'; known: wrn402_wrn162"):
        experiments.study(pair="res1_res2")
