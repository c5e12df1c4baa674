from r2kd import data, models, robustness, widgets
from r2kd.augmentation import AUGMENTATIONS
from r2kd.corruptions import CORRUPTIONS

import pytest
from matplotlib.figure import Figure


@pytest.fixture(scope="module")
def shown():
    return data.load("digits").subset(32, 20), models.create("resnet8", 10).eval()


@pytest.fixture
def displayed(monkeypatch):
    monkeypatch.delenv("R2KD_PROGRESS", raising=False)
    figures = []
    monkeypatch.setattr(widgets, "display", figures.append)
    return figures


def test_the_galleries_have_a_row_for_each_augmentation_and_corruption(shown):
    images, teacher = shown
    assert len(widgets.show_augmentations(images, teacher).axes) == len(AUGMENTATIONS) * widgets.SHOWN
    titles = [panel.get_title() for panel in widgets.show_corruptions(images).axes if panel.images]
    assert titles == ["clean", *(e.label for name, e in CORRUPTIONS.items() if not robustness.missing(name))]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_each_augmentation_can_be_explored(augmentation, shown, displayed):
    widgets.explore_augmentations(*shown).f(augmentation=augmentation, draw=3)
    figure = displayed[-1]
    assert isinstance(figure, Figure) and len(figure.axes) == 2 * widgets.SHOWN


def test_where_nobody_moves_a_slider_an_explorer_is_its_first_figure(shown, monkeypatch):
    monkeypatch.setenv("R2KD_PROGRESS", "text")
    assert isinstance(widgets.explore_augmentations(*shown), Figure)
    assert isinstance(widgets.explore_pruning(*shown), Figure)


def test_pruning_can_be_explored(shown, displayed):
    explorer = widgets.explore_pruning(*shown)
    explorer.f(image=3, pruned=50, temperature=4)
    figure = displayed[-1]
    bars = figure.axes[1].patches
    assert len(bars) == 20
    assert sum(bar.get_height() for bar in bars[:10]) == pytest.approx(1, abs=1e-5)
    assert [slider.value for slider in explorer.children[:3]] == [0, 50, 4]
