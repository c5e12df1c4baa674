import re
from pathlib import Path
from types import SimpleNamespace

from r2kd import data, evaluation, explorers, models
from r2kd import pruning as pruned
from r2kd.augmentation import AUGMENTATIONS

import ipywidgets
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
VIEW, PNG = "application/vnd.jupyter.widget-view+json", b"\x89PNG"


@pytest.fixture(scope="module")
def shown():
    return data.load("digits").subset(32, 20), models.create("resnet8", 10).eval()


@pytest.fixture(scope="module")
def pruning(shown):
    images, teacher = shown
    copies = {rate: pruned.prune_l1(teacher, rate / 100) for rate in (0, 50, 90)}
    answers = {
        (rate, mode): evaluation.predict(copy.train(mode == "batch"), images.test, images)
        for rate, copy in copies.items()
        for mode in pruned.BATCHNORM_MODES
    }
    rows = [{"rate": rate, "batchnorm": mode, "top1": 90 - rate} for rate, mode in answers]
    return answers, explorers.pruning(images, images.test, answers, pd.DataFrame(rows), 0.7, 4.0)


@pytest.fixture
def displayed(monkeypatch):
    """What was displayed, one after the other: (what, whether it came in place of the last)."""
    monkeypatch.delenv("R2KD_PROGRESS", raising=False)
    said = []

    def display(what, raw=False, display_id=False):
        said.append((what, False))
        return SimpleNamespace(update=lambda what: said.append((what, True)))

    monkeypatch.setattr(explorers, "display", display)
    return said


def number(most: int = 9) -> explorers.Explorer:
    figure = Figure(figsize=(1, 1))
    (line,) = figure.subplots().plot([0, 1], [0, 1])

    def draw(value: int) -> Figure:
        if value > most:
            raise ValueError(f"{value} is too much\nfor anyone")
        line.set_ydata([0, value])
        return figure

    return explorers.Explorer("number", draw, value=ipywidgets.IntSlider(value=1))


def test_a_control_that_is_moved_puts_a_new_picture_in_the_place_of_the_last(displayed):
    explorer = number()
    explorer._ipython_display_()
    (controls, _), (first, _) = displayed
    assert controls["text/plain"] == explorers.WITHOUT_KERNEL and controls[VIEW]["model_id"] == "r2kd-number"
    explorer.controls["value"].value = 2
    second, in_place = displayed[-1]
    assert len(displayed) == 3 and in_place and first.data[:4] == second.data[:4] == PNG
    assert first.data != second.data


def test_an_error_of_the_drawing_is_a_line_until_the_next_picture(displayed):
    explorer = number(most=2)
    explorer._ipython_display_()
    explorer.controls["value"].value = 3
    assert explorer.said.value == "ValueError: 3 is too much" and len(displayed) == 2
    explorer.controls["value"].value = 2
    assert explorer.said.value == "" and len(displayed) == 3


def test_of_values_that_come_faster_than_pictures_the_newest_is_drawn_between_cells(displayed, monkeypatch):
    waiting = []
    kernel = SimpleNamespace(io_loop=SimpleNamespace(add_callback=waiting.append))
    monkeypatch.setattr(explorers, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    explorer = number()
    explorer._ipython_display_()
    for value in (2, 3, 4):
        explorer.controls["value"].value = value
    assert len(waiting) == 1 and len(displayed) == 2
    waiting.pop()()
    assert len(displayed) == 3 and displayed[-1][0].data == explorers.png(number()(value=4))
    explorer.controls["value"].value = 5
    assert len(waiting) == 1


def test_an_explorer_that_is_shown_again_is_the_one_that_is_there(displayed):
    first, second = number(), number()
    first._ipython_display_()
    old = explorers._PANELS["number"]
    second._ipython_display_()
    assert old.comm is None and explorers._PANELS["number"].model_id == "r2kd-number"
    second.controls["value"].value = 5
    assert displayed[-1][1]


def test_where_nobody_moves_a_slider_an_explorer_is_its_first_picture(displayed, monkeypatch):
    monkeypatch.setenv("R2KD_PROGRESS", "text")
    number()._ipython_display_()
    ((picture, _),) = displayed
    assert picture.data[:4] == PNG


@pytest.mark.parametrize("view", AUGMENTATIONS)
def test_each_augmentation_can_be_explored(view, shown):
    rows = [panel.images[0].get_array() for panel in explorers.augmentation(*shown)(view=view, draw=3).axes]
    clean, drawn = rows[: explorers.SHOWN], rows[explorers.SHOWN :]
    assert np.array_equal(clean, drawn) == (not AUGMENTATIONS[view].drawn or AUGMENTATIONS[view].control)


def test_the_bars_of_pruning_are_the_softened_answers_of_the_three_teachers(shown, pruning):
    answers, explorer = pruning
    assert {name: control.value for name, control in explorer.controls.items()} == {
        "image": 0, "pruned": 50, "statistics": "running", "dense_weight": 0.7, "temperature": 4,
    }  # fmt: skip
    figure = explorer(image=3, pruned=90, statistics="batch", dense_weight=0.25, temperature=2)
    picture, bars, curve = figure.axes
    dense, sparse = answers[0, "running"][3], answers[90, "batch"][3]
    for drawn, logits in zip(bars.containers, (dense, sparse, 0.25 * dense + 0.75 * sparse), strict=True):
        assert [bar.get_height() for bar in drawn] == pytest.approx((logits / 2).softmax(0).tolist())
    assert curve.lines[-1].get_xydata().tolist() == [[90, 0]]
    assert np.array_equal(picture.images[0].get_array(), shown[0].test.images[3].permute(1, 2, 0))


def test_of_many_classes_the_surest_are_shown_the_dense_teachers_order_first(shown):
    images = SimpleNamespace(num_classes=100, classes=[f"class {i}" for i in range(100)])
    dense, sparse = torch.zeros(2, 1, 100)
    dense[0, :20], sparse[0, 77] = torch.linspace(1, 3, 20), 9
    answers = {(0, "running"): dense, (50, "running"): sparse}
    quality = pd.DataFrame({"rate": [0, 50], "batchnorm": "running", "top1": [90, 80]})
    bars = explorers.pruning(images, shown[0].test, answers, quality, 0.7, 4.0)().axes[1]
    names = [label.get_text() for label in bars.get_xticklabels()]
    assert len(names) == explorers.SHOWN_CLASSES and names[0] == "class 19" and names[-1] == "class 77"


@pytest.fixture(scope="module")
def corruption(shown):
    images, teacher = shown
    return explorers.corruption(images, {"teacher": teacher, "student": models.create("resnet8", 10).eval()})


def pictures(figure):
    return [panel.images[0].get_array() for panel in figure.axes[:2]]


def test_a_corruption_is_stronger_with_its_strength_and_at_0_it_is_none(corruption):
    apart = []
    for strength in (0, 1, 5):
        clean, given = pictures(corruption(kind=("corruption", "gaussian_noise"), strength=strength, image=3))
        apart.append(np.abs(clean / 255 - given).mean())
    assert apart[0] == pytest.approx(0, abs=1e-6) and 0.01 < apart[1] < apart[2]


def test_a_bar_is_the_confidence_of_a_networks_answer_hatched_where_it_is_wrong(shown, corruption):
    images, teacher = shown
    wrong = 0
    for image in range(len(images.test)):
        bars = corruption(kind=("corruption", "fog"), strength=0, image=image).axes[2]
        p = teacher(images.normalize(images.test.images[image : image + 1])).detach().softmax(1)[0]
        assert bars.patches[0].get_width() == pytest.approx(float(p.max()), abs=1e-4)
        assert bars.texts[0].get_text() == images.classes[int(p.argmax())]
        assert bool(bars.patches[0].get_hatch()) == (p.argmax() != images.test.labels[image])
        wrong += bool(bars.patches[0].get_hatch())
    assert 0 < wrong < len(images.test)


def test_a_view_is_drawn_for_the_batch_or_for_each_image(corruption):
    one, each = (
        pictures(corruption(kind=("view", "cutout"), draw=1, draws=draws))[1].copy() for draws in ("batch", "sample")
    )
    assert not np.array_equal(one, each)
    for kind, strength, draws in (("corruption", "fog"), True, False), (("view", "cutmix"), False, True), (("view", "identity"), False, False):  # fmt: skip
        corruption.controls["kind"].value = kind
        assert corruption.controls["strength"].disabled != strength and corruption.controls["draws"].disabled != draws


def test_the_networks_that_answer_are_those_of_which_there_are_weights(shown, monkeypatch):
    images, teacher = shown
    of = SimpleNamespace(config=SimpleNamespace(seed=0), other=SimpleNamespace(seed=1))
    run, record = SimpleNamespace(source="run"), SimpleNamespace(source="record")
    students = [("KD", of.config, run), ("KD", of.other, run), ("DKD", of.config, record), ("DIST", of.config, run)]
    taught = SimpleNamespace(run=lambda own: SimpleNamespace(finished=False))
    monkeypatch.setattr(explorers.experiments, "run_teacher", lambda *_: teacher)
    monkeypatch.setattr(explorers.training, "load_model", lambda *_: teacher)
    monkeypatch.setattr(explorers.training, "put_back", lambda *_: None)
    for recorded, expected in ((False, ["teacher", "KD"]), (True, ["KD"])):
        study = SimpleNamespace(teacher=taught, recorded=recorded, seeds=(0, 1), shown=("KD", "DKD"))
        study.teacher_images = lambda images: images
        assert list(explorers.answering(study, images, students)) == expected


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_where_no_kernel_has_its_controls_a_notebook_says_what_to_do(notebook):
    """JupyterLab looks for a panel in the kernel, then in the notebook's metadata, and else shows an error in its place."""
    read = nbformat.read(notebook, as_version=4)
    source = "\n".join(cell.source for cell in read.cells if cell.cell_type == "code")
    wanted = {"r2kd-losses"} if "simplex.explorer(" in source else set()
    wanted |= {f"r2kd-{name}" for name in re.findall(r"^(?:student_)?explorers\.([a-z_]+)\(", source, re.M)}
    state = read.metadata.get("widgets", {"application/vnd.jupyter.widget-state+json": {"state": {}}})
    found = state["application/vnd.jupyter.widget-state+json"]["state"]
    assert set(found) == wanted
    assert {of["state"]["value"] for of in found.values()} <= {explorers.WITHOUT_KERNEL}
