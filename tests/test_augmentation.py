import pytest
import torch

from r2kd import data
from r2kd.augmentation import AUGMENTATIONS
from r2kd.randomness import generator


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", image_size=32, splits=("train",))


def views(name, digits, count=64, seed=0, teacher_logits=None):
    images = digits.normalize(digits.train.images[:count])
    if teacher_logits is None:
        teacher_logits = torch.randn(count, 10, generator=generator(1, "teacher"))
    context = {"mean": digits.mean, "std": digits.std, "policy": digits.policy, "teacher_logits": teacher_logits}
    return images, AUGMENTATIONS[name](images, generator(seed, name), **context)


def test_the_six_views_are_the_papers():
    assert list(AUGMENTATIONS) == ["none", "mixup", "cutmix", "cutout", "autoaug", "cutmixpick"]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_view_depends_on_its_generator_alone(name, digits):
    before = torch.random.get_rng_state()
    images, view = views(name, digits)
    torch.rand(1)
    _, again = views(name, digits)
    others = [views(name, digits, seed=seed)[1] for seed in range(1, 6)]
    assert torch.equal(view, again)
    assert name == "none" or not all(torch.equal(view, other) for other in others)
    torch.random.set_rng_state(before)
    views(name, digits)
    assert torch.equal(before, torch.random.get_rng_state())
    assert view.dtype == images.dtype and view.shape == images.shape and view.isfinite().all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_batch_that_was_given_is_left_as_it_was(name, digits):
    images, _ = views(name, digits)
    assert torch.equal(images, digits.normalize(digits.train.images[:64]))


def test_mixup_blends_each_image_with_another_by_one_weight(digits):
    images, view = views("mixup", digits, seed=3)
    residual = torch.linalg.lstsq(images.flatten(1).T, view.flatten(1).T)
    weights = residual.solution.T
    assert weights.sum(dim=1).sub(1).abs().max() < 1e-2
    diagonal = weights.diagonal()
    changed = (diagonal - 1).abs() > 1e-2
    assert changed.any() and diagonal[changed].std() < 1e-2


def test_cutmix_takes_one_box_from_other_images(digits):
    images, view = views("cutmix", digits, seed=1)
    changed = (view != images).any(dim=0).any(dim=0)
    rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
    assert len(rows) > 0 and rows.max() - rows.min() <= 31 and columns.max() - columns.min() <= 31
    outside = ~changed
    assert torch.equal(view[..., outside], images[..., outside])
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    patches, sources = view[..., top:bottom, left:right], images[..., top:bottom, left:right]
    assert all(any(torch.equal(patch, source) for source in sources) for patch in patches)


def test_cutmix_boxes_cover_half_of_the_image_on_average_before_clipping(digits):
    shares = []
    for seed in range(200):
        images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 32, 32).contiguous()
        view = AUGMENTATIONS["cutmix"](images, generator(seed, "share"))
        shares.append(float((view != images).float().mean()))
    # a share uniform in [0, 1], half of the permutations of two images trivial, boxes clipped at the edges
    assert 0.1 < sum(shares) / len(shares) < 0.3


@pytest.mark.parametrize("size", [16, 32, 64])
def test_cutout_clears_one_square_of_a_quarter_of_the_side(size):
    images = torch.ones(3, 3, size, size)
    areas = []
    for seed in range(50):
        view = AUGMENTATIONS["cutout"](images, generator(seed, "cutout"))
        cleared = view == 0
        assert torch.equal(cleared[0], cleared[1]) and torch.equal(cleared[0], cleared[2])
        areas.append(int(cleared[0, 0].sum()))
    assert max(areas) == (size // 4) ** 2 and min(areas) >= (size // 8) ** 2


def test_autoaug_works_on_the_images_eight_bits(digits):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (digits.mean, digits.std))
    for seed in range(8):
        _, view = views("autoaug", digits, seed=seed)
        pixels = (view * std + mean) * 255
        assert (pixels - pixels.round()).abs().max() < 1e-3
        assert pixels.min() > -1e-3 and pixels.max() < 255.001


def test_autoaug_leaves_the_pixels_exact_where_its_draw_does_nothing(digits, monkeypatch):
    monkeypatch.setattr("r2kd.augmentation.AutoAugment", lambda policy: lambda pixels: pixels)
    images, view = views("autoaug", digits, count=1000)
    torch.testing.assert_close(view, images, rtol=0, atol=1e-5)


def test_autoaug_refuses_an_unknown_policy(digits):
    images = digits.normalize(digits.train.images[:2])
    with pytest.raises(ValueError, match="mnist"):
        AUGMENTATIONS["autoaug"](images, generator(0, "x"), mean=digits.mean, std=digits.std, policy="mnist")


def test_cutmixpick_keeps_a_batch_of_64_whole_as_released(digits):
    _, picked = views("cutmixpick", digits)
    images = digits.normalize(digits.train.images[:64])
    assert torch.equal(picked, AUGMENTATIONS["cutmix"](images, generator(0, "cutmixpick")))


def test_cutmixpick_keeps_the_most_uncertain_of_a_larger_batch(digits):
    logits = torch.zeros(100, 10)
    logits[:, 0] = torch.arange(100.0)  # the first 64 are the least sure
    _, picked = views("cutmixpick", digits, count=100, teacher_logits=logits)
    images = digits.normalize(digits.train.images[:100])
    assert torch.equal(picked, AUGMENTATIONS["cutmix"](images, generator(0, "cutmixpick"))[:64])
