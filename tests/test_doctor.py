"""What the doctor finds, and what is deleted only when nobody needs it."""

import shutil
import subprocess
import sys
from pathlib import Path

from r2kd import __main__, data, doctor, files, runs, tables, training
from r2kd.config import TeacherConfig

import pandas as pd
import pytest
from PIL import Image
from torchvision.datasets import CIFAR100

SMALL = {"train_images": 64, "test_images": 50, "epochs": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A root with two finished runs."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        training.train_teacher(TeacherConfig.of("resnet8", **SMALL, seed=seed, runs_root=str(root)), progress=False)
    return root


@pytest.fixture
def root(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def folders(root):
    return sorted(root.glob("teacher-*"))


def look(root, *arguments, data_root):
    """(exit code, lines)"""
    return __main__.main(["doctor", "--runs-root", str(root), "--data-root", str(data_root), *arguments])


def unfinish(folder):
    """As a kill before the result leaves it."""
    for name in ("result.json", "last.pt", "best.pt"):
        (folder / name).unlink()


def flip(path):
    """One bit in the middle, of which torch takes no notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_doctor_says_versions_device_threads_disk_data_sets_and_runs_a_line_each(root, tmp_path, capsys):
    unfinish(folders(root)[0])
    assert look(root, "--device", "cpu", data_root=tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    wanted = ["versions: python 3.", "device: cpu (", "threads: ", "disk: ", "disk: ", "digits: within scikit-learn "]
    wanted += ["cifar100: not here", "tiny_imagenet: not here", "runs: 1 finished, 1 unfinished, 0 damaged", "tables: "]
    assert all(line.startswith(begin) for line, begin in zip(lines, wanted, strict=True))
    assert "torchvision" in lines[0] and "commit" in lines[0] and "bfloat16 is " in lines[1]
    assert all(name in lines[2] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"))


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


DAMAGES = [(how, name) for how in (flip, cut, Path.unlink) for name in ("last.pt", "best.pt")]
DAMAGES += [(cut, name) for name in ("result.json", "config.json", "environment.json")] + [(Path.unlink, "config.json")]


@pytest.mark.parametrize(("how", "name"), DAMAGES)
def test_the_doctor_names_a_damaged_run_and_exits_with_1(how, name, root, tmp_path, capsys):
    broken, whole = folders(root)
    before = {path: path.read_bytes() for path in whole.iterdir()}
    how(broken / name)
    assert look(root, data_root=tmp_path) == 1
    out = capsys.readouterr().out
    (said,) = [line for line in out.splitlines() if line.startswith(doctor.DAMAGED)]
    assert said.startswith(f"DAMAGED {broken}: ") and "1 damaged" in out
    assert {path: path.read_bytes() for path in whole.iterdir()} == before


def test_the_doctor_counts_what_was_set_aside(root, tmp_path, capsys):
    one, other = folders(root)
    files.set_aside(one)
    (other / "state.pt.damaged").write_bytes(b"")
    assert look(root, data_root=tmp_path) == 0
    assert "1 finished, 0 unfinished, 0 damaged, 2 files or folders set aside as damaged" in capsys.readouterr().out


def archive(place, damaged):
    """CIFAR-100 as the official pickles, of other contents: their MD5s are not those that are published."""
    folder = place / CIFAR100.base_folder
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(b"pickled")
    return "cifar-100-python/train: its MD5 is another"


def images(place, damaged):
    for split, count in (("train", 3), ("test", 2)):
        folder = place / "cifar100" / split / "apple"
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i}.png").write_bytes(b"" if damaged else b"no image")
    return "0.png is empty" if damaged else "has 3 images, not 50000"


def tiny(place, damaged):
    (place / "tiny-imagenet-200" / "val" / "images").mkdir(parents=True)
    return "val_annotations.txt is missing"


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("make", [archive, images, tiny])
def test_the_doctor_checks_each_named_data_set(make, damaged, root, tmp_path, capsys):
    place = tmp_path / "data"
    place.mkdir()
    said = make(place, damaged)
    assert look(root, data_root=place) == 1
    assert said in capsys.readouterr().out


def test_a_whole_data_set_says_what_was_not_checked(two_images):
    wanted = {two_images: 2}
    assert doctor._data_set("mine", ("there", wanted, []), False) == [
        "mine: there; 2 images, counted, not decoded (--thorough does)"
    ]
    assert doctor._data_set("mine", ("there", wanted, []), True) == ["mine: there; 2 images, each decoded"]
    (two_images / "1.png").write_bytes((two_images / "1.png").read_bytes()[:60])
    assert doctor._data_set("mine", ("there", wanted, []), False)[0].startswith("mine: ")
    assert doctor._data_set("mine", ("there", wanted, []), True)[0].startswith("DAMAGED broken image")
    assert set(doctor.CHECKS) <= set(data.DATASETS.values())


@pytest.fixture
def two_images(tmp_path):
    for i in range(2):
        Image.effect_noise((32, 32), 60).save(tmp_path / f"{i}.png")
    return tmp_path


def test_the_doctor_says_where_nothing_can_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert look(tmp_path / "file", data_root=tmp_path) == 1
    assert f"DAMAGED {tmp_path / 'file'} is no folder that can be written, and runs go to" in capsys.readouterr().out


def test_the_doctor_names_a_table_of_a_figure_that_was_cut(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    path = tmp_path / "figures" / "students.csv"
    path.parent.mkdir()
    tables.write(path, pd.DataFrame({"arm": ["KD", "R2KD"], "caption": "made up"}))
    assert look(root, data_root=tmp_path) == 0
    assert f"tables: 1 under {path.parent}, all whole" in capsys.readouterr().out
    path.write_text("".join(path.read_text().splitlines(True)[:-1]))
    assert look(root, data_root=tmp_path) == 1
    assert f"DAMAGED {path} is not as it was saved" in capsys.readouterr().out


def test_delete_unfinished_leaves_a_run_that_another_process_trains_at_this_moment(root, capsys):
    one, other = folders(root)
    unfinish(one)
    unfinish(other)
    hold = "import sys; from pathlib import Path; from r2kd import files\n"
    hold += "with files.alone(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", hold, str(one)], cwd=Path(__file__).parents[1], **pipes) as process:
        assert process.stdout.readline() == "held\n"
        assert __main__.main(["runs", "--delete-unfinished", "--runs-root", str(root)]) == 0
        process.stdin.close()
    told = capsys.readouterr()
    assert told.out.splitlines() == [other.name, "1 unfinished runs deleted"] and folders(root) == [one]
    assert told.err == f"{one.name} is left: another process is at it\n"
    assert runs.delete_unfinished(root) == [one.name]


@pytest.mark.parametrize("how", ["folder", "file", "result"])
def test_delete_unfinished_leaves_what_was_set_aside_as_damaged_and_says_so(how, root, capsys):
    one, other = folders(root)
    kept = one
    if how == "folder":
        unfinish(one)
        kept = files.set_aside(one)
    elif how == "file":
        unfinish(one)
        (one / "last.pt.damaged").write_bytes(b"weights of days")
    else:
        (one / "result.json").write_text("{")
        (one / "last.pt").unlink()
    deleted = runs.delete_unfinished(root)
    assert deleted == [] and folders(root) == sorted([kept, other])
    if how != "result":  # of which Run.finished says whether it is
        assert "it is damaged, not unfinished; look at it, and delete it by hand" in capsys.readouterr().err
