"""Every notebook on folders of images that memory does not hold: their cells one after the other, in one kernel."""

import re

from r2kd import models, published

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from test_run_all import run_all

CLASSES, SIZE = 4, 16


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def images(tmp_path):
    """Four training and three test images of each class."""
    for number in range(7 * CLASSES):
        split, turn = ("train" if number // CLASSES < 4 else "test"), number // CLASSES
        save(tmp_path / "photographs" / split / f"class{number % CLASSES}" / f"{turn}.png", number)
    return tmp_path / "photographs"


@pytest.fixture
def tiny_imagenet(tmp_path):
    """A data root with one validation image of each of 200 classes, and one published student, of random weights."""
    root, names = tmp_path / "data", [f"n{i:08d}" for i in range(published.CLASSES)]
    for i in range(len(names)):
        save(root / "tiny-imagenet-200" / "val" / "images" / f"val_{i}.png", i)
    listed = "".join(f"val_{i}.png\t{name}\t0\t0\t15\t15\n" for i, name in enumerate(names))
    (root / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text(listed)
    (root / "tiny-imagenet-200" / "wnids.txt").write_text("\n".join(names))
    student = next(student for student in published.STUDENTS if student.model == "resnet20")
    path = root / "r2kd-published" / student.path
    path.parent.mkdir(parents=True)
    torch.save(models.create(student.model, published.CLASSES).state_dict(), path)
    return root


def in_one(notebooks):
    """One notebook of the cells of all and the answers to their exercises, with the parameters of the one that has most.

    A study's images are looked at when they are opened.
    """
    looked_at = "assert isinstance(images.test.images, data.ImageFiles), images.name"
    cells = [cell for notebook in notebooks for cell in nbformat.read(notebook, as_version=4).cells]
    of = [cell for cell in cells if cell.metadata.get("tags") == ["parameters"]]
    parameters = max(of, key=lambda cell: len(cell.source))  # the others' are among them
    made = [parameters, nbformat.v4.new_code_cell("from r2kd import data")]
    for cell in cells:
        if cell.cell_type == "code" and cell.metadata.get("tags") != ["parameters"]:
            loaded = re.search(r"images = \w+\.open_data\(\)", cell.source) or "data.load(" in cell.source
            made += [cell, nbformat.v4.new_code_cell(looked_at)] if loaded else [cell]
        if cell.source.startswith("## Exercises"):
            answers = re.findall(r"```python\n(.*?)```", cell.source, re.S)
            assert answers
            made += [nbformat.v4.new_code_cell(answer) for answer in answers]
    assert [cell.source for cell in made].count(looked_at) == len(notebooks)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=made, metadata=kernel)


def test_every_notebook_runs_on_folders_that_are_streamed(images, tiny_imagenet, tmp_path, monkeypatch, capfd):
    nbformat.write(in_one(run_all.NOTEBOOKS), tmp_path / "01_all.ipynb")
    monkeypatch.setattr(run_all, "NOTEBOOKS", [tmp_path / "01_all.ipynb"])
    limited = "from r2kd import data, image_files\n\ndata.MEMORY, image_files.WORKERS = 1, 0\n"
    (tmp_path / "no_memory.py").write_text(limited)
    study = f"--dataset {images} --teacher resnet8 --student resnet8 --corruptions snow --attacks fgsm --seeds 1 --validation-images 4"
    where = f"--data-root {tiny_imagenet} --runs-root {tmp_path}/runs --figures-root {tmp_path}/figures"
    arguments = f"--profile smoke --load {tmp_path}/no_memory.py --device cpu {study} {where}".split()
    assert run_all.main([*arguments, "--arms", "ce; kd; r2kd cutmix"]) == 0, capfd.readouterr().err
    drawn = {path.stem for path in (tmp_path / "figures").rglob("*.png")}
    assert {"pruning_accuracy", "students", "robustness", "switch_effects", "published"} <= drawn
