"""The published checkpoints: found in a folder, fetched from a server of our own on loopback, refused by name."""

import importlib
import os
import pickle
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import run_all
from r2kd import augmentation, data, downloads, models, published
from r2kd.randomness import seeded

import pytest
import torch

CUTOUT = "best_results/cutout/res56_res20_student_best"


@pytest.fixture(scope="module")
def images():
    """Some digits at Tiny ImageNet's size; their ten labels are among its 200."""
    return data.load("digits", image_size=64).subset(20, 40)


@pytest.fixture(scope="module")
def resnet20(tmp_path_factory):
    """A ResNet-20 of 200 classes, saved as the authors save theirs."""
    path = tmp_path_factory.mktemp("student") / "student_best"
    with seeded(0, "published"):
        torch.save({"model": models.create("resnet20", published.CLASSES).state_dict()}, path)
    return path


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(downloads, "WAITS", ())


def put(folder: Path, name: str, content: Path | bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(its folder, the paths it was asked for): what stands for both public addresses."""
    root, asked = tmp_path / "server", []
    root.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root))) as running:
        address = f"http://127.0.0.1:{running.server_address[1]}"
        monkeypatch.setattr(published, "STUDENTS_URL", address)
        monkeypatch.setattr(published, "TEACHERS_URL", f"{address}/teachers_tinyimagenet.zip")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield root, asked
        running.shutdown()


def test_the_published_students_are_five_augmentations_by_six_pairs():
    names = [student.path.as_posix() for student in published.STUDENTS]
    assert len(set(names)) == 30 and CUTOUT in names
    assert len({student.pair for student in published.STUDENTS}) == 6
    assert [teacher.model for teacher in published.TEACHERS] == ["wrn_40_2", "resnet56", "resnet32x4", "vgg13"]


def test_another_augmentation_of_ours_is_not_one_of_theirs(monkeypatch):
    monkeypatch.setattr(augmentation.AUGMENTATIONS, "_entries", dict(augmentation.AUGMENTATIONS._entries))

    @augmentation.view("mirrored")
    def mirrored(images):
        return images.flip(-1)

    again = importlib.reload(published)
    assert (len(again.STUDENTS), len(again.TEACHERS)) == (30, 4)


def test_what_is_missing_is_downloaded_whole_and_what_is_there_is_left(server, resnet20, tmp_path, capsys):
    root, asked = server
    put(root, CUTOUT, resnet20)
    put(root, "best_results/mixup/res56_res20_student_best", b"<html>not found</html>")
    folder = tmp_path / "folder"
    put(folder, "best_results/cutmix/res56_res20_student_best", b"mine")
    published.download(folder)
    assert (folder / CUTOUT).read_bytes() == resnet20.read_bytes()
    assert (folder / "best_results/cutmix/res56_res20_student_best").read_bytes() == b"mine"
    assert not any("cutmix/res56" in path for path in asked) and len(asked) >= 30
    said = capsys.readouterr().err
    assert "mixup/res56_res20_student_best: it has 22 bytes, not 1,145,736 to" in said
    assert "autoaug/vgg13_mv2_student_best: the server answers 404" in said
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"res56_res20_student_best", ".download.lock"}
    assert len(published.missing(folder)) == 28 + 4


def test_the_teachers_come_out_of_their_zip_and_nothing_else_does(server, tmp_path, monkeypatch):
    root, _ = server
    monkeypatch.setattr(published, "STUDENTS", ())
    teachers_zip(root / "teachers_tinyimagenet.zip")
    published.download(tmp_path / "folder")
    assert not published.missing(tmp_path / "folder") and not list(tmp_path.rglob("escaped"))


def teachers_zip(path, **content):
    """The zip of the teachers, each zeros of its length, but for what `content` says of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../escaped", b"no")
        for teacher in published.TEACHERS:
            name = f"models_tinyimagenet_v2/{teacher.model}_vanilla/ckpt_epoch_240.pth"
            archive.writestr(name, content.get(teacher.model, bytes(teacher.weights)))


def test_without_a_network_a_zip_of_the_teachers_that_is_there_is_unpacked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "STUDENTS_URL", "http://127.0.0.1:9")
    teachers_zip(tmp_path / published.TEACHERS_FOLDER / "teachers_tinyimagenet.zip")
    published.download(tmp_path)
    assert not [checkpoint for checkpoint in published.missing(tmp_path) if checkpoint in published.TEACHERS]
    assert "refused" in capsys.readouterr().err


def test_one_bad_teacher_in_the_zip_is_said_and_neither_the_others_nor_what_was_there_are_touched(tmp_path, capsys):
    bad, mine = published.TEACHERS[1], published.TEACHERS[2]
    archive = tmp_path / published.TEACHERS_FOLDER / "teachers_tinyimagenet.zip"
    teachers_zip(archive, resnet56=bytes(bad.weights + published.OVERHEAD + 1))
    put(tmp_path, mine.path.as_posix(), b"mine")
    for student in published.STUDENTS:
        put(tmp_path, student.path.as_posix(), b"")
    published.download(tmp_path)
    assert published.missing(tmp_path) == [bad] and (tmp_path / mine.path).read_bytes() == b"mine"
    said = [line for line in capsys.readouterr().err.splitlines() if "not downloaded" in line]
    assert len(said) == 1 and "resnet56_vanilla/ckpt_epoch_240.pth in " in said[0]


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path, capsys):
    (tmp_path / "file").write_text("where the folder should be")
    published.download(tmp_path / "file")
    assert capsys.readouterr().err.count("not downloaded: ") == 1


def test_a_mistyped_root_is_an_error_in_a_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match=rf"^there is no folder {tmp_path}/mistyped of published files[^\n]*$"):
        published.folder_of(tmp_path / "mistyped")
    assert published.folder_of(tmp_path / "new", may_be_new=True) == tmp_path / "new"
    assert published.folder_of(tmp_path) == tmp_path
    assert published.folder_of(None, str(tmp_path)) == tmp_path / "r2kd-published"
    assert run_all.main(["--only", "05", "--published-root", str(tmp_path / "mistyped")]) == 2
    assert f"run_all: there is no folder {tmp_path}/mistyped" in capsys.readouterr().err


def test_without_a_network_it_says_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "STUDENTS_URL", "http://127.0.0.1:9")
    published.download(tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if "not downloaded" in line]
    assert len(said) == 1 and "refused" in said[0]
    assert len(published.missing(tmp_path)) == 34


def test_every_student_is_listed_present_or_not_and_bad_ones_are_refused_by_name(resnet20, images, tmp_path):
    class Touch:
        def __reduce__(self):
            return open, (str(tmp_path / "created"), "w")

    put(tmp_path, CUTOUT, resnet20)
    put(tmp_path, "best_results/mixup/res56_res20_student_best", pickle.dumps(Touch()))
    torch.save({"model": Touch()}, tmp_path / "zip")
    put(tmp_path, "best_results/cutmix/res56_res20_student_best", tmp_path / "zip")
    put(tmp_path, "best_results/autoaug/res56_res20_student_best", resnet20.read_bytes()[:-9000])
    put(tmp_path, "best_results/cutout/wrn402_wrn162_student_best", resnet20)
    students, teachers = published.evaluate(tmp_path, images, torch.device("cpu"))
    assert not (tmp_path / "created").exists()
    assert len(students) == 30 and len(teachers) == 4
    status = students.set_index(["augmentation", "pair"])["status"]
    for name in ("mixup", "cutmix", "autoaug"):
        refused = status[name, "res56_res20"]
        assert refused.startswith("refused: ") and f"{name}/res56_res20_student_best is not a checkpoint" in refused
    assert "wrn402_wrn162_student_best is another model's checkpoint" in status["cutout", "wrn402_wrn162"]
    assert status["cutout", "res56_res20"] == "evaluated" and (status == "not present").sum() == 25
    assert students["top1"].notna().sum() == students["n"].notna().sum() == 1
    assert students["agreement"].isna().all() and set(teachers["status"]) == {"not present"}


def with_a_nan(state):
    state["fc.bias"][0] = float("nan")
    return {"model": state}


def overflowing(state):
    state["bn1.weight"].fill_(3e38)
    return {"model": state}


def sparse(state):
    return {"model": state | {"fc.weight": state["fc.weight"].to_sparse()}}


def test_whatever_is_wrong_with_a_file_it_is_one_refused_row(resnet20, images, tmp_path, capsys):
    wrong = [student for student in published.STUDENTS if student.pair == "res56_res20"]
    for student in wrong:
        (tmp_path / student.path).parent.mkdir(parents=True)
    for student, change in zip(wrong, (with_a_nan, overflowing, sparse), strict=False):
        torch.save(change(torch.load(resnet20, weights_only=True)["model"]), tmp_path / student.path)
    (tmp_path / wrong[3].path).mkdir()
    os.mkfifo(tmp_path / wrong[4].path)
    students, _ = published.evaluate(tmp_path, images, torch.device("cpu"))
    status = students.set_index(["augmentation", "pair"])["status"]
    for student, why in zip(
        wrong, ("holds NaN: 1 of", "not finite", "is sparse", "a folder", "no regular"), strict=True
    ):
        said = status[student.augmentation, student.pair]
        assert said.startswith("refused: ") and student.path.as_posix() in said and why in said and "\n" not in said
    assert (status == "not present").sum() == 25 and students["top1"].isna().all()


def test_a_student_that_is_refused_is_not_tested_and_said(resnet20, images, tmp_path, capsys, monkeypatch):
    tested = []
    monkeypatch.setattr(published.robustness, "test", lambda subjects, *_: tested.extend(subjects))
    put(tmp_path, CUTOUT, resnet20)
    put(tmp_path, "best_results/mixup/res56_res20_student_best", resnet20.read_bytes()[:5000])
    published.test(tmp_path, images, torch.device("cpu"), tmp_path / "figures")
    assert [subject.address for subject in tested] == [CUTOUT]
    said = [line for line in capsys.readouterr().err.splitlines() if "not tested: " in line]
    assert len(said) == 1 and "mixup/res56_res20_student_best is not a checkpoint of weights" in said[0]


def test_a_student_agrees_with_the_teacher_that_is_there(resnet20, images, tmp_path):
    put(tmp_path, CUTOUT, resnet20)
    with seeded(0, "teacher"):
        teacher = models.create("resnet56", published.CLASSES)
    path = tmp_path / published.TEACHERS[1].path
    path.parent.mkdir(parents=True)
    torch.save({"epoch": 240, "model": teacher.state_dict(), "accuracy": torch.tensor(58.3)}, path)
    students, teachers = published.evaluate(tmp_path, images, torch.device("cpu"))
    (row,) = students[students["status"] == "evaluated"].to_dict("records")
    assert 0 <= row["agreement"] <= 100 and 0 <= row["ece"] <= 100
    assert teachers.set_index("model")["status"]["resnet56"] == "evaluated"


def test_the_published_student_scores_as_it_was_published(shared, tiny_imagenet, tmp_path):
    put(tmp_path, CUTOUT, shared / "checkpoints" / "cutout_res56_res20_student_best")
    validation = data.load("tiny_imagenet", str(tiny_imagenet), splits=("test",))
    students, _ = published.evaluate(tmp_path, validation, torch.device("cpu"))
    (row,) = students[students["status"] == "evaluated"].to_dict("records")
    assert (row["augmentation"], row["pair"], row["n"]) == ("cutout", "res56_res20", 10000)
    assert (round(row["top1"], 2), round(row["top5"], 2)) == (56.22, 80.29)
    assert (students["status"] == "not present").sum() == 29
