from r2kd import data, models, robustness, widgets
from r2kd.augmentation import AUGMENTATIONS
from r2kd.corruptions import CORRUPTIONS

import pytest


@pytest.fixture(scope="module")
def shown():
    return data.load("digits").subset(32, 20), models.create("resnet8", 10).eval()


def test_the_galleries_have_a_row_for_each_augmentation_and_corruption(shown):
    images, teacher = shown
    assert len(widgets.show_augmentations(images, teacher).axes) == len(AUGMENTATIONS) * widgets.SHOWN
    titles = [panel.get_title() for panel in widgets.show_corruptions(images).axes if panel.images]
    assert titles == ["clean", *(e.label for name, e in CORRUPTIONS.items() if not robustness.missing(name))]
