"""What a run has computed is kept, no file is trusted, and processes that are started at once share the work."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from r2kd import arm as arms
from r2kd import evaluation, experiments, files, models, records, runs, training
from r2kd.config import DistillConfig, TeacherConfig

import numpy as np
import pandas as pd
import pytest
import torch

SMALL = {"dataset": "digits", "image_size": 16, "train_images": 64, "test_images": 50, "epochs": 2, "device": "cpu"}
FILES = ["config.json", "result.json", "last.pt", "best.pt", "metrics.csv"]
NUMBERS = ["metrics.csv", "last.pt", "best.pt"]


@pytest.fixture(scope="module")
def images():
    return training.open_data(TeacherConfig.of("resnet8", **SMALL))


@pytest.fixture(scope="module")
def kept(tmp_path_factory, images):
    """(configuration, its finished run): as it is when nothing disturbs it."""
    config = TeacherConfig.of("resnet8", **SMALL, runs_root=str(tmp_path_factory.mktemp("kept")))
    return config, training.train_teacher(config, images, progress=False)


@pytest.fixture
def copy(kept, images, tmp_path):
    """(configuration, run): a copy of the finished run, to be damaged."""
    config = kept[0].with_settings({"runs_root": str(tmp_path)})
    run = config.run(images)
    shutil.copytree(kept[1].folder, run.folder)
    return config, run


@pytest.fixture
def cut(kept, images, tmp_path, monkeypatch):
    """(configuration, run): one that was cut off after its first epoch."""
    config = kept[0].with_settings({"runs_root": str(tmp_path)})
    begin = arms.Arm.begin_epoch

    def stopped(arm):
        if arm.epoch == 1:
            raise KeyboardInterrupt
        begin(arm)

    monkeypatch.setattr(arms.Arm, "begin_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        training.train_teacher(config, images, progress=False)
    monkeypatch.undo()
    return config, config.run(images)


def train(config, images):
    return training.train_teacher(config, images, progress=False)


def same(run, other) -> bool:
    return run.result.keys() == other.result.keys() and all(
        (run.folder / name).read_bytes() == (other.folder / name).read_bytes() for name in NUMBERS
    )


def flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


def held_by_another(*paths, until, seconds=60):
    """A process that holds the locks of these paths until a file is there."""
    held = """
import sys, time, pathlib, filelock
until, seconds, *paths = sys.argv[1:]
locks = [filelock.FileLock(path) for path in paths]
[lock.acquire() for lock in locks]
print("held", flush=True)
deadline = time.monotonic() + float(seconds)
while not pathlib.Path(until).exists() and time.monotonic() < deadline:
    time.sleep(0.02)
"""
    locks = [path.with_name(f".{path.name}.lock") for path in paths]
    locks[0].parent.mkdir(parents=True, exist_ok=True)
    other = subprocess.Popen([sys.executable, "-c", held, until, str(seconds), *locks], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    return other


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_flipped_byte_in_the_weights_is_named_set_aside_and_the_run_trained_again(which, copy, kept, images, capsys):
    config, run = copy
    flip(run.weights(which))
    torch.load(run.weights(which), weights_only=True)  # torch does not notice
    loaded = training.load_model(config, run, 10, which).state_dict()
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert f"{run.folder}: {which}.pt, result.json damaged or missing, kept as {which}.pt.damaged" in said
    assert same(run, kept[1]) and (run.folder / f"{which}.pt.damaged").exists()
    assert all(torch.equal(v, loaded[k]) for k, v in models.read_checkpoint(kept[1].weights(which)).items())


def test_a_teacher_with_a_flipped_byte_is_trained_again_before_it_teaches(copy, kept, images, tmp_path, capsys):
    config, run = copy
    flip(run.weights())
    students = [
        DistillConfig.of("resnet8", teacher=teacher, method="kd", **SMALL, runs_root=str(tmp_path / name))
        for name, teacher in (("damaged", config), ("whole", kept[0]))
    ]
    assert same(*(training.distill(student, images, progress=False) for student in students))
    assert "last.pt, result.json damaged" in capsys.readouterr().err and same(run, kept[1])


def test_no_flipped_byte_of_a_state_resumes(cut, kept, images, capsys):
    config, run = cut
    state = run.folder / "state.pt"
    whole = state.read_bytes()
    for at in np.linspace(0, 0.9999, 50):
        flip(state, at)
        with pytest.raises(ValueError, match=r"state\.pt does not hold what was written"):
            files.read_sealed(state)
        state.write_bytes(whole)
    flip(state)
    assert same(train(config, images), kept[1])
    said = capsys.readouterr().err
    assert said == f"{run.folder}: state.pt damaged or missing, kept as state.pt.damaged; made again\n"


def foreign(kind, folder):
    """Put content of another kind in the place of a state."""
    path = folder / "state.pt"
    if kind == "a directory":
        path.unlink()
        path.mkdir()
    elif kind == "another run's":
        files.write_torch(path, files.read_sealed(path) | {"address": "teacher-of-others"}, sealed=True)
    elif kind == "another model's":
        files.write_torch(path, files.read_sealed(path) | {"model": {"fc.weight": torch.ones(2)}}, sealed=True)
    elif kind == "a tensor":
        torch.save(torch.ones(3), path)
    else:
        path.write_bytes({"empty": b"", "truncated": path.read_bytes()[:5000], "text": b"sha256 none"}[kind])


@pytest.mark.parametrize(
    "kind", ["empty", "truncated", "text", "a tensor", "a directory", "another run's", "another model's"]
)
def test_a_state_of_another_content_is_set_aside_and_the_run_starts_anew(kind, cut, images, capsys):
    config, run = cut
    foreign(kind, run.folder)
    assert train(config, images).finished and (run.folder / "state.pt.damaged").exists()
    assert capsys.readouterr().err.count("state.pt damaged") == 1


def test_runs_and_states_of_before_there_were_digests_are_taken_as_they_are(cut, kept, images, monkeypatch):
    config, run = cut
    state = files.read_sealed(run.folder / "state.pt")
    del state["address"]
    torch.save(state, run.folder / "state.pt")
    (run.folder / "environment.json").write_text(json.dumps(run.starts[0]))
    assert same(train(config, images), kept[1])  # from the state: metrics of the first epoch are in it
    assert [start["epochs"] for start in run.starts] == [0, 1]
    result = json.loads((run.folder / "result.json").read_text())
    old = {name: value for name, value in result.items() if name not in ("files", "sha256")}
    (run.folder / "result.json").write_text(json.dumps(old | {"chosen_top1": float("nan")}))
    monkeypatch.setattr(training, "run_epochs", lambda *_: pytest.fail("trained again"))
    assert train(config, images).result == old
    assert training.load_model(config, run, 10)


@pytest.mark.parametrize("content", ["missing", "empty", "truncated", "another kind", "a directory"])
@pytest.mark.parametrize("name", FILES)
def test_a_finished_run_that_lacks_anything_is_mended_in_one_line_and_the_table_of_runs_survives(
    name, content, copy, kept, images, capsys
):
    config, run = copy
    path = run.folder / name
    if content in ("missing", "a directory"):
        path.unlink()
    if content == "a directory":
        path.mkdir()
    elif content != "missing":
        kinds = {"empty": b"", "truncated": path.read_bytes()[: path.stat().st_size // 2], "another kind": b"[1, 2]"}
        path.write_bytes(kinds[content])
    unread = path.suffix == ".pt" and content not in ("missing", "a directory")  # weights are looked at when loaded
    assert run.finished == unread
    (row,) = runs.table(config.machine.runs_root).to_dict("records")
    unfinished = (name, content) == ("result.json", "missing")
    told = "finished" if unread else "unfinished, 2 epochs" if unfinished else f"damaged: {name}"
    assert row["address"] == run.address and row["state"] == told
    training.load_model(config, train(config, images), 10, "best" if name == "best.pt" else "last")
    said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(said) == (not unfinished) and all(name in line and str(run.folder) in line for line in said)
    assert run.finished and same(run, kept[1]) and runs.table(config.machine.runs_root)["state"][0] == "finished"


def test_a_number_changed_in_the_result_or_the_metrics_is_noticed(copy, images, kept):
    config, run = copy
    for name in ("result.json", "metrics.csv"):
        path = run.folder / name
        text = path.read_text()
        digit = next(i for i, letter in enumerate(text) if letter in "3456")
        path.write_text(f"{text[:digit]}7{text[digit + 1 :]}")
        assert not run.finished and name in run.damaged
        if name == "metrics.csv":
            with pytest.raises(ValueError, match=r"metrics\.csv does not hold what was written"):
                _ = run.metrics
        assert same(train(config, images), kept[1])


def test_a_damaged_configuration_costs_no_training(copy, images, monkeypatch, capsys):
    config, run = copy
    (run.folder / "config.json").write_text("{")
    monkeypatch.setattr(training, "run_epochs", lambda *_: pytest.fail("trained again"))
    assert train(config, images).config["model"] == "resnet8" and run.finished
    assert "config.json damaged or missing, kept as config.json.damaged; made again" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["metrics.csv", "timing.csv", "last.pt", "best.pt", "result.json"])
def test_a_kill_before_any_write_after_the_last_state_ends_as_if_there_had_been_none(
    missing, kept, images, tmp_path, monkeypatch
):
    config = kept[0].with_settings({"runs_root": str(tmp_path)})
    write = files.write_atomically
    states = []

    def killed(path, content, lasting=True):
        states.append(path.name == "state.pt")
        if sum(states) == 2 and path.name == missing:
            raise KeyboardInterrupt
        write(path, content, lasting)

    monkeypatch.setattr(files, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, images)
    monkeypatch.undo()
    run = config.run(images)
    assert not run.finished
    assert same(train(config, images), kept[1]) and len(pd.read_csv(run.folder / "timing.csv")) == 2


def test_a_run_whose_weights_end_not_finite_fails_and_says_so(images, tmp_path):
    """The loss of its only batch is that of the weights that it was born with."""
    one_batch = SMALL | {"epochs": 1, "batch_size": 64, "learning_rate": 1e30}
    config = TeacherConfig.of("resnet8", **one_batch, runs_root=str(tmp_path))
    with pytest.raises(
        FloatingPointError, match=r"teacher-digits.* became (nan|inf) in epoch 1.*smaller learning rate"
    ):
        train(config, images)
    run = config.run(images)
    assert not run.finished and not (run.folder / "state.pt").exists()


def test_running_statistics_that_are_not_finite_count_too(images, tmp_path, monkeypatch):
    config = TeacherConfig.of("resnet8", **SMALL | {"epochs": 1}, runs_root=str(tmp_path))
    end = arms.Arm.end_epoch

    def overflown(arm, *given):
        arm.model.bn1.running_var[0] = float("inf")
        end(arm, *given)

    monkeypatch.setattr(arms.Arm, "end_epoch", overflown)
    with pytest.raises(FloatingPointError, match=r"bn1\.running_var, one of the weights"):
        train(config, images)


def test_a_test_loss_that_is_not_finite_fails_the_run(images, tmp_path, monkeypatch):
    config = TeacherConfig.of("resnet8", **SMALL, runs_root=str(tmp_path))
    monkeypatch.setattr(evaluation, "summary", lambda *_: {"top1": 10.0, "top5": 50.0, "loss": float("inf"), "n": 1})
    with pytest.raises(FloatingPointError, match=r"the loss on the test images of teacher-.* became inf in epoch 1"):
        train(config, images)


def test_an_epoch_that_was_chosen_before_test_images_were_looked_at_has_no_test_accuracy(images, tmp_path, monkeypatch):
    asked = SMALL | {"epochs": 2, "tested_from": 0.6, "train_images": 40, "validation_images": 24}
    config = TeacherConfig.of("resnet8", **asked, runs_root=str(tmp_path))
    summary = evaluation.summary

    def worse_each_time(*given):
        worse_each_time.calls += 1
        return summary(*given) | {"top1": 50.0 / worse_each_time.calls}

    worse_each_time.calls = 0
    monkeypatch.setattr(evaluation, "summary", worse_each_time)
    run = train(config, training.open_data(config))
    assert "chosen_top1" not in run.result and run.result["chosen_epoch"] == 1
    assert "NaN" not in (run.folder / "result.json").read_text()
    records.write(tmp_path / "figures", [("teacher", run)])
    (row,) = records.under(tmp_path / "figures").values()
    assert row["chosen_epoch"] == 1 and "chosen_top1" not in runs.Run(run.folder, row).result
    student = experiments.Student("kd", DistillConfig.of("resnet8", teacher=config, method="kd"), run)
    assert "chosen_top1" not in experiments.results_table([student])


def test_a_teacher_of_weights_that_are_not_finite_is_refused_by_its_name(kept, images, tmp_path, monkeypatch):
    weights = models.read_checkpoint(kept[1].weights())
    torch.save(weights | {"fc.bias": torch.full((10,), float("nan"))}, tmp_path / "broken.pth")
    given = TeacherConfig.of("resnet8", checkpoint=str(tmp_path / "broken.pth"), **SMALL, runs_root=str(tmp_path))
    student = DistillConfig.of("resnet8", teacher=given, method="kd", **SMALL, runs_root=str(tmp_path))
    with pytest.raises(ValueError, match=r"broken\.pth holds NaN: 10 of"):
        training.distill(student, images, progress=False)
    assert not given.run(images).finished

    config = kept[0].with_settings({"runs_root": str(tmp_path / "before")})  # a run that a version of before let finish
    run = config.run(images)
    shutil.copytree(kept[1].folder, run.folder)
    result = {name: value for name, value in run.result.items() if name not in ("files", "sha256")}
    (run.folder / "result.json").write_text(json.dumps(result))
    torch.save({"model": weights | {"bn1.running_mean": torch.full((16,), float("inf"))}}, run.weights())
    taught = DistillConfig.of("resnet8", teacher=config, method="kd", **SMALL, runs_root=str(tmp_path))
    with pytest.raises(ValueError, match=rf"{run.address}.*last\.pt holds infinite values: 16 of"):
        training.distill(taught, images, progress=False)


def test_a_resume_under_another_number_of_threads_says_so_and_each_start_has_its_line(cut, images, capsys, monkeypatch):
    config, run = cut
    began = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: began + 1)
    assert train(config, images).finished
    told = f"{run.address} goes on with threads {began + 1}, before with {began}: its numbers are not those"
    assert capsys.readouterr().err.splitlines()[0].startswith(told)
    assert [(start["threads"], start["epochs"]) for start in run.starts] == [(began, 0), (began + 1, 1)]
    assert run.row["threads"] == f"{began} then {began + 1}"


def test_starts_that_came_to_no_epoch_have_computed_nothing():
    used = [{"threads": t, "epochs": e} for t, e in ((4, 0), (1, 0), (2, 3), (1, 3))]
    assert runs._used(used, "threads") == [1] and runs._used(used[:3], "threads") == [1, 2]
    assert runs._used([{"threads": 2}, {"threads": 2, "epochs": 5}], "threads") == [2]


def test_a_run_that_another_process_is_at_is_left_alone_and_the_free_ones_are_trained_first(
    kept, images, tmp_path, monkeypatch, capsys
):
    busy, free = (
        DistillConfig.of("resnet8", teacher=kept[0], method=m, **SMALL, runs_root=str(tmp_path)) for m in ("ce", "kd")
    )
    run = busy.run(images)
    run.folder.mkdir(parents=True)
    living = run.folder / ".state.pt.1.tmp"
    living.write_bytes(b"being written")
    other = held_by_another(run.folder, until=tmp_path / "go")
    left = training.distill_all([busy, free], images, progress=False, wait=False)
    assert [one.finished for one in left] == [False, True] and living.exists()
    assert capsys.readouterr().err == ""
    together = training._train_together

    def looked_at(missing, *given):
        assert list(missing) == [run] and other.poll() is not None
        return together(missing, *given)

    monkeypatch.setattr(training, "_train_together", looked_at)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: (time.sleep(0.5), other.kill(), other.wait()))  # a dead process holds nothing
        assert all(one.finished for one in training.distill_all([busy, free], images, progress=False))
    assert not living.exists()
    assert capsys.readouterr().err == f"waiting for another process, which is at {run.address}\n"


def test_a_run_that_another_finishes_between_two_looks_is_returned(copy, images, monkeypatch):
    config, run = copy
    elsewhere = run.folder.with_name("elsewhere")
    run.folder.rename(elsewhere)
    alone = files.alone

    def finished_just_before(path, wait=True):
        if path == run.folder and elsewhere.exists():
            elsewhere.rename(run.folder)
        return alone(path, wait)

    monkeypatch.setattr(files, "alone", finished_just_before)
    monkeypatch.setattr(training, "run_epochs", lambda *_: pytest.fail("trained again"))
    assert train(config, images) == run and run.finished
    assert not list(run.folder.parent.glob(".*.lock"))


def test_a_state_that_is_gone_when_it_is_read_is_no_state(copy):
    assert copy[1].load_epoch() is None


def test_who_holds_a_run_does_not_wait_for_itself(kept, images, tmp_path):
    config = kept[0].with_settings({"runs_root": str(tmp_path)})
    with files.alone(config.run(images).folder):
        assert same(train(config, images), kept[1])


def test_unfinished_runs_are_cleared_but_not_what_another_is_at_or_what_is_damaged(copy, kept, images, tmp_path):
    damaged = copy[1]
    (damaged.folder / "metrics.csv").unlink()
    for name in ("busy", "begun"):
        shutil.copytree(kept[1].folder, tmp_path / name)
        (tmp_path / name / "result.json").unlink()
    other = held_by_another(tmp_path / "busy", until=tmp_path / "go")
    assert runs.delete_unfinished(tmp_path) == ["begun"] and damaged.weights().exists()
    (tmp_path / "go").touch()
    other.wait()
    assert runs.delete_unfinished(tmp_path) == ["busy"]
    assert {path.name for path in tmp_path.iterdir()} == {damaged.address, "go"}


def test_processes_do_not_lose_each_others_records(tmp_path):
    def add(number):
        address = f"run-{number:02}"
        run = runs.Run(Path(address), {"address": address, "last_top1": 1.0 * number, "best_top1": 1.0})
        records.write(tmp_path, [(f"arm {number}", run)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    assert set(records.under(tmp_path)) == {f"run-{number:02}" for number in range(24)}


def test_records_that_are_there_already_leave_their_file_as_it_is(tmp_path):
    run = runs.Run(Path("run"), {"address": "run", "last_top1": 1.0, "best_top1": 1.0})
    path = records.write(tmp_path, [("an arm", run)])
    path.write_text(path.read_text().replace("an arm", "my name for it"))
    before = path.stat().st_mtime_ns
    records.write(tmp_path, [("an arm", run)])
    assert path.stat().st_mtime_ns == before and "my name" in path.read_text()


def test_the_rows_of_a_study_stand_in_its_order_and_the_others_where_they_are():
    rows = {name: {"address": name} for name in ("b", "other", "c", "a")}
    assert [row["address"] for row in records.in_order(rows, ["a", "b", "c", "d"])] == ["a", "other", "b", "c"]
    assert records.in_order(rows, []) == list(rows.values())


TINY = {"train_images": 64, "test_images": 40, "epochs": 1, "teacher.epochs": 1, "device": "cpu", "teacher": "resnet8"}
TINY |= {"arms": "ce; kd cutmix", "corruptions": "brightness", "attacks": "none", "robust_images": 20}


def tables(root: str, seeds: int) -> str:
    """Run a study of two arms with its tests; what it tells."""
    where = {"runs_root": f"{root}/runs", "figures_root": f"{root}/figures", "seeds": seeds}
    study = experiments.study("smoke", **TINY | where)
    images = study.open_data()
    experiments.run_teacher(study, images)
    students = experiments.run_students(study, images)
    told = [experiments.results_table(students), experiments.tests_table(study, images, students)]
    return "\n".join(table.to_csv() for table in told)


def at_once(processes: int, root: Path, seeds: int) -> list[str]:
    """Start one study in several processes at once; the tables that each tells, once all have ended without failure."""
    here = Path(__file__).resolve().parent
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parent), str(here)])
    command = "import sys, test_kept; print(test_kept.tables(sys.argv[1], int(sys.argv[2])))"
    call = [sys.executable, "-c", command, str(root), str(seeds)]
    with ThreadPoolExecutor(processes) as pool:
        ended = [
            pool.submit(subprocess.run, call, capture_output=True, text=True, env=environment) for _ in range(processes)
        ]
    for process in ended:
        assert process.result().returncode == 0, process.result().stderr
    return [process.result().stdout for process in ended]


def written(root: Path) -> dict[str, bytes]:
    """The tables and weights of a study, without what tells the time and the state of the clone."""
    told = {path.relative_to(root): path.read_bytes() for name in NUMBERS for path in root.rglob(name)}
    for path in root.rglob("*records.csv"):
        table = pd.read_csv(path).drop(columns=["seconds", "started", "commit"], errors="ignore")
        told[path.relative_to(root)] = table.to_csv().encode()
    return told


def share(processes: int, root: Path, seeds: int = 3) -> None:
    """Raises AssertionError unless processes started at once compute each run once and make the tables that one makes alone."""
    alone = tables(str(root / "alone"), seeds)
    told = at_once(processes, root / "together", seeds)
    assert {text.strip() for text in told} == {alone.strip()}
    assert written(root / "together") == written(root / "alone")
    made = [runs.Run(path.parent) for path in (root / "together").rglob("config.json")]
    assert len(made) == 1 + 2 * seeds and all(len(run.starts) == 1 for run in made)


def test_processes_started_at_once_on_one_study_compute_each_run_once_and_make_the_same_tables(tmp_path):
    share(3, tmp_path)


def test_a_second_process_on_a_study_takes_the_next_seed_that_is_free(tmp_path, monkeypatch):
    where = {"runs_root": str(tmp_path / "runs"), "figures_root": str(tmp_path / "figures"), "seeds": 2}
    study = experiments.study("smoke", **TINY | where | {"corruptions": "none"})
    images = study.open_data()
    busy = [config.run(images).folder for config in study.students(0).values()]
    other = held_by_another(*busy, until=tmp_path / "go")
    order, run_epochs = [], training.run_epochs

    def watched(arms_, *given):
        run_epochs(arms_, *given)
        order.extend(arm.config.seed for arm in arms_ if isinstance(arm.config, DistillConfig))
        if 1 in order:
            (tmp_path / "go").touch()

    monkeypatch.setattr(training, "run_epochs", watched)
    students = experiments.run_students(study, images)
    assert order == [1, 1, 0, 0] and [s.config.seed for s in students] == [0, 0, 1, 1]
    assert pd.read_csv(study.figures / "records.csv")["seed"].tolist() == [0, 0, 1, 1]
    other.wait()


if __name__ == "__main__":  # python -m tests.test_kept 8 FOLDER: the same with more of them
    share(int(sys.argv[1]), Path(sys.argv[2]), seeds=5)
