"""What is left of a run when its weights are gone: its record."""

import lzma
import shutil
from dataclasses import replace

from r2kd import experiments, models, records, runs, stats, training

import pandas as pd
import pytest
import torch

TINY = {"train_images": 64, "test_images": 50, "epochs": 1, "teacher.epochs": 1, "device": "cpu", "seeds": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(settings, images): a study of two arms, trained."""
    root = tmp_path_factory.mktemp("records")
    where = {"runs_root": str(root / "runs"), "figures_root": str(root / "figures")}
    settings = TINY | where | {"arms": "ce; kd cutmix", "fresh": False}
    study = experiments.study("smoke", **settings)
    images = study.open_data()
    experiments.run_students(study, images)
    return settings, images


def copied(tiny, tmp_path):
    """The same study in a clone that has the figures and not the runs."""
    settings, images = tiny
    shutil.copytree(settings["figures_root"], tmp_path / "figures")
    moved = {"runs_root": str(tmp_path / "runs"), "figures_root": str(tmp_path / "figures")}
    return experiments.study("smoke", **settings | moved), images


def test_a_study_leaves_a_row_a_finished_run(tiny):
    settings, images = tiny
    study = experiments.study("smoke", **settings)
    table = pd.read_csv(study.figures / "records.csv").set_index("address")
    assert len(table) == 4 and set(table["arm"]) == {"cross-entropy", "KD cutmix"}
    for student in experiments.run_students(study, images):
        row = table.loc[student.run.address]
        assert row["last_top1"] == pytest.approx(student.run.result["last_top1"], rel=1e-15)
        assert (row["seed"], row["device"], row["precision"]) == (student.config.seed, "cpu", "float32")
        assert {"seconds", "commit", "torch", "method.ce_weight"} <= set(table)
    assert table.loc[table["method"] == "ce", "method.temperature"].isna().all()


def test_without_weights_a_run_is_reported_from_its_record_and_marked(tiny, tmp_path, monkeypatch, capsys):
    study, images = copied(tiny, tmp_path)
    monkeypatch.setattr(training, "run_epochs", lambda *_: pytest.fail("trained again"))
    students = experiments.run_students(study, images, weights=False)
    here = experiments.run_students(experiments.study("smoke", **tiny[0]), images, weights=False)
    assert "4 of 4 students are reported from their records" in capsys.readouterr().out
    assert experiments.sources(study, students) == "; 4 students from their records" and not experiments.sources(
        study, here
    )
    assert experiments.sources(study, here[:1]) == "; 1 of the study's 4 students so far"
    elsewhere = here[0].run.row | {"precision": "bfloat16"}
    mixed = [here[0]._replace(run=runs.Run(here[0].run.folder, elsewhere)), *here[1:]]
    assert experiments.sources(study, mixed) == "; computed 1 in bfloat16, 3 in float32; 1 students from their records"
    tests = experiments.tests_table(study, images, here)
    assert experiments.share_tested(here, tests) == ""
    assert experiments.share_tested(here, tests[tests["seed"] > 0]) == "; 2 of them tested"
    assert {"arm", "seed", "last_top1", "precision"} <= set(experiments.results_table([]))
    tables = [experiments.results_table(found).drop(columns="source") for found in (students, here)]
    assert tables[0].equals(tables[1])
    assert experiments.curves_table(students).equals(experiments.curves_table(here))
    assert set(experiments.results_table(students)["source"]) == {"record"}
    assert not (tmp_path / "runs").exists()


def test_of_what_is_recorded_alone_nothing_is_trained(tiny, tmp_path, capsys):
    study, images = copied(tiny, tmp_path)
    asked = dict(study.made_of[1]) | {"arms": "ce; kd cutmix; kd cutout", "recorded": True}
    told = experiments.run_students(experiments.study("smoke", **asked), images, weights=False)
    assert {(s.arm, s.run.source) for s in told} == {("cross-entropy", "record"), ("KD cutmix", "record")}
    assert not (tmp_path / "runs").exists() and "2 of 6 students have neither run nor record" in capsys.readouterr().out


def test_who_looks_knows_the_committed_records_and_writes_beside_the_runs(tiny, tmp_path, monkeypatch):
    study, images = copied(tiny, tmp_path)
    monkeypatch.setattr(experiments, "ROOT", tmp_path)  # its figures/ are the committed ones
    asked = {name: value for name, value in study.made_of[1].items() if name != "figures_root"}
    looked = experiments.study("smoke", **asked | {"fresh": False})
    before = {path: path.read_bytes() for path in (tmp_path / "figures").rglob("*") if path.is_file()}
    told = experiments.run_students(looked, images, weights=False)
    assert {student.run.source for student in told} == {"record"}
    assert looked.figures == tmp_path / "runs" / "figures" / study.figures.relative_to(tmp_path / "figures")
    assert (looked.figures / records.NAME).is_file()
    assert before == {path: path.read_bytes() for path in (tmp_path / "figures").rglob("*") if path.is_file()}


def test_what_needs_weights_or_is_fresh_is_trained(tiny, tmp_path):
    study, images = copied(tiny, tmp_path)
    fresh = experiments.study("smoke", **dict(study.made_of[1]) | {"fresh": True})
    for found in (experiments.run_students(fresh, images, weights=False), experiments.run_students(study, images)):
        assert {student.run.source for student in found} == {"run"} and all(s.run.finished for s in found)


def test_a_record_is_found_in_whichever_study_it_stands(tiny, tmp_path):
    study, images = copied(tiny, tmp_path)
    other = experiments.study("smoke", **dict(study.made_of[1]) | {"arms": "kd cutmix; kd", "seeds": 1})
    sources = {s.arm: s.run.source for s in experiments.run_students(other, images, weights=False)}
    assert sources == {"KD cutmix": "record", "KD": "run"} and other.figures != study.figures


def test_a_run_that_comes_out_otherwise_than_recorded_is_said_and_kept(tiny, tmp_path, capsys):
    study, images = copied(tiny, tmp_path)
    path = study.figures / "records.csv"
    before = path.read_bytes()
    experiments.run_students(study, images)
    assert path.read_bytes() == before and "kept" not in capsys.readouterr().err  # the same numbers: the row stays
    table = pd.read_csv(path)
    table.loc[0, "last_top1"] += 1
    table.to_csv(path, index=False)
    experiments.run_students(study, images)
    said = capsys.readouterr().err
    assert said.count("the new one is kept") == 1 and table["address"][0] in said
    assert sorted(path.read_text().splitlines()) != sorted(table.to_csv(index=False).splitlines())
    assert pd.read_csv(path)["last_top1"][0] == table["last_top1"][0] - 1
    table.loc[1, "last_top1"] += 4  # now both of this seed
    table.to_csv(path, index=False)
    experiments.run_students(study, images)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "kept" in line]
    assert "and 1 more; -2.50 points on average, -4.00 at most: the new ones are kept" in line


def test_records_of_two_machines_merge_and_what_differs_is_said(tiny, tmp_path, capsys):
    study, _ = copied(tiny, tmp_path)
    path = study.figures / "records.csv"
    table = pd.read_csv(path)
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    table[:3].to_csv(here, index=False)
    theirs = table[1:].copy()
    theirs.loc[1, ["last_top1", "device"]] = [12.5, "another"]
    theirs.to_csv(there, index=False)
    assert records.merge([here, there], here) == 4
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and table["address"][1] in said
        and "12.50 % (another" in said
        and "first one is kept" in said
    )
    assert pd.read_csv(here)["last_top1"].tolist() == pytest.approx(table["last_top1"].tolist())


def test_a_table_that_is_none_of_records_is_named(tmp_path):
    (tmp_path / "records.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"records\.csv is not a table of records"):
        records.under(tmp_path)


def test_a_table_that_is_cut_off_in_a_line_is_named(tiny, tmp_path):
    study, _ = copied(tiny, tmp_path)
    path = study.figures / "records.csv"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"records\.csv is cut off in its last line"):
        records.under(tmp_path)


def test_all_runs_are_one_table(tiny):
    table = runs.table(tiny[0]["runs_root"])
    assert len(table) == 5 and (table["state"] == "finished").all()
    assert set(table["method"].dropna()) == {"ce", "kd"} and table["view.draws"].dropna().unique().tolist() == ["batch"]


def test_a_teacher_whose_weights_are_given_has_a_record_that_stays(tmp_path, capsys):
    torch.save(models.create("resnet20", 10).state_dict(), tmp_path / "mine.pth")
    where = {"runs_root": str(tmp_path / "runs"), "figures_root": str(tmp_path / "figures")}
    settings = {name: value for name, value in TINY.items() if name != "teacher.epochs"} | where
    settings["teacher_checkpoint"] = str(tmp_path / "mine.pth")
    study = experiments.study("smoke", **settings, arms="ce")
    with pytest.raises(ValueError, match=r"teacher\.epochs acts on nothing: the weights are given"):
        experiments.study("smoke", **settings | {"teacher.epochs": 2}, arms="ce")
    images = study.open_data()
    for _ in range(2):
        experiments.run_teacher(study, images)
    (row,) = pd.read_csv(study.figures / "records.csv").to_dict("records")
    assert row["checkpoint"] == "mine.pth" and row["address"].startswith("teacher-digits-resnet20-given-")
    assert "kept" not in capsys.readouterr().err


def test_two_temperatures_are_two_rows(tiny, tmp_path):
    where = {"runs_root": str(tmp_path / "runs"), "figures_root": str(tmp_path / "figures")}
    study = experiments.study("smoke", **TINY | where, arms="kd; kd:temperature=1")
    students = experiments.run_students(study, tiny[1])
    table = stats.mean_interval(experiments.results_table(students), experiments.ARM, "last_top1")
    assert table["arm"].tolist() == ["KD, temperature 4", "KD, temperature 1"] and table["n"].tolist() == [2, 2]
    assert len({student.run.address for student in students}) == 4


@pytest.fixture
def kept(tiny, tmp_path, monkeypatch):
    """The same clone, where the teacher's weights stand beside its record; the folder of both, and the run that it was."""
    study, images = copied(tiny, tmp_path)
    was = experiments.study("smoke", **tiny[0]).teacher.run(images)
    records.write(study.figures, [("teacher", was)])
    records.keep(was, study.figures)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    return study, images, was


def test_a_teacher_whose_weights_stand_beside_its_record_is_put_back_and_not_trained(kept):
    study, images, was = kept
    recorded = (study.figures / records.NAME).read_bytes()
    run = experiments.teacher_run(study, images)
    assert run.folder != was.folder and run.finished and run.row["state"] == "finished"
    assert run.weights().read_bytes() == was.weights().read_bytes() and not run.weights("best").exists()
    assert not (run.folder / "timing.csv").exists()  # it was not trained
    assert run.result == was.result and run.metrics["test_top1"].tolist() == was.metrics["test_top1"].tolist()
    again = [student.run for student in experiments.run_students(study, images)]
    assert all((run.folder / "timing.csv").exists() for run in again)  # they were
    assert (study.figures / records.NAME).read_bytes() == recorded  # and came out as recorded


def test_a_fresh_study_trains_the_teacher_that_is_kept(kept):
    study, images, was = kept
    run = experiments.teacher_run(replace(study, fresh=True), images)
    assert (run.folder / "timing.csv").exists() and run.weights().read_bytes() == was.weights().read_bytes()


@pytest.mark.parametrize("what", ["cut", "another", "recordless"])
def test_a_kept_teacher_that_is_damaged_is_named_in_a_line(kept, what):
    study, images, _ = kept
    (path,) = study.figures.glob(f"*{records.KEPT}")
    if what == "recordless":
        (study.figures / records.NAME).write_text("address,arm\nanother,KD\n")
    else:
        path.write_bytes(path.read_bytes()[:-100] if what == "cut" else lzma.compress(b"another"))
    with pytest.raises(ValueError, match=rf"{path.name} .*take it from git$") as raised:
        experiments.teacher_run(study, images)
    assert "\n" not in str(raised.value) and not study.teacher.run(images).finished


def test_the_kept_teachers_are_whole_and_small_enough_for_a_repository():
    paths = sorted((records.ROOT / "figures").rglob(f"*{records.KEPT}"))
    assert paths
    for path in paths:
        run = runs.Run(path.parent / path.name.removesuffix(records.KEPT))
        record, state = records.kept(run)
        assert path.stat().st_size < 2**20 and record.row["arm"] == "teacher" and models.not_finite(state) is None
        models.create(record.row["model"], 100).load_state_dict(state)
