from types import SimpleNamespace

from r2kd import data, evaluation, explorers, models
from r2kd import pruning as pruned
from r2kd.augmentation import AUGMENTATIONS

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

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
    return answers, explorers.pruning(images, images.test, answers, pd.DataFrame(rows))


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
    bars = explorers.pruning(images, shown[0].test, answers, quality)().axes[1]
    names = [label.get_text() for label in bars.get_xticklabels()]
    assert len(names) == explorers.SHOWN_CLASSES and names[0] == "class 19" and names[-1] == "class 77"
