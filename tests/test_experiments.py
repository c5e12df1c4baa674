from collections import Counter
from dataclasses import replace
from itertools import product

from r2kd import acceleration, data, experiments, fidelity, profiles, stats, training
from r2kd.arm import Arm
from r2kd.experiments import study

import pandas as pd
import pytest
import torch

SCALE = profiles.PROFILES["small"].scale


def test_the_pairs_are_the_papers():
    assert profiles.PAIRS == {
        "wrn402_wrn162": ("wrn_40_2", "wrn_16_2"),
        "res56_res20": ("resnet56", "resnet20"),
        "res32x4_res8x4": ("resnet32x4", "resnet8x4"),
        "vgg13_vgg8": ("vgg13", "vgg8"),
        "vgg13_mv2": ("vgg13", "MobileNetV2"),
        "res32x4_shuv2": ("resnet32x4", "ShuffleV2"),
    }


def test_what_is_told_from_records_alone_is_not_trained_afresh_where_that_takes_minutes_either():
    assert study("quick").fresh and not study("quick", recorded=True).fresh
    with pytest.raises(ValueError, match="give one of the two"):
        study("quick", recorded=True, fresh=True)


def test_the_paper_profile_is_the_released_recipe():
    paper = study("paper", pair="vgg13_mv2")
    teacher, students = paper.teacher, paper.students(0).values()
    assert (teacher["epochs"], teacher["batch_size"], teacher.learning_rate) == (240, 64, 0.05)
    assert (teacher["momentum"], teacher["weight_decay"], teacher["train_images"]) == (0.9, 5e-4, None)
    assert {student.learning_rate for student in students} == {0.01}  # MLKD's too: no more than the model's own
    released = paper.arms["R2KD, released"]
    named = ("temperature", "value_weight", "rank_weight", "dense_weight", "pruned_batchnorm", "pruning_rate")
    assert tuple(released[name] for name in named) == (4.0, 2.0, 2.0, 0.7, "batch", 0.1)


def test_the_paper_profile_has_the_studys_arms_with_the_whole_warm_up():
    full, small = study("paper"), study("small")
    assert list(full.arms) == list(small.arms) and full.comparisons == small.comparisons and full.shown == small.shown
    assert full.arms["DKD"]["warmup_epochs"] == 20 and small.arms["DKD"]["warmup_epochs"] == 10
    assert len(full.seeds) == 3 and not full.seeds_of


def test_a_method_that_starts_lower_does_so_where_nothing_else_is_said():
    made = study("small", arms="mlkd randaugment; mlkd randaugment learning_rate=0.05; kd")
    assert [config.learning_rate for config in made.arms.values()] == [0.025, 0.05, 0.05]


def test_smoke_has_each_method_each_augmentation_with_and_without_pruning():
    made = study("smoke")
    assert {config.method.label for config in made.arms.values()} == {"cross-entropy", "KD", "R2KD"}
    r2kd = {(config.view.name, config.pruned) for config in made.arms.values() if config.method.name == "r2kd"}
    assert r2kd == {(view, pruned) for view in profiles.VIEWS for pruned in (False, True)}
    assert len(made.seeds) == 2 and not made.seeds_of


@pytest.mark.parametrize("profile", profiles.PROFILES)
def test_what_crowded_figures_draw_and_what_verdicts_are_of_is_among_the_arms(profile):
    made, of = study(profile), profiles.PROFILES[profile]
    assert set(made.shown) < set(made.arms) and len(made.shown) == len(of.shown) >= 5
    assert set(of.verdicts) < set(made.arms) and made.reference == "cross-entropy"
    assert all(set(made.students(seed)) <= set(made.arms) for seed in made.seeds)


def test_quick_has_r2kd_with_every_view_the_last_with_the_pruned_teacher():
    made = study("quick")
    by = Counter((config.method.name, config.view.name, config.pruned) for config in made.arms.values())
    dense = {("r2kd", view, False) for view in profiles.VIEWS[:-1]}
    beside = {("ce", "none", False), ("kd", "none", False), ("kd", "cutmix", False), ("r2kd", "cutmixpick", True)}
    assert by == Counter(dense | beside) and len(made.arms) == 9
    assert {arm for pair in made.comparisons for arm in pair} <= set(made.arms)
    assert made.seeds == (0, 1, 2, 3, 4) and not made.seeds_of


def test_the_study_crosses_two_distances_with_seven_views_in_nothing_else_apart():
    made = study("small")
    assert len(made.arms) == 33
    grid = [c for c in made.arms.values() if c.method.name in ("kd", "r2kd") and not (c.method.changed or c.pruned)]
    crossed = Counter((config.method.name, config.view.name) for config in grid)
    assert crossed == Counter(product(("kd", "r2kd"), profiles.GRID)) and len(grid) == 14
    first = grid[0]
    assert all(replace(c, method=first.method, view=first.view, pruning=first.pruning) == first for c in grid)
    assert {config["ce_weight"] for config in grid} == {1.0} and not any(config.view.changed for config in grid)


def test_each_distance_has_the_weight_of_the_others_pull_and_nothing_else_apart():
    made = study("small").arms
    weighted = {label: config for label, config in made.items() if "cutmixpick, weight" in label}
    for label, config in weighted.items():
        plain, _, weight = label.partition(", weight ")
        key = {"KD cutmixpick": "kd_weight", "R2KD cutmixpick": "value_weight"}[plain]
        assert config == made[plain].with_settings({key: float(weight)}) != made[plain]
    assert {arm for pair in profiles.MATCHED for arm in pair} <= {*weighted, "KD cutmixpick", "R2KD cutmixpick"}
    for one, other in profiles.MATCHED:  # the two weights are four times apart in pull in both
        pull = [made[arm][key] / usual for arm, key, usual in ((one, "value_weight", 2), (other, "kd_weight", 4))]
        assert pull[0] == pull[1] and one.startswith("R2KD") and other.startswith("KD")


def test_what_is_searched_is_every_subset_of_the_changes_and_leaves_no_trace_in_the_study():
    of = study("small")
    made = experiments.search(of)
    released = of.arms["R2KD, released"]
    same = {label for label, config in made.arms.items() if replace(config, data=released.data) == released}
    assert same == {"released"} and len(made.arms) == 2 ** len(profiles.CHANGES) + 1
    assert made.arms["value 4 + views as described"]["pick"] == "after" and made.arms["value 8"]["value_weight"] == 8
    assert (made.first["validation_images"], of.first["validation_images"]) == (5000, 1000)
    others = experiments.confirmation(of, "value 8")
    assert others.arms["released"] == released and others.arms["DKD, standardised"] == of.arms["DKD, standardised"]
    assert others.arms["recommended"] == released.with_settings({"value_weight": 8})
    assert {arm for pair in others.comparisons for arm in pair} == set(others.arms)
    seeds = [set(known.seeds) for known in (of, made, others)]
    assert len(set.union(*seeds)) == sum(map(len, seeds)) and len(seeds[2]) == 10
    assert len({of.figures, made.figures, others.figures}) == 3
    assert "released" not in experiments.confirmation(of, "released").arms
    with pytest.raises(ValueError, match="'value 9' was not searched; known: released, "):
        experiments.confirmation(of, "value 9")


def test_the_study_has_the_baselines_by_their_own_recipes_and_r2kd_switch_by_switch():
    made = study("small").arms
    recipes = {
        "KD, 0.1 and 0.9": {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4, "standardise": False},
        "KD, standardised": {"ce_weight": 0.1, "kd_weight": 9, "temperature": 2, "standardise": True},
        "DKD": {"ce_weight": 1, "alpha": 1, "beta": 6, "standardise": False},
        "DKD, standardised": {"alpha": 9, "beta": 81, "temperature": 4, "standardise": True},
        "DIST": {"ce_weight": 1, "beta": 2, "gamma": 2, "temperature": 4},
        "MLKD, released": {"ce_weight": 0.1, "kd_weight": 0.9, "mask": "mean"},
        "MLKD, intended": {"ce_weight": 0.1, "kd_weight": 0.9, "mask": "select"},
    }
    for label, wanted in recipes.items():
        assert {name: made[label][name] for name in wanted} == wanted, label
        usual = ("randaugment", 0.025) if label.startswith("MLKD") else ("none", 0.05)
        assert (made[label].view.name, made[label].learning_rate) == usual
    for label in ("DKD", "DKD, standardised"):
        assert made[label]["warmup_epochs"] / made[label]["epochs"] == pytest.approx(20 / 240, rel=0.01)
    turned = {label: config for label, config in made.items() if label.startswith("R2KD, ")}
    own = [s for s in fidelity.SWITCHES if s.of == "R2KD" and s.name != "reported"]
    away = {label: [s.name for s in own if config[s.key] != s.released] for label, config in turned.items()}
    names = [s.name for s in own]
    each = {f"R2KD, {s.name}: {s.intended}": [s.name] for s in own}
    assert away == {"R2KD, released": []} | each | {"R2KD, intended": names}
    assert all(config.pruned and config.view.name == "cutmixpick" for config in turned.values())


def test_the_study_teaches_by_a_teacher_of_all_images_students_of_a_few():
    made = study("small")
    teacher, student = (
        [c[name] for name in ("train_images", "validation_images", "epochs", "precision")]
        for c in (made.teacher, made.first)
    )
    assert teacher == [50_000, 0, 60, "bfloat16"] and student == [
        SCALE["train_images"],
        1000,
        SCALE["epochs"],
        "bfloat16",
    ]
    assert {config.data for config in made.arms.values()} == {made.first.data}
    assert {config.teacher for config in made.arms.values()} == {made.teacher}


def seeds_by_arm(made):
    return {arm: [seed for seed in range(20) if arm in made.students(seed)] for arm in made.arms}


def test_arms_of_a_verdict_have_ten_seeds_and_the_others_five():
    made = study("small")
    more = {"cross-entropy", "KD cutmixpick", "R2KD cutmixpick", "DKD", "DIST"}
    more |= {arm for arm in made.arms if arm.startswith("R2KD, ")} | {
        arm for pair in (*profiles.MATCHED, *profiles.ONE_VIEW) for arm in pair
    }
    assert len(more) == 15 and made.seeds == tuple(range(10))
    assert seeds_by_arm(made) == {arm: list(range(10 if arm in more else 5)) for arm in made.arms}
    for seed in (0, 7):
        students = made.students(seed)
        assert {arm: replace(made.arms[arm], seed=seed) for arm in students} == students
        assert list(students) == [arm for arm in made.arms if arm in students]


@pytest.mark.parametrize(("asked", "had"), [(2, [0, 1]), (7, [*range(7)]), ((3, 8), [3, 8])], ids=str)
def test_seeds_that_are_asked_for_are_those_of_every_arm(asked, had):
    made = study("small", seeds=asked)
    assert list(made.seeds) == had and seeds_by_arm(made) == dict.fromkeys(made.arms, had)


def test_as_many_seeds_as_most_arms_have_are_another_study_than_the_usual_one():
    usual, five = study("small"), study("small", seeds=5)
    assert seeds_by_arm(five) == {arm: [*range(5)] for arm in usual.arms} != seeds_by_arm(usual)
    assert five.figures != usual.figures


@pytest.mark.parametrize(
    "settings", [{}, {"seeds": 2}, {"temperature": 3}, {"epochs": 2, "train_images": 500}], ids=str
)
def test_the_ablation_trains_nothing_that_the_study_does_not(settings):
    small = study("small", **settings)
    made = experiments.ablation(small)
    assert made.seeds == tuple(range(settings.get("seeds", 10))) and not made.seeds_of
    for seed in made.seeds:
        trained = list(small.students(seed).values())
        assert all(config in trained for config in made.students(seed).values())


def test_of_a_data_sets_recipe_and_a_profiles_scale_the_smaller_acts():
    sizes = {name: study(name, dataset="digits").first for name in profiles.PROFILES}
    assert {name: (c["train_images"], c["epochs"]) for name, c in sizes.items()} == {
        "smoke": (128, 1),
        "quick": (300, 20),
        "small": (300, 20),
        "paper": (300, 20),
    }
    assert study("paper").first["epochs"] == 240 and study("small").first["train_images"] == SCALE["train_images"]


def test_intervals_are_students_t_over_seeds():
    table = pd.DataFrame({"arm": ["a"] * 3 + ["b"], "top1": [90.0, 92, 94, 80]})
    summary = stats.mean_interval(table, ["arm"], "top1").set_index("arm")
    assert summary.loc["a", ["mean", "n"]].tolist() == [92, 3]
    assert summary.loc["a", "half_width"] == pytest.approx(4.302653 * 2 / 3**0.5, rel=1e-6)
    assert summary.loc["b", "n"] == 1 and pd.isna(summary.loc["b", "half_width"])


def test_differences_are_paired_by_seed():
    rows = [(arm, seed, 90 + 10 * seed + (arm == "b")) for arm in "ab" for seed in (0, 1, 2)]
    table = pd.DataFrame([*rows, ("b", 3, 0)], columns=["arm", "seed", "last_top1"])
    (row,) = stats.paired_difference(table, "b", "a", "last_top1").to_dict("records")
    assert row == {"mean": 1, "n": 3, "half_width": 0, "each": "1 1 1"}


def test_the_pruned_teachers_gain_is_of_arms_that_differ_in_nothing_else():
    made = study(arms="r2kd; r2kd pruning_rate=0; r2kd:temperature=2; kd; kd mixup")
    rows = [(arm, seed, i + seed) for i, arm in enumerate(made.arms) for seed in (0, 1)]
    results = pd.DataFrame(rows, columns=["arm", "seed", "last_top1"])
    (row,) = experiments.pruning_gain(made, results).to_dict("records")
    assert (row["method"], row["augmentation"], row["mean"], row["n"]) == ("R2KD", "none", -1, 2)
    assert row["arm"] == "R2KD, pruned, temperature 4"
    assert experiments.pruning_gain(study(arms="ce; kd"), results).empty


def test_the_ablation_turns_each_switch_alone_and_all_of_them():
    small = study("small", temperature=3)
    made = experiments.ablation(small)
    assert made.figures == small.figures and made.first["epochs"] == SCALE["epochs"] and made.teacher["epochs"] == 60
    turned = {name: config for name, config in made.arms.items() if config.method.name == "r2kd"}
    assert list(made.arms) == ["cross-entropy", "released", *list(turned)[1:-1], "intended"]
    own = [s for s in fidelity.SWITCHES if s.of == "R2KD"]
    for name, config in turned.items():
        assert (config.view.name, config["pruning_rate"], config["temperature"]) == ("cutmixpick", 0.1, 3)
        away = [s.name for s in own if config[s.key] != s.released]
        expected = {"released": [], "intended": [s.name for s in own]}.get(name, [name.split(":")[0]])
        assert away == expected
    assert {name.split(":")[0] for name in turned} == {"released", "intended", *(s.name for s in own)} - {"reported"}


def test_a_study_as_intended_has_the_same_arms_and_figures_of_its_own():
    released, intended = (study("smoke", fidelity=name) for name in fidelity.PRESETS)
    assert list(released.arms) == list(intended.arms)
    for config in intended.arms.values():
        assert all(config[s.key] == s.intended for s in fidelity.SWITCHES if config.owner(s.key))
    assert intended.figures.name == f"{released.figures.name}-fidelity=intended"
    assert intended.teacher == released.teacher and intended.said == "; set: fidelity intended"
    with pytest.raises(ValueError, match="fidelity is released or intended, not 'hearsay'"):
        study("smoke", fidelity="hearsay")


def test_an_arm_can_be_given_a_label_and_a_pair_a_verdict():
    made = study(
        arms="kd cutmix; r2kd cutmix pruning_rate=0; mine = kd:temperature=2 cutmix",
        comparisons="mine - kd cutmix; mine - R2KD cutmix",
    )
    assert list(made.arms) == ["KD cutmix", "R2KD cutmix", "mine"] and made.arms["mine"]["temperature"] == 2
    assert made.comparisons == (("mine", "KD cutmix"), ("mine", "R2KD cutmix"))
    listed = study(arms={"a": "kd", "b": "r2kd"}, comparisons=[("b", "a")])
    assert listed.comparisons == (("b", "a"),) and experiments.variant(listed, arms={"c": "kd"}).comparisons == ()
    for wrong in ("mine", "mine - kd", "mine - mine", "a - b - c"):
        with pytest.raises(ValueError, match="is no pair of arms, KD cutmix - mine is; there are KD cutmix, mine"):
            study(arms="kd cutmix; mine = r2kd cutmix", comparisons=wrong)


def test_an_arm_beside_those_of_a_study_with_labels_is_called_by_its_method_and_view():
    made = study("small", arms="+ dkd:beta=2; mlkd randaugment temperature=2; kd cutmix pruning_rate=0.2")
    assert list(made.arms)[-3:] == ["DKD, beta 2, warmup epochs 20", "MLKD randaugment", "KD cutmix, pruned"]


def test_the_records_of_the_repository_are_known_wherever_figures_go(tmp_path):
    made = study("small", figures_root=str(tmp_path))
    assert made.roots == (experiments.ROOT / "figures", tmp_path) and made.figures.is_relative_to(tmp_path)


def test_no_seed_is_asked_for_twice():
    with pytest.raises(ValueError, match="seeds are 0, 1, 1: each once"):
        study(seeds="0,1,1")


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="unknown profile 'huge'; known: smoke, quick"):
        study("huge")
    with pytest.raises(ValueError, match="unknown pair 'res1_res2'; known: wrn402_wrn162"):
        study(pair="res1_res2")
    with pytest.raises(ValueError, match=r"unknown setting 'temprature'; known: pair, .* temperature"):
        study(temprature=2)
    with pytest.raises(ValueError, match=r"unknown setting 'method\.draws'"):
        study(**{"method.draws": "sample"})


def test_any_setting_of_any_part_acts_where_it_is_and_nowhere_else():
    made = study(
        **{"temperature": "2", "method.value_weight": 1, "draws": "sample", "teacher.epochs": 5, "batch_size": 32}
    )
    for config in made.arms.values():
        wanted = {"temperature": 2.0, "value_weight": 1.0, "draws": "sample", "batch_size": 32}
        assert all(config[key] == value for key, value in wanted.items() if config.owner(key))
    assert (made.teacher["epochs"], made.teacher["batch_size"], made.first["epochs"]) == (5, 64, 20)
    both = study(train_images=77, device="cpu", **{"teacher.train_images": 99})
    assert (both.first["train_images"], both.teacher["train_images"], both.teacher["device"]) == (77, 99, "cpu")


def test_a_name_of_two_parts_needs_its_part():
    entry = {"method": lambda student, teacher, alpha=1.0: alpha * (student - teacher).square().mean()}
    view = {"view": lambda images, generator, alpha=1.0: alpha * images}
    with pytest.raises(ValueError, match=r"alpha is of the method and of the view: write method\.alpha or view\.alpha"):
        study(arms=[entry | view], alpha=2)
    (config,) = study(arms=[entry | view], **{"view.alpha": 2}).arms.values()
    assert (config["method.alpha"], config["view.alpha"]) == (1.0, 2.0)


def test_of_the_pruning_a_setting_is_for_the_arms_that_prune():
    made = study("smoke", pruning_rate=0.3)
    assert {config["pruning_rate"] for config in made.arms.values() if config.pruned} == {0.3}
    assert not any(config.pruned for config in made.arms.values() if config.method.name != "r2kd")
    assert len([config for config in made.arms.values() if config.pruned]) == 6


def test_labels_are_what_differs_among_the_arms():
    two = study(arms="r2kd pruning_rate=0; r2kd:temperature=1 pruning_rate=0; kd; kd epochs=7")
    epochs = "R2KD, temperature 4, epochs 20", "R2KD, temperature 1, epochs 20", "KD, epochs 20", "KD, epochs 7"
    assert tuple(two.arms) == epochs
    assert list(study(temperature=2, arms="ce; r2kd cutmix").arms) == ["cross-entropy", "R2KD cutmix, pruned"]
    beside = study("smoke", arms="+ dkd; r2kd:temperature=4 mixup", temperature=2)
    assert list(beside.arms)[:3] == ["cross-entropy", "KD", "KD cutmix"] and "DKD" in beside.shown
    assert beside.arms["R2KD mixup, pruned, temperature 4"]["temperature"] == 4
    assert beside.arms["R2KD mixup, pruned, temperature 2"]["temperature"] == 2
    closures = [lambda student, teacher, k=k: (student - k * teacher).abs().mean() for k in (1, 2)]
    one, other = study(arms=closures).arms
    assert one != other and one.startswith("lambda")
    with pytest.raises(ValueError, match="two arms are the same: KD"):
        study(arms="kd; ce; kd")
    with pytest.raises(ValueError, match="two arms are called 'KD, temperature 4': give them labels"):
        study(arms="kd; kd temperature=4.0000001")
    with pytest.raises(ValueError, match="the arm 'KD cutmix' has a teacher of its own"):
        study(arms="kd; kd cutmix teacher.epochs=3")


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ("kd mixup cutmix", "the arm 'kd mixup cutmix' has two views, 'mixup' and 'cutmix'"),
        ("pruning_rate=0", "names no method"),
        ("dkd mixup", "asks for labels"),
        ("", "arms of design is empty"),
        (" ;", "a study needs an arm"),
        ("kd:warmth=2", "unknown setting 'method.warmth'; the method has ce_weight, temperature"),
        ("kx", "unknown method 'kx'; known: ce, kd, r2kd, dkd"),
    ],
)
def test_an_arm_that_cannot_be_is_refused(arms, said):
    with pytest.raises(ValueError, match=said):
        study(arms=arms)


def test_studies_that_differ_share_no_figures(tmp_path):
    for folder in ("a/images", "b/images"):
        (tmp_path / folder).mkdir(parents=True)
    changes = [
        {},
        {"temperature": 2},
        {"temperature": 3},
        {"fidelity": "intended"},
        {"plain": True},
        {"image_size": 32},
        {"seeds": 4},
        {"seeds": (3, 4, 5)},
        {"arms": "ce; kd"},
        {"arms": "ce; kd mixup"},
        {"teacher": "resnet14"},
        {"student": "torchvision:resnet18"},
        {"student": lambda num_classes: num_classes},
        {"teacher.epochs": 7},
        {"dataset": str(tmp_path / "a" / "images")},
        {"dataset": str(tmp_path / "b" / "images")},
        {"label_noise": 0.4},
        {"label_noise": 0.4, "teacher.label_noise": 0},
        {"arms": "ce; kd label_noise=0.2"},
        {"arms": "ce; kd label_noise=0.4"},
        {"arms": "ce label_noise=0.4; kd"},
        {"arms": "ce; kd train_images=100"},
    ]
    folders = [study(**change).figures for change in changes]
    assert len(set(folders)) == len(changes)
    assert study(temperature=2.0).figures == study(temperature="2").figures == study(temperature=2).figures
    for nothing in ({"device": "cpu"}, {"runs_root": "elsewhere"}, {"fresh": True}, {"seeds": 5}):
        assert study(**nothing).name == folders[0].name


def test_captions_say_what_was_set():
    made = study(temperature=2, value_weight=1, epochs=5)
    assert made.said == "; set: temperature 2, value_weight 1"
    caption = made.caption(data.load("digits").subset(300, None))
    assert "5 epochs; resnet20 (20 epochs) teaches resnet8; set: temperature 2, value_weight 1" in caption


NOISY = "ce label_noise=0.2; ce label_noise=0.4; kd label_noise=0.4"


def test_label_noise_is_of_teacher_and_students_unless_one_of_them_says_otherwise():
    def rates(**settings):
        made = study("smoke", **settings)
        taught = {config.teacher.data.label_noise for config in made.arms.values()}
        assert taught == {made.teacher["label_noise"]}
        return made.teacher["label_noise"], [config["label_noise"] for config in made.arms.values()]

    assert rates(arms="ce; kd") == (0, [0, 0])
    assert rates(arms="ce; kd", label_noise=0.4) == (0.4, [0.4, 0.4])
    for clean in (0, "0", 0.0):
        assert rates(arms="ce; kd", label_noise="0.4", **{"teacher.label_noise": clean}) == (0, [0.4, 0.4])
        assert rates(arms="ce; kd", **{"teacher.label_noise": clean, "label_noise": 0.4}) == (0, [0.4, 0.4])
    assert rates(arms="ce; kd", **{"teacher.label_noise": 0.2}) == (0.2, [0, 0])
    assert rates(arms="ce; kd label_noise=0.4") == (0, [0, 0.4])
    assert rates(arms=["ce", {"method": "kd", "label_noise": 0}], label_noise=0.2) == (0.2, [0.2, 0])
    with pytest.raises(ValueError, match="label_noise is a share"):
        study("smoke", label_noise=40)


def test_labels_tell_arms_of_other_label_noise_apart():
    labels = ["cross-entropy, label noise 0.2", "cross-entropy, label noise 0.4", "KD, label noise 0.4"]
    assert list(study("smoke", arms=NOISY).arms) == labels
    assert list(study("smoke", arms="ce; kd", label_noise=0.4).arms) == ["cross-entropy", "KD"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, ""),
        ({"label_noise": 0}, ""),
        ({"label_noise": 0.4}, "; label noise 0.4"),
        ({"label_noise": 0.4, "teacher.label_noise": 0}, "; label noise 0.4, the teacher's 0"),
        ({"teacher.label_noise": "0.2"}, "; label noise 0, the teacher's 0.2"),
        ({"arms": NOISY}, "; label noise 0.2 or 0.4, the teacher's 0"),
        ({"arms": "ce; kd label_noise=0.2"}, "; label noise 0 or 0.2, the teacher's 0"),
        ({"arms": "ce label_noise=0.4; kd label_noise=0.4"}, "; label noise 0.4, the teacher's 0"),  # in no label
        ({"label_noise": 0.4, "temperature": 2}, "; label noise 0.4; set: temperature 2"),
    ],
    ids=str,
)
def test_a_caption_says_the_label_noise_of_students_and_teacher(settings, said):
    made = study("smoke", **settings)
    assert made.caption(made.open_data()).endswith(f"1 epoch; resnet20 teaches resnet8{said}")


def test_of_a_teacher_whose_weights_are_given_no_label_noise_is_said(tmp_path):
    where = {"runs_root": str(tmp_path / "runs"), "device": "cpu", "train_images": 64}
    trained = study("smoke", teacher="resnet8", **where)
    run = training.train_teacher(trained.teacher, progress=False)
    for rate, said in ((0.4, "; label noise 0.4"), (0, "")):
        given = {"arms": f"ce label_noise={rate}; kd label_noise={rate}", "teacher.label_noise": 0.2}
        made = study("smoke", teacher="resnet8", teacher_checkpoint=str(run.weights()), **given, **where)
        assert made.caption(made.open_data()).endswith(f" %) teaches resnet8{said}")


def test_each_arm_learns_from_labels_of_its_own_noise_and_the_teacher_from_the_studys(tmp_path, monkeypatch):
    seen, step = {}, Arm.step

    def counting(arm, given):
        seen[arm.run.address] = seen.get(arm.run.address, 0) + torch.bincount(given.target, minlength=10)
        step(arm, given)

    monkeypatch.setattr(Arm, "step", counting)
    where = {"runs_root": str(tmp_path / "runs"), "figures_root": str(tmp_path / "figures"), "device": "cpu"}
    made = study("smoke", arms=NOISY, student="resnet8", teacher="resnet8", seeds=1, train_images=64, **where)
    students = experiments.run_students(made, made.open_data())
    whole = data.load("digits").subset(64, None).train
    expected = {s.run.address: s.config["label_noise"] for s in students} | {
        made.teacher.run(training.open_data(made.teacher)).address: 0
    }
    assert list(expected.values()) == [0.2, 0.4, 0.4, 0] and seen.keys() == expected.keys()
    for address, rate in expected.items():
        assert torch.equal(seen[address], torch.bincount(whole.with_label_noise(rate, 10).labels, minlength=10))
    assert len({tuple(counts.tolist()) for counts in seen.values()}) == 3


def test_a_caption_says_where_half_precision_was_used_asked_for_or_not(monkeypatch):
    usual = experiments.study("smoke")
    images = usual.open_data()
    assert "bfloat16" not in usual.caption(images)
    asked = experiments.study("smoke", precision="bfloat16")
    assert asked.caption(images).endswith("; set: precision bfloat16") and asked.name != usual.name
    monkeypatch.setattr(acceleration, "precision", lambda device, asked: "bfloat16")
    assert usual.caption(images).endswith("teaches resnet8; in bfloat16")
