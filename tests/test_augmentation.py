from r2kd import data, profiles
from r2kd.augmentation import AUGMENTATIONS, STRONG, _boxes, _in_groups, _strong_operation, augment
from r2kd.randomness import generator

import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, functional, v2
from torchvision.transforms.autoaugment import _apply_op


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", image_size=32, splits=("train",))


def teacher(images):
    """Logits of the brightness of ten stripes: uncertain of what is grey all over."""
    return 20 * images.mean(dim=(1, 2))[:, :30].unflatten(1, (10, -1)).mean(dim=2)


def views(name, digits, count=64, seed=0, teacher=teacher, **switches):
    images = digits.normalize(digits.train.images[:count])
    view = AUGMENTATIONS.choose(name)
    view = view.with_options(**{switch: value for switch, value in switches.items() if switch in view})
    context = {"mean": digits.mean, "std": digits.std, "policy": digits.policy, "teacher": teacher}
    return images, augment(view, images, generator(seed, name), **context)[0]


def entropy(images):
    return torch.distributions.Categorical(logits=teacher(images)).entropy()


SWITCHES = [{}, {"draws": "sample"}, {"draws": "sample", "pick": "after"}]


def test_six_of_the_views_are_the_papers_and_two_are_of_controls_and_baselines():
    papers = ["none", "mixup", "cutmix", "cutout", "autoaug", "cutmixpick"]
    assert list(profiles.VIEWS) == papers == [name for name in AUGMENTATIONS if name in papers]
    assert set(AUGMENTATIONS) == {*papers, "identity", "randaugment"}
    assert set(profiles.GRID) == {*papers, "identity"} and len(profiles.GRID) == 7


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_view_depends_on_its_generator_alone(name, switches, digits):
    before = torch.random.get_rng_state()
    images, view = views(name, digits, **switches)
    torch.rand(1)
    _, again = views(name, digits, **switches)
    others = [views(name, digits, seed=seed, **switches)[1] for seed in range(1, 6)]
    assert torch.equal(view, again)
    if name in ("none", "identity"):
        assert all(torch.equal(seen, images) for seen in (view, *others))
    else:
        assert not any(torch.equal(view, other) for other in others)
    torch.random.set_rng_state(before)
    views(name, digits, **switches)
    assert torch.equal(before, torch.random.get_rng_state())
    assert view.dtype == images.dtype and view.shape == images.shape and view.isfinite().all()


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_batch_that_was_given_is_left_as_it_was(name, switches, digits):
    images, _ = views(name, digits, **switches)
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


@pytest.mark.parametrize("name", ["autoaug", "randaugment"])
def test_what_torchvision_draws_is_of_eight_bits(name, digits):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (digits.mean, digits.std))
    for seed in range(8):
        _, view = views(name, digits, seed=seed)
        pixels = (view * std + mean) * 255
        assert (pixels - pixels.round()).abs().max() < 1e-3
        assert pixels.min() > -1e-3 and pixels.max() < 255.001


def test_autoaug_leaves_the_pixels_exact_where_its_draw_does_nothing(digits, monkeypatch):
    monkeypatch.setattr("r2kd.augmentation._operation", lambda *draw: None)
    for draws in ("batch", "sample"):
        images, view = views("autoaug", digits, count=1000, draws=draws)
        torch.testing.assert_close(view, images, rtol=0, atol=1e-5)


def pixels_of_all_kinds(count, height, width):
    """(count, 3, height, width) uint8 in turn: noise, a ramp, smooth, dark, one value, two values, all 256 values."""
    drawn = torch.Generator().manual_seed(height * width)
    noise = torch.rand(count, 3, height, width, generator=drawn)
    kinds = [
        noise * 256,
        torch.linspace(0, 255, width) * noise[:, :, :1, :1] + 0 * noise,
        interpolate(noise[..., :5, :5], (height, width), mode="bilinear") * 255,
        noise**4 * 40 + 7,
        noise[:, :, :1, :1] * 255 + 0 * noise,
        torch.where(noise < 0.1, noise[:, :, :1, :1], noise[:, :, :1, -1:]) * 255,
        noise.flatten(2).argsort(dim=2).view_as(noise) % 256,
    ]
    kind = torch.arange(count) % len(kinds)
    return torch.stack(kinds)[kind, torch.arange(count)].floor().to(torch.uint8)


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 48), (37, 7), (1, 5)], ids=str)
def test_both_of_torchvisions_equalize_give_the_same_bytes(size, layout):
    pixels = pixels_of_all_kinds(42, *size).contiguous(memory_format=layout)
    assert torch.equal(v2.functional.equalize(pixels), functional.equalize(pixels))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(("draws", "count", "seeds"), [("batch", 7, 200), ("sample", 64, 6)])
@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_autoaug_is_torchvisions_byte_for_byte(policy, draws, count, seeds, size, layout, monkeypatch):
    applied = set()

    def listening(image, name, *magnitude, **options):
        applied.add(name)
        return _apply_op(image, name, *magnitude, **options)

    monkeypatch.setattr("torchvision.transforms.autoaugment._apply_op", listening)
    transform = AutoAugment(AutoAugmentPolicy(policy))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    centre, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    pixels = pixels_of_all_kinds(count, size, size).contiguous(memory_format=layout)
    images = (pixels / 255 - centre) / scale
    for seed in range(seeds):
        drawn, again = generator(seed, "view"), generator(seed, "view")
        untouched = torch.random.get_rng_state()
        view = AUGMENTATIONS["autoaug"](images, drawn, mean=mean, std=std, policy=policy, draws=draws)
        assert torch.equal(torch.random.get_rng_state(), untouched)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**31, (), generator=again)))
            expected = torch.cat([transform(part) for part in pixels.split(1 if draws == "sample" else count)])
        assert torch.equal(drawn.get_state(), again.get_state())
        assert torch.equal(view, (expected / 255 - centre) / scale)
    assert applied == {name for steps in transform.policies for name, _, _ in steps}


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
    _, picked = views("cutmixpick", digits, count=100, teacher=lambda images: logits)
    images = digits.normalize(digits.train.images[:100])
    assert torch.equal(picked, AUGMENTATIONS["cutmix"](images, generator(0, "cutmixpick"))[:64])


@pytest.mark.parametrize("draws", ["batch", "sample"])
def test_cutmixpick_of_its_authors_keeps_the_half_of_two_mixes_most_uncertain_once_mixed(digits, draws):
    asked = []

    def listening(images):
        asked.append(images)
        return teacher(images)

    images, picked = views("cutmixpick", digits, teacher=listening, pick="after", draws=draws)
    drawn = generator(0, "cutmixpick")
    pool = torch.cat([AUGMENTATIONS["cutmix"](images, drawn, draws=draws) for _ in range(2)])
    assert len(asked) == 1 and torch.equal(asked[0], pool)
    kept = [next(i for i, mixed in enumerate(pool) if torch.equal(mixed, image)) for image in picked]
    left = sorted(set(range(len(pool))) - set(kept))
    assert len(picked) == len(images) and kept == sorted(kept)
    assert entropy(pool[kept]).min() >= entropy(pool[left]).max() - 1e-6
    assert entropy(picked).mean() > entropy(pool).mean() > 0


def test_cutmixpick_refuses_another_pick(digits):
    with pytest.raises(ValueError, match="pick is before or after, not 'never'"):
        views("cutmixpick", digits, pick="never")


@pytest.mark.parametrize("name", ["mixup", "cutmix", "cutout", "autoaug", "cutmixpick"])
def test_draws_are_one_for_the_batch_or_one_for_each_image(name, digits):
    with pytest.raises(ValueError, match="draws is batch or sample, not 'pixel'"):
        views(name, digits, draws="pixel")


def same_everywhere(changes):
    return all(torch.equal(change, changes[0]) for change in changes)


def test_cutout_of_each_sample_has_a_place_of_its_own():
    images = torch.ones(16, 3, 32, 32)
    for draws, same in (("batch", True), ("sample", False)):
        cleared = AUGMENTATIONS["cutout"](images, generator(0, "cutout"), draws=draws) == 0
        assert same_everywhere(cleared) is same
        areas = cleared[:, 0].sum(dim=(1, 2))
        assert areas.max() <= 64 and areas.min() >= 16


def test_cutmix_of_each_sample_has_a_box_of_its_own():
    images = torch.arange(16.0).view(-1, 1, 1, 1).expand(16, 3, 32, 32).contiguous()
    for draws, same in (("batch", True), ("sample", False)):
        view = AUGMENTATIONS["cutmix"](images, generator(1, "cutmix"), draws=draws)
        changed = (view != images)[(view != images).flatten(1).any(dim=1)]
        assert len(changed) > 8 and same_everywhere(changed) is same
        for change in changed:  # a box: rows times columns
            assert torch.equal(change[0], change[0].any(dim=1)[:, None] & change[0].any(dim=0))


def test_mixup_of_each_sample_has_a_weight_of_its_own(digits):
    for draws, spread in (("batch", 0), ("sample", 0.2)):
        images = torch.arange(1.0, 65).view(-1, 1, 1, 1).expand(64, 3, 2, 2) ** 3  # no two blends alike
        drawn = generator(3, "mixup")
        view = AUGMENTATIONS["mixup"](images, drawn, draws=draws)
        again = generator(3, "mixup")
        torch.randint(2**31, (), generator=again)
        other = images[torch.randperm(64, generator=again)]
        moved = (other != images)[:, 0, 0, 0]
        weights = ((view - other) / (images - other))[moved, 0, 0, 0]
        assert weights.std() >= spread if spread else weights.std() < 1e-2
        assert weights.min() > -1e-2 and weights.max() < 1 + 1e-2


def test_autoaug_of_each_sample_calls_an_operation_once_for_all_images_that_drew_it(monkeypatch):
    calls = []

    def listening(pixels, name, magnitude, *_):
        calls.append((name, magnitude, len(pixels)))
        return pixels

    monkeypatch.setattr("r2kd.augmentation._apply_op", listening)
    invert, posterize = ("Invert", 0.0), ("Posterize", 6.0)
    parts = torch.zeros(5, 3, 8, 8, dtype=torch.uint8).split(1)
    done = _in_groups(parts, [invert, posterize, None, invert, invert], AutoAugment())
    assert calls == [("Invert", 0.0, 3), ("Posterize", 6.0, 1)] and len(done) == 5


def test_each_operation_of_randaugment_is_one_of_torchvisions_over_its_whole_range():
    pixels, plain = pixels_of_all_kinds(7, 32, 32), AutoAugment()
    for place, name in enumerate(STRONG):
        for share in (0.0, 0.3, 1 - 2**-24):  # the last is the highest that torch.rand draws
            (done,) = _in_groups([pixels], [_strong_operation(place, share, 32)], plain)
            assert done.shape == pixels.shape and done.dtype == torch.uint8, name


def test_randaugment_draws_two_operations_for_each_image_of_which_each_has_its_range(digits, monkeypatch):
    drawn = []

    def listening(parts, operations, _):
        drawn.append(operations)
        return list(parts)

    monkeypatch.setattr("r2kd.augmentation._in_groups", listening)
    views("randaugment", digits, count=1000)
    assert [len(operations) for operations in drawn] == [1000, 1000] and drawn[0] != drawn[1]
    for name, (low, high) in STRONG.items():
        side = 32 if name.startswith("Translate") else 1
        shares = [magnitude / side for operations in drawn for known, magnitude in operations if known == name]
        assert 95 < len(shares) < 190 and low <= min(shares) <= max(shares) <= high, name
        assert max(shares) - min(shares) >= 0.9 * (high - low), name


def test_randaugment_of_each_image_is_a_draw_of_its_own(digits):
    images = digits.normalize(digits.train.images[:1]).repeat(16, 1, 1, 1)
    context = {"mean": digits.mean, "std": digits.std}
    view = AUGMENTATIONS["randaugment"](images, generator(0, "randaugment"), **context)
    assert len({image.numpy().tobytes() for image in view}) >= 15
    alone = AUGMENTATIONS["randaugment"](images, generator(1, "randaugment"), **context)
    assert not any(torch.equal(one, other) for one, other in zip(view, alone, strict=True))


def test_randaugment_ends_with_a_grey_square_of_at_most_half_the_side_for_each_image():
    images = torch.zeros(200, 3, 32, 32)
    drawn, mean, std = generator(0, "randaugment"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    view = AUGMENTATIONS["randaugment"](images, drawn, mean=mean, std=std, operations=0)
    pixels = ((view * 0.25 + 0.5) * 255).round().to(torch.uint8)
    square = (pixels != 127).any(dim=1)
    sides = torch.stack((square.any(dim=2).sum(dim=1), square.any(dim=1).sum(dim=1)))
    assert sides.max() == 14 and sides.min() <= 1 and 4 < sides.float().mean() < 10
    assert not same_everywhere(square)
    grey = torch.tensor([125, 123, 114], dtype=torch.uint8).view(-1, 1, 1)
    assert torch.equal(pixels, torch.where(square[:, None], grey, torch.tensor(127, dtype=torch.uint8)))
    for one in square:  # rows times columns
        assert torch.equal(one, one.any(dim=1)[:, None] & one.any(dim=0))


def test_boxes_are_cut_by_a_pixel_where_their_side_is_odd_as_released():
    images = torch.zeros(1, 3, 32, 32)
    for seed in range(30):
        box = _boxes(images, torch.tensor([7.9]), torch.tensor([4.0]), generator(seed, "box"))[0, 0]
        rows, columns = int(box.any(dim=1).sum()), int(box.any(dim=0).sum())
        assert 3 <= rows <= 6 and 2 <= columns <= 4
        middle = generator(seed, "box")
        y, x = (int(torch.randint(32, (1, 1), generator=middle)) for _ in range(2))
        assert rows == min(y + 3, 32) - max(y - 3, 0) and columns == min(x + 2, 32) - max(x - 2, 0)
