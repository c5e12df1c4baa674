"""What models are tested with, the records of it, and the tables made of it."""

from dataclasses import replace
from functools import partial

from r2kd import (
    data,
    evaluation,
    experiments,
    models,
    parts,
    profiles,
    published,
    records,
    robustness,
    stats,
    teachers,
    tested,
)
from r2kd.robustness import Subject

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

FEW = parts.Tests(corruptions="fog+contrast", attacks="fgsm", robust_images=40, attacked_images=20)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").subset(100, 100)


def network(seed=0):
    torch.manual_seed(seed)
    return models.create("resnet8", 10).eval()


@pytest.fixture(scope="module")
def under(digits):
    return robustness.protocol(FEW, digits)


def test_names_of_corruptions_and_attacks_are_read():
    assert len(robustness.chosen_corruptions("standard")) == 15
    assert len(robustness.chosen_corruptions("all")) == 19
    assert robustness.chosen_corruptions("snow + fog") == ("snow", "fog")
    assert robustness.chosen_corruptions("none") == robustness.chosen_attacks("none") == ()
    assert set(robustness.chosen_attacks("all")) == {"fgsm", "pgd", "pgd_l2", "noise"}
    for text, choose in (("rain", robustness.chosen_corruptions), ("fgsm+cw", robustness.chosen_attacks)):
        with pytest.raises(ValueError, match=r"unknown .*known: "):
            choose(text)


def test_a_protocol_is_another_when_anything_is_that_a_number_depends_on(digits, under):
    others = [
        {"corruptions": "fog"},
        {"attacks": "pgd"},
        {"robust_images": 41},
        {"attacked_images": 21},
        {"as_jpeg": True},
    ]
    addresses = [robustness.protocol(FEW.with_options(**other), digits).address for other in others]
    addresses += [robustness.protocol(FEW, digits.subset(None, 99)).address]
    addresses += [robustness.protocol(FEW, digits, precision="bfloat16").address]
    addresses += [robustness.protocol(FEW, digits, teacher="another").address]
    addresses += [robustness.protocol(FEW, digits.subset(None, None, 10)).address, under.address]
    assert len(set(addresses)) == len(addresses)
    assert robustness.protocol(FEW, digits).address == under.address
    capped = robustness.protocol(FEW.with_options(robust_images=5000), digits)
    assert capped.images == 100 and "100 test images" in capped.words


def test_a_changed_corruption_makes_another_protocol(digits, under, monkeypatch):
    before = under.address
    changed = replace(robustness.CORRUPTIONS["contrast"], function=lambda images: images)
    weaker = replace(
        changed, function=robustness.CORRUPTIONS["contrast"].function, facts=changed.facts | {"at_32": (1,) * 5}
    )
    monkeypatch.setitem(robustness.CORRUPTIONS._entries, "contrast", weaker)
    assert robustness.protocol(FEW, digits).address != before
    monkeypatch.setitem(robustness.CORRUPTIONS._entries, "contrast", changed)
    assert robustness.protocol(FEW, digits).address != before


def test_the_words_say_whose_constants_and_what_is_left_out(digits, monkeypatch):
    monkeypatch.setattr(robustness, "missing", lambda name: "no photographs" if name == "frost" else None)
    said = robustness.protocol(FEW.with_options(corruptions="frost+fog", as_jpeg=True), digits)
    assert said.corruptions == ("fog",) and said.left_out == {"frost": "no photographs"}
    for words in ("1 corruption (without frost)", "CIFAR-C's constants for 32 px", "JPEG", "attacks on 20"):
        assert words in said.words


def test_all_models_meet_the_same_images_whoever_else_is_tested(digits, under):
    one, other = network(0), network(1)
    alone = robustness.measure({"one": one}, digits, under)["one"]
    together = robustness.measure({"other": other, "one": one}, digits, under)
    assert together["one"] == alone
    assert together["other"] != alone
    split = digits.test.subset(40)
    first, again = (robustness.corrupted(split, "fog", 3).images for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, robustness.corrupted(split, "fog", 3, seed=1).images)


def test_a_row_says_what_a_model_answers_to_a_test(digits, under):
    model = network()
    teacher = torch.randn(100, 10)
    rows = pd.DataFrame(robustness.measure({"a": model}, digits, under, teacher)["a"])
    fog = rows[(rows["name"] == "fog") & (rows["level"] == 4)].iloc[0]
    split = robustness.corrupted(digits.test.subset(40), "fog", 4)
    logits = evaluation.predict(model, split, digits)
    assert fog["n"] == 40 and fog["top1"] == evaluation.accuracy(logits, split.labels)
    assert fog["loss"] == pytest.approx(evaluation.summary(logits, split.labels)["loss"], rel=1e-4)
    attack = rows[rows["test"] == "attack"].set_index("level")["top1"]
    clean = evaluation.predict(model, digits.test.subset(20), digits)
    assert attack[0] == evaluation.accuracy(clean, digits.test.subset(20).labels)
    assert attack.is_monotonic_decreasing
    assert rows[(rows["test"] == "ambiguity") & (rows["name"] == "entropy")]["n"].sum() == 100
    assert rows[rows["test"] == "reliability"]["n"].sum() == 50  # the half that no temperature was fitted on
    assert "ambiguity" not in set(pd.DataFrame(robustness.measure({"a": model}, digits, under)["a"])["test"])


def test_what_a_model_answers_to_clean_images_is_told_beside_what_its_teacher_answers(digits):
    p = torch.tensor([512.0, 256, 128, 64, 32, 16, 8, 4, 2, 1]) / 1023  # whatever the image
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)).eval()
    nn.init.zeros_(model[2].weight)
    model[2].bias.data = p.log()
    teacher = torch.cat((3 * p.log().expand(75, 10), p.log().flip(0).expand(25, 10)))  # the same order, and the reverse
    alone = robustness.protocol(FEW.with_options(corruptions="none", attacks="none"), digits)

    def answers(*teacher_logits):
        rows = robustness.measure({"a": model}, digits, alone, *teacher_logits)["a"]
        assert {row["level"] for row in rows if row["test"] == "answers"} == {0}
        told = [{row["name"]: row["value"] for row in r if row["test"] == "answers"} for r in (rows, packed(rows))]
        assert told[0] == pytest.approx(told[1], rel=1e-4)
        return told[0]

    def packed(rows):
        return robustness.unpacked(robustness.packed(rows))

    own = {"top5": float((digits.test.labels < 5).sum()), "entropy": float(-(p * p.log()).sum())}
    own["confidence"] = 100 * 512 / 1023
    assert answers() == pytest.approx(own, rel=1e-5)
    assert answers(teacher) == pytest.approx(own | {"agreement": 75, "rank_correlation": 0.75 - 0.25}, rel=1e-5)


def test_a_temperature_is_fitted_on_validation_images_where_there_are_some(digits):
    held = digits.subset(None, None, 20)
    rows = pd.DataFrame(robustness.measure({"a": network()}, held, robustness.protocol(FEW, held))["a"])
    assert set(rows[rows["test"] == "calibration"]["n"]) == {100}
    logits = evaluation.predict(network(), held.validation, held)
    expected = evaluation.fit_temperature(logits, held.validation.labels)
    assert rows[rows["name"] == "after"]["level"].item() == pytest.approx(expected)


values = st.floats(0, 100, allow_nan=False).map(lambda value: float(f"{value:.5g}"))


@given(
    st.lists(
        st.tuples(st.sampled_from(["fog", "gaussian_noise"]), st.integers(0, 5), values, values),
        unique_by=lambda t: t[:2],
    )
)
def test_a_packed_record_says_what_its_rows_said(found):
    rows = [
        {"test": "corruption", "name": a, "level": float(b), "top1": c, "loss": d, "ece": None} for a, b, c, d in found
    ]
    back = robustness.unpacked({"address": "a", "weights": "1:2"} | robustness.packed(rows))
    key = lambda row: (row["name"], row["level"])  # noqa: E731
    expected = [{name: value for name, value in row.items() if value is not None} for row in rows]
    assert sorted(back, key=key) == sorted(expected, key=key)


def test_a_model_is_measured_once_and_again_when_its_weights_or_the_protocol_change(
    digits, under, tmp_path, monkeypatch
):
    measured = []
    real = robustness.measure
    monkeypatch.setattr(
        robustness, "measure", lambda models, *more: measured.append(sorted(models)) or real(models, *more)
    )
    places = {"images": digits, "folder": tmp_path / "study", "roots": [tmp_path]}

    def test(weights, under=under, names=("a", "b")):
        wanted = [Subject(name, weights, partial(network, i), {"arm": name}) for i, name in enumerate(names)]
        return robustness.test(wanted, under=under, **places)

    first = test("w1")
    again = test("w1")
    assert measured == [["a", "b"]]
    assert pd.DataFrame(first["a"]).equals(pd.DataFrame(again["a"]))
    gone = test(None)
    assert measured == [["a", "b"]] and gone == again
    test("w2", names=("a",))
    assert measured[1:] == [["a"]]
    test("w1", robustness.protocol(FEW.with_options(corruptions="fog"), digits))
    assert measured[2:] == [["a", "b"]]
    assert len(records.read([tmp_path / "study" / robustness.NAME])) == 4
    assert test(None, names=("c",)) == {}
    assert len(measured) == 3
    places["folder"] = tmp_path / "another"  # whose rows are read first
    for weights in ("w3", "w3", "w2"):
        test(weights, names=("a",))
    assert measured[3:] == [["a"]]


def test_official_images_are_used_where_they_lie(digits, under, monkeypatch):
    there = replace(under, official={"fog": "somewhere"})
    asked = []
    monkeypatch.setattr(
        robustness.official, "split", lambda path, severity, clean: asked.append((path, severity)) or clean
    )
    rows = pd.DataFrame(robustness.measure({"a": network()}, digits, there)["a"]).set_index(["name", "level"])["top1"]
    assert asked == [("somewhere", severity) for severity in (1, 2, 3, 4, 5)]
    assert rows["fog", 5] == rows["clean", 0] and "1 from the official files" in there.words
    assert there.address != under.address


def small(tmp_path, **settings):
    about = {"arms": "ce; kd; r2kd", "epochs": 1, "corruptions": "fog+contrast", "attacks": "fgsm"}
    places = {"figures_root": str(tmp_path / "figures"), "runs_root": str(tmp_path / "runs")}
    return experiments.study("smoke", **about | places | settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = small(tmp_path_factory.mktemp("study"))
    images = study.open_data()
    students = experiments.run_students(study, images)
    return study, images, students, experiments.tests_table(study, images, students)


def test_every_student_of_a_study_is_tested_when_it_is_trained(finished):
    study, _, students, tests = finished
    found = records.read([study.figures / robustness.NAME])
    assert {address.rpartition("@")[0] for address in found} >= {student.run.address for student in students}
    assert set(tests["arm"]) == set(study.arms) and set(tests["seed"]) == {0, 1}
    clean = tests[tests["test"] == "clean"].set_index(["arm", "seed"])["top1"]
    for student in students:
        assert clean[student.arm, student.config.seed] == pytest.approx(student.run.result["last_top1"], abs=1e-3)


def test_the_tests_outlive_the_weights(finished):
    study, images, students, tests = finished
    row = records.read([study.figures / records.NAME])
    gone = [s._replace(run=replace(s.run, record=row[s.run.address])) for s in students]
    assert experiments.tests_table(study, images, gone).equals(tests)


def test_tests_are_settings_of_a_study(tmp_path):
    usual = small(tmp_path, corruptions=None, attacks=None)
    other = small(tmp_path)
    assert experiments.study("quick").tests.corruptions == experiments.study("small").tests.attacks == "all"
    assert usual.tests.corruptions == profiles.PROFILES["smoke"].tests["corruptions"]
    assert other.tests.corruptions == "fog+contrast"
    assert usual.name != other.name  # no two studies share a folder of figures
    assert list(usual.arms.values()) == list(other.arms.values())  # and what is tested trains nothing
    with pytest.raises(ValueError, match="unknown corruption 'rain'"):
        small(tmp_path, corruptions="rain")
    with pytest.raises(ValueError, match="robust_images must be above 0"):
        small(tmp_path, robust_images=0)


def test_tables_of_what_was_found(finished):
    study, _, _, tests = finished
    assert study.reference == "cross-entropy"
    rows = tested.by_severity(tests)
    assert set(rows["severity"]) == {0, 1, 2, 3, 4, 5} and set(rows["family"]) == {"weather", "digital"}
    summary = tested.summary(tests, study.reference)
    assert summary.loc[summary["arm"] == study.reference, "mce"].eq(100).all()
    one = rows[(rows["arm"] == "KD") & (rows["seed"] == 1) & (rows["severity"] > 0)]["top1"].mean()
    assert summary[(summary["arm"] == "KD") & (summary["seed"] == 1)]["corrupted"].item() == pytest.approx(one)
    differences = tested.differences(tests, study.reference)
    overall = differences[(differences["corruption"] == tested.ALL) & (differences["arm"] == "KD")]
    paired = stats.paired_difference(summary, "KD", study.reference, "corrupted")
    assert overall[["mean", "half_width"]].to_numpy() == pytest.approx(paired[["mean", "half_width"]].to_numpy())
    families = tested.families(tests)
    assert len(families) == 3 * 2 * 6 and list(families["arm"].unique()) == list(study.arms)
    assert len(tested.attacks(tests)) == 3 * len(robustness.ATTACKS["fgsm"].epsilons)
    calibration = tested.calibration(tests)
    assert (calibration["loss_after"] <= calibration["loss_before"] + 0.05).all()
    reliability = tested.reliability(tests)
    assert reliability.groupby("arm")["samples"].sum().eq(2 * 100).all()
    assert set(tested.ambiguity(tests)["bin"]) == {1, 2, 3, 4, 5}


def test_pruned_teachers_are_tested_and_recorded(finished):
    study, images, _, _ = finished
    table = teachers.pruned_teachers(study, images, rates=(0.0, 0.9)).set_index(["teacher", "rate"])
    assert table.loc[("pruned", 0)].equals(table.loc[("dense", 0)]) and table.loc[("mixed", 0)].equals(
        table.loc[("dense", 0)]
    )
    assert teachers.pruned_teachers(study, images, rates=(0.0, 0.9)).set_index(["teacher", "rate"]).equals(table)
    elsewhere = replace(
        study.teacher, machine=replace(study.teacher.machine, runs_root=str(study.roots[-1] / "no runs"))
    )
    gone = replace(study, teacher=elsewhere, fresh=False)
    assert teachers.pruned_teachers(gone, images, rates=(0.0, 0.9)).set_index(["teacher", "rate"]).equals(table)
    assert not (study.roots[-1] / "no runs").exists()  # told from the records, nothing is trained


def test_label_noise_is_the_teachers_too_and_joins_the_figures_of_its_study(finished):
    study = finished[0]
    noisy = experiments.with_label_noise(study, 0.4, seeds=1)
    assert noisy.figures == study.figures and noisy.seeds == (0,)
    assert {config.data.label_noise for config in [noisy.teacher, *noisy.arms.values()]} == {0.4}
    assert not set(noisy.arms) & set(experiments.with_label_noise(study, 0.2).arms) | set(noisy.arms) & set(study.arms)
    assert set(experiments.with_label_noise(study, 0).arms) >= {"cross-entropy", "KD"}
    assert "label noise 0.4" in noisy.caption(noisy.open_data())
    assert noisy.tests.corruptions == noisy.tests.attacks == "none"


def test_published_students_are_recorded_and_only_one_protocol_is_shown(tmp_path, monkeypatch):
    images = replace(data.load("digits").subset(None, 60), train=None)
    students = tuple(s for s in published.STUDENTS if s.pair == "res56_res20")[:3]
    monkeypatch.setattr(published, "STUDENTS", students)
    monkeypatch.setattr(published, "CLASSES", 10)
    for student in students[:2]:
        path = tmp_path / student.path
        path.parent.mkdir(parents=True)
        torch.save({"model": models.create(student.model, 10).state_dict()}, path)
    tests = FEW.with_options(attacks="pgd", robust_images=20, attacked_images=10)
    published.test(tmp_path, images, torch.device("cpu"), tmp_path / "figures", tests, "float32")
    table, words = published.tests_table(tmp_path / "figures")
    assert list(table["arm"].unique()) == [student.augmentation for student in students[:2]]
    assert "2 corruptions x 5 severities on 20 test images" in words
    published.test(tmp_path, images, torch.device("cpu"), tmp_path / "figures", tests.with_options(corruptions="fog"))
    (tmp_path / students[0].path).unlink()
    published.test(tmp_path, images, torch.device("cpu"), tmp_path / "figures", tests.with_options(corruptions="snow"))
    assert published.tests_table(tmp_path / "figures")[1] == words
    summary = published.robustness_summary(table)
    figure = published.robustness_figure(summary)
    assert set(figure["measure"]) == set(published.SHOWN) and figure["present"].eq(2).all()
    clean = table[(table["test"] == "clean") & (table["arm"] == students[0].augmentation)]["top1"].item()
    assert summary["clean"].iloc[0] == clean
    assert published.tests_table(tmp_path / "nowhere")[1] == ""
