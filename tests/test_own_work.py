"""What a user brings: a method, a view, a corruption, a teacher, settings, in one file and one command; and in a cell."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from r2kd import experiments, models, runs, stats

import pandas as pd
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()

BESIDE = """
from r2kd.augmentation import view
from r2kd.robustness import corruption


@view("turned", keeps_target=True)
def turned(images, *, turns=1):
    return images.rot90(turns, dims=(2, 3))


@corruption("darker", at_32=(10, 20, 30, 40, 50))
def darker(images, constants):
    return images * (1 - constants / 100)
"""


def readme_block(language: str, after: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", README[README.index(after) :], re.S).group(1)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The README's method, a view, a corruption and a teacher of one's own, in a smoke study: (folder, its figures).

    By the run_all.py of a clone beside this one, which is installed or on the path: it must be the clone's code that runs.
    """
    folder = tmp_path_factory.mktemp("own")
    for name in ("r2kd", "notebooks"):
        shutil.copytree(ROOT / name, folder / "clone" / name)
    for name in ("run_all.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / "clone" / name)
    (folder / "my_methods.py").write_text(readme_block("python", "## Your own method") + BESIDE)
    parallel = {f"module.{name}": value for name, value in models.create("resnet20", 10).state_dict().items()}
    torch.save({"state_dict": parallel}, folder / "mine.pth")
    command = [
        sys.executable,
        str(folder / "clone" / "run_all.py"),
        "--profile",
        "smoke",
        "--only",
        "02,03",
        "--load",
        "my_methods.py",
        "--corruptions",
        "darker+fog",
    ]
    command += ["--arms", "ce; r2kd; mse; mse:weight=0.5 turned:turns=2", "--teacher-checkpoint", "mine.pth"]
    command += ["--comparisons", "mse - r2kd"]
    command += ["--set", "temperature=2", "--set", "value_weight=1", "--batch-size", "32", "--seeds", "3"]
    where = ["--runs-root", "runs", "--device", "cpu", "--train-images", "64", "--test-images", "100"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("R2KD")}
    done = subprocess.run([*command, *where], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (figures,) = (folder / "clone" / "figures" / "digits").iterdir()
    return folder, figures


def test_the_readmes_method_is_five_lines_and_its_command_names_it():
    assert len([line for line in readme_block("python", "## Your own method").splitlines() if line.strip()]) == 4
    assert "mse:weight=0.05 cutmixpick" in readme_block("sh", "## Your own method")


def test_a_clone_beside_an_installed_one_runs_its_own_code_and_writes_into_itself(own):
    folder, figures = own
    (executed,) = folder.glob("runs/notebooks/*/*/02_*.ipynb")
    assert str(folder / "clone" / "r2kd") in executed.read_text() and str(ROOT / "r2kd") not in executed.read_text()
    assert len(list(figures.glob("*.png"))) == 14
    (pair,) = pd.read_csv(figures / "comparisons.csv").to_dict("records")
    assert (pair["arm"], pair["other"], pair["n"]) == ("MSE, weight 0.1", "R2KD, pruned", 3)


def test_ones_own_arms_are_in_every_table_of_students_and_in_every_figure(own):
    _, figures = own
    arms = {"cross-entropy", "R2KD, pruned", "MSE, weight 0.1", "MSE turned, weight 0.5"}
    for name in (
        "students",
        "training_curves",
        "best_epoch",
        "robustness",
        "robustness_students",
        "attacks",
        "reliability",
        "ambiguity",
        "records",
    ):
        shown = set(pd.read_csv(figures / f"{name}.csv")["arm"])
        assert arms <= shown, name
    assert pd.read_csv(figures / "students.csv")["n"].tolist() == [3] * 4


def test_ones_own_corruption_is_measured_and_drawn(own):
    assert "own" in set(pd.read_csv(own[1] / "robustness.csv")["family"])
    table = pd.read_csv(own[1] / "corruption_differences.csv")
    assert (table["corruption"] == "darker").any() and "2 corruptions x 5 severities" in table["caption"][0]


def test_what_was_set_acted_and_stands_in_caption_folder_and_run(own):
    folder, figures = own
    table = runs.table(folder / "runs").set_index("address")
    taught = table[table["method"] == "r2kd"]
    assert (taught["method.temperature"] == 2).all() and (taught["method.value_weight"] == 1).all() and len(taught) >= 3
    assert (table["batch_size"].dropna() == 32).sum() >= 12
    caption = pd.read_csv(figures / "students.csv")["caption"][0]
    assert "weights from mine.pth" in caption and " %) teaches resnet8" in caption
    assert "set: temperature 2, value_weight 1, batch_size 32" in caption or all(
        said in caption for said in ("temperature 2", "value_weight 1", "batch_size 32")
    )
    for part in ("temperature=2", "value_weight=1", "batch_size=32", "seeds=3", "teacher=mine.", "arms="):
        assert part in figures.name


def test_a_pair_of_torchvisions_trains_on_a_folder(tmp_path):
    for i, path in enumerate(
        tmp_path / split / label / f"{j}.png" for split in ("train", "test") for label in "ab" for j in range(4)
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (60 * (i % 4), 200 * ("b" in path.parts), i)).save(path)
    command = [sys.executable, "-m", "r2kd", "distill", "-d", str(tmp_path), "--image-size", "32", "--epochs", "1"]
    command += [
        "--teacher",
        "torchvision:resnet18",
        "--student",
        "torchvision:squeezenet1_1",
        "--set",
        "teacher.epochs=1",
    ]
    done = subprocess.run(
        [*command, "--runs-root", str(tmp_path / "runs"), "--device", "cpu"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert (
        result["run"].startswith(str(tmp_path / "runs" / "distill-")) and "torchvision_squeezenet1_1" in result["run"]
    )
    assert "torchvision_resnet18" in result["teacher"]["run"]


def test_from_a_cell_a_closure_a_lambda_and_a_network_join_r2kd_over_seeds(tmp_path):
    weight = 0.1

    def mse(student, teacher):
        return weight * (student - teacher).square().mean()

    def small(num_classes):
        return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, num_classes))

    where = {"runs_root": str(tmp_path / "runs"), "figures_root": str(tmp_path / "figures"), "device": "cpu"}
    arms = {"R2KD": "r2kd cutmix", "mine": {"method": mse, "view": lambda images, generator: images.flip(3)}}
    study = experiments.study("smoke", student=small, teacher=small, arms=arms, **where)
    images = study.open_data()
    first = experiments.results_table(experiments.run_students(study, images))
    assert stats.mean_interval(first, ["arm"], "last_top1")["n"].tolist() == [2, 2]
    weight = 0.2  # the closure's value: another run
    experiments.run_students(study, images)
    assert len(list((tmp_path / "runs").glob("distill-digits-small-mse-*"))) == 4
    assert len(list((tmp_path / "runs").glob("distill-digits-small-r2kd-*"))) == 2
