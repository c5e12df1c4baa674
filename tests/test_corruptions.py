import importlib.util
import json
import re
from pathlib import Path

from r2kd import corruptions, data, official
from r2kd.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from r2kd.data import ImageData, Split
from r2kd.image_files import ImageFiles
from r2kd.randomness import generator

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

SETS = {"cifar": "at_32", "tiny": "at_64"}
RANDOM = [name for name, entry in CORRUPTIONS.items() if "generator" in entry.asks]
EXACT = [name for name in CORRUPTIONS if name not in RANDOM]
DRAWS = 24


def released(numbers, key: str) -> torch.Tensor:
    """(8, 3, S, S) uint8 of the golden file."""
    return torch.from_numpy(numbers[key]).permute(0, 3, 1, 2).contiguous()


def smooth(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Images (N, 3, S, S) uint8 that go from black to white somewhere, as photographs do."""
    coarse = torch.rand(count, 3, 5, 5, generator=generator(seed, "smooth"))
    levels = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return (levels * 330 - 40).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def numbers(golden):
    return np.load(golden / "corruptions.npz")


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """In the place of imagecorruptions' six: each of one colour, its red a multiple of 40. Gives the five that are used."""
    folder = tmp_path / "imagecorruptions" / "frost"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    colours = [(40 * i, 30, 20) for i in range(1, 7)]
    for i, colour in enumerate(colours, 1):
        suffix = "png" if i < 4 else "jpg"
        Image.new("RGB", (400, 400 + i), colour).save(folder / f"frost{i}.{suffix}", quality=100, subsampling=0)
    monkeypatch.syspath_prepend(tmp_path)
    corruptions._frost_photographs.cache_clear()
    yield torch.tensor(colours[:5]).float()
    corruptions._frost_photographs.cache_clear()


def test_the_corruptions_are_the_published_nineteen_and_the_constants_theirs(golden):
    published = json.loads((golden / "corruption_constants.json").read_text())
    for name, fact in SETS.items():
        own = {key: getattr(entry, fact) for key, entry in CORRUPTIONS.items()}
        assert json.loads(json.dumps(own)) == published[name]
    assert len(CORRUPTIONS) == 19 and sum(entry.extra for entry in CORRUPTIONS.values()) == 4


@pytest.mark.parametrize("name", EXACT)
def test_without_randomness_the_images_are_the_released_ones(name, numbers):
    near = 2 if name == "jpeg_compression" else 1
    for of in SETS:
        for severity in SEVERITIES:
            made = corrupt(released(numbers, f"{of}/clean"), name, severity, generator(0))
            difference = made.int() - released(numbers, f"{of}/{name}/{severity}").int()
            assert (difference.abs() <= near).float().mean() >= 0.995, (of, severity)
            assert (difference == 0).float().mean() >= 0.8, (
                of,
                severity,
            )  # half of them would be, if they were rounded


@pytest.mark.parametrize("name", RANDOM)
def test_the_random_ones_are_the_released_ones_on_average(name, numbers):
    if name == "frost" and importlib.util.find_spec("imagecorruptions") is None:
        pytest.skip("needs the photographs of imagecorruptions-imaug")
    for of in SETS:
        clean = released(numbers, f"{of}/clean").repeat(DRAWS, 1, 1, 1)
        for severity in SEVERITIES:
            key = f"{of}/{name}/{severity}"
            found = figures(corrupt(clean, name, severity, generator(0, key)), clean).unflatten(1, (DRAWS, -1))
            mean, deviation = found.mean(1).numpy(), found.std(1).numpy()
            theirs = numbers[f"{key}/deviation"]
            error = np.sqrt(deviation**2 / DRAWS + theirs**2 / numbers[f"{key}/draws"]) + 1e-3
            errors = (mean - numbers[f"{key}/mean"]) / error
            assert np.abs(errors).max() < 4, (key, errors.round(1))
            assert np.sqrt((errors**2).mean()) < 2, (key, errors.round(1))  # all a little off is off
            assert 0.7 < np.median(deviation / theirs) < 1.4, key


def figures(corrupted: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """(4, N): an image's mean, its standard deviation, its mean absolute and root mean square difference from clean."""
    corrupted, change = corrupted.double().flatten(1), (corrupted.double() - clean).flatten(1)
    of_change = (change.abs().mean(1), change.square().mean(1).sqrt())
    return torch.stack((corrupted.mean(1), corrupted.std(1, correction=0), *of_change))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_at_some_angle_motion_blur_is_the_released_one(severity, numbers):
    angles = torch.arange(-45, 45.5, 0.5)
    for of, fact in SETS.items():
        clean = released(numbers, f"{of}/clean").float()
        examples = released(numbers, f"{of}/motion_blur/{severity}/example")
        for image, example in zip(clean, examples, strict=True):
            turned = image.expand(len(angles), -1, -1, -1)
            made = corruptions._motion(turned, *getattr(CORRUPTIONS["motion_blur"], fact)[severity - 1], angles)
            difference = (made - example).abs()
            nearest = difference[difference.mean((1, 2, 3)).argmin()]
            assert (nearest == 0).float().mean() > 0.99 and nearest.max() <= 1


@pytest.mark.parametrize("name", RANDOM)
def test_the_same_generator_draws_the_same_and_another_something_else(name, photographs):
    images, before = smooth(6, 32), torch.random.get_rng_state()
    kept = images.clone()
    for severity in SEVERITIES:
        first, again, other = (corrupt(images, name, severity, generator(seed, "draw")) for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)
        alike = corrupt(images[:1].expand(6, -1, -1, -1), name, severity, generator(0, "alike"))
        assert not torch.equal(alike[:3], alike[3:])  # each image draws its own
    assert torch.equal(images, kept) and torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", EXACT)
def test_without_randomness_an_image_is_the_same_alone_and_in_a_batch(name):
    images, draws = smooth(6, 32), generator(0)
    before = draws.get_state()
    for severity in SEVERITIES:
        together = corrupt(images, name, severity, draws)
        alone = torch.cat([corrupt(image[None], name, severity, draws) for image in images])
        assert torch.equal(together, alone) and not torch.equal(together, images)
    assert torch.equal(draws.get_state(), before)


@pytest.mark.parametrize("size", [16, 23, 28, 45, 46, 64])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_of_any_size_in_any_layout_stay_uint8_and_of_their_shape(name, size, photographs):
    images = smooth(3, size)
    kept = images.clone()
    layouts = (
        images.contiguous(memory_format=torch.channels_last),
        images.transpose(2, 3).contiguous().transpose(2, 3),
    )
    for severity in (1, 3, 5):
        made = corrupt(images, name, severity, generator(0))
        assert made.dtype == torch.uint8 and made.shape == images.shape
        for other in layouts:
            assert torch.equal(corrupt(other, name, severity, generator(0)), made)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_black_and_white_images_are_no_exception(name, photographs):
    images = torch.stack([torch.full((3, 32, 32), level, dtype=torch.uint8) for level in (0, 255)])
    for severity in SEVERITIES:
        black, white = corrupt(images, name, severity, generator(0)).float()
        assert black.mean() < 140 and white.mean() > 115  # of what is not a number, uint8 makes 0
        if name.endswith("_blur") or name in ("contrast", "pixelate"):
            assert (black <= 1).all() and (white >= 254).all()


def test_the_constants_are_those_of_the_nearer_size_by_ratio(photographs):
    assert [corruptions.constants_size(size) for size in (16, 32, 45, 46, 64, 224)] == [32, 32, 32, 64, 64, 64]
    grey = torch.full((20, 3, 46, 46), 128, dtype=torch.uint8)
    for size, constant in ((45, 0.1), (46, 0.18)):
        noisy = corrupt(grey[..., :size, :size], "gaussian_noise", 5, generator(0))
        assert float(noisy.float().std()) == pytest.approx(255 * constant, rel=0.02)


def test_noise_is_as_strong_as_its_constant_says():
    grey = torch.full((30, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, i in zip(SEVERITIES, range(5), strict=True):
        noisy = {name: corrupt(grey, name, severity, generator(0, name)).float() for name in RANDOM if "noise" in name}
        constant = {name: CORRUPTIONS[name].at_32[i] for name in noisy}
        deviation = {"gaussian_noise": 255 * constant["gaussian_noise"]}
        deviation["speckle_noise"] = 128 * constant["speckle_noise"]
        deviation["shot_noise"] = 255 * (128 / 255 / constant["shot_noise"]) ** 0.5
        for name, expected in deviation.items():
            assert float(noisy[name].std()) == pytest.approx(expected, rel=0.02)
            assert float(noisy[name].mean()) == pytest.approx(127.5, abs=0.3)  # half a level is cut off
        for extreme in (0, 255):
            share = (noisy["impulse_noise"] == extreme).float().mean()
            assert float(share) == pytest.approx(constant["impulse_noise"] / 2, rel=0.1)
        assert ((noisy["impulse_noise"] == 128) | (noisy["impulse_noise"] % 255 == 0)).all()


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, "3"])
def test_there_are_five_severities(severity):
    with pytest.raises(ValueError, match=f"^a severity is 1 to 5, not {severity!r}$"):
        corrupt(smooth(1, 32), "fog", severity, generator(0))


def test_an_unknown_corruption_is_named_with_the_known():
    for ask in (lambda name: corrupt(smooth(1, 32), name, 1, generator(0)), corruptions.missing):
        with pytest.raises(
            ValueError, match=r"^unknown corruption 'mist'; known: gaussian_noise, shot_noise, .*transform$"
        ):
            ask("mist")


def test_an_own_corruption_needs_five_constants_only_where_it_asks_for_them(monkeypatch):
    monkeypatch.setattr(CORRUPTIONS, "_entries", dict(CORRUPTIONS._entries))
    corruptions.corruption("inverted", name="inverted")(lambda images: 255 - images)
    corruptions.corruption("darker", name="darker", at_32=(10, 20, 30, 40, 50))(
        lambda images, constants: images - constants
    )
    corruptions.corruption("vague", name="vague", at_32=(1, 2))(lambda images, constants: images)
    images = smooth(2, 64).clamp(min=60)
    assert torch.equal(corrupt(images, "inverted", 5, generator(0)), 255 - images)
    assert torch.equal(corrupt(images, "darker", 3, generator(0)), images - 30)  # at 64 pixels it has no others
    with pytest.raises(ValueError, match=r"^the corruption 'vague' needs five constants, at_32=\(\.\.\.\): it has 2$"):
        corrupt(images, "vague", 1, generator(0))


def test_without_its_photographs_frost_says_what_to_install(monkeypatch):
    corruptions._frost_photographs.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = "frost needs the photographs of imagecorruptions-imaug: pip install imagecorruptions-imaug"
    assert corruptions.missing("frost") == reason and corruptions.missing("fog") is None
    with pytest.raises(FileNotFoundError, match=f"^{reason}$"):
        corrupt(smooth(1, 32), "frost", 1, generator(0))


@pytest.mark.parametrize("size", [32, 64])
def test_frost_is_one_of_the_first_five_photographs_over_each_image(size, photographs):
    assert corruptions.missing("frost") is None
    for severity in SEVERITIES:
        clean, ice = getattr(CORRUPTIONS["frost"], f"at_{size}")[severity - 1]
        frosted = corrupt(torch.full((60, 3, size, size), 100, dtype=torch.uint8), "frost", severity, generator(0))
        colour = (frosted.float() - clean * 100)[:, 0].mean((1, 2)) / ice
        which = (colour / 40).round().long()
        assert which.unique().tolist() == [1, 2, 3, 4, 5]
        expected = clean * 100 + ice * photographs[which - 1][:, :, None, None]
        assert (frosted - expected).abs().max() <= 1 + ice  # cut off, and the JPEGs' colours a level off


def exchanged(pixels: np.ndarray, shift: np.ndarray, reach: int) -> np.ndarray:
    """The released loop, which assigns views of (S, S, channels) to each other."""
    size = len(pixels)
    for h in range(size - reach, reach, -1):
        for w in range(size - reach, reach, -1):
            down, across = shift[:, h, w]
            h2, w2 = h + down, w + across
            pixels[h, w], pixels[h2, w2] = pixels[h2, w2], pixels[h, w]
    return pixels


@pytest.mark.parametrize("reach", [1, 2])
@pytest.mark.parametrize("size", [17, 32, 64])
def test_glass_blur_exchanges_pixels_as_the_released_loop_does(size, reach):
    shift = torch.randint(-reach, reach, (2, 3, size, size), generator=generator(0, "shift")).numpy()
    copied = corruptions._copied_from(3, size, reach, generator(0, "shift"))
    for i in range(3):
        places = np.arange(size * size).reshape(size, size, 1)
        assert np.array_equal(copied[i], exchanged(places, shift[:, i], reach).ravel())
    assert not torch.equal(copied[0], copied[1])


@pytest.mark.parametrize(
    ("sigma", "mode", "truncate"), [(0.4, "nearest", 4.0), (1.5, "nearest", 4.0), (6.4, "reflect", 3.0)]
)
def test_a_gaussian_filter_is_scipys(sigma, mode, truncate):
    levels = smooth(2, 28).double()
    filtered = corruptions._filtered(levels.float(), corruptions._gaussian(28, sigma, mode, truncate))
    expected = ndimage.gaussian_filter(levels.numpy(), (0, 0, sigma, sigma), mode=mode, truncate=truncate)
    np.testing.assert_allclose(filtered.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 0.9])
def test_glass_blurs_gaussian_is_scipys_to_the_last_level(sigma):
    images = torch.cat([smooth(2, 32), torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)])
    expected = 255 * ndimage.gaussian_filter(images.numpy() / 255, (0, 0, sigma, sigma), mode="nearest", truncate=4.0)
    assert np.array_equal(corruptions._blurred(images.float(), sigma), expected.astype(np.uint8))


@pytest.mark.parametrize(
    "constants",
    [(6.4, 1.9, 0), (10.2, 1.3, 0), (0, 0, 2.5), (0, 0, 5)],
    ids=["shift", "more shift", "map", "larger map"],
)
def test_an_elastic_transform_is_scipys(constants):
    strength, sigma, moved = constants
    images, draws = smooth(2, 32), generator(0, "elastic")
    made = CORRUPTIONS["elastic_transform"](images=images.float(), constants=constants, generator=draws)
    draws = generator(0, "elastic")
    found = moved * (2 * torch.rand(2, 3, 2, generator=draws).double().numpy() - 1)
    noise = 2 * torch.rand(2, 2, 32, 32, generator=draws).double().numpy() - 1
    x, y = np.meshgrid(np.arange(32.0), np.arange(32.0))
    corners = np.array([[26.0, 26], [26, 6], [6, 6]])  # a third of the side from the centre
    for i, image in enumerate(images.double().numpy()):
        went = np.linalg.lstsq(np.column_stack((corners, np.ones(3))), corners + found[i], rcond=None)[0]  # (3, 2)
        there = (np.stack((x, y), -1) - went[2]) @ np.linalg.inv(went[:2])
        dx, dy = (ndimage.gaussian_filter(noise[axis, i], sigma, mode="reflect", truncate=3) for axis in (0, 1))
        mode = "reflect" if strength else "mirror"  # a border pixel counts twice, or once
        place = (there[..., 1] + strength * dy, there[..., 0] + strength * dx)
        for channel, expected in zip(made[i], image, strict=True):
            values = ndimage.map_coordinates(expected, place, order=1, mode=mode)
            np.testing.assert_allclose(channel.numpy(), values, atol=0.05)


@pytest.mark.parametrize("size", [32, 64])
def test_in_fog_nothing_is_brighter_than_the_brightest_was(size):
    images = torch.full((4, 3, size, size), 100, dtype=torch.uint8)
    for severity in SEVERITIES:
        thickness, _ = getattr(CORRUPTIONS["fog"], f"at_{size}")[severity - 1]
        for image in corrupt(images, "fog", severity, generator(0)):
            assert int(image.max()) == 100  # where it is thickest
            assert int(image.min()) == int(100 * 100 / (100 + 255 * thickness))  # where there is none


@pytest.mark.parametrize("decay", [1.75, 3])
def test_fog_is_the_plasma_of_diamonds_and_squares_point_by_point(decay):
    size, draws = 16, generator(0, "plasma")
    height, step, wibble = np.zeros((size, size)), size, 100.0
    while step >= 2:
        half = step // 2
        ways = [(a, b) for a in (-half, half) for b in (-half, half)]
        beside = [(-half, 0), (half, 0), (0, -half), (0, half)]
        for top, left, around in ((half, half, ways), (0, half, beside), (half, 0, beside)):
            noise = 2 * torch.rand(1, size // step, size // step, generator=draws)[0].numpy() - 1
            for i in range(size // step):
                for j in range(size // step):
                    y, x = top + i * step, left + j * step
                    mean = np.mean([height[(y + a) % size, (x + b) % size] for a, b in around])  # it has no border
                    height[y, x] = mean + wibble**2 * noise[i, j]
        step, wibble = half, wibble / decay
    expected = (height - height.min()) / (height.max() - height.min())
    np.testing.assert_allclose(corruptions._plasma(1, size, decay, generator(0, "plasma"))[0], expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 1.05, 1.25, 2.25])
def test_a_zoom_into_the_centre_is_scipys(factor):
    levels = smooth(1, 28).double()[0, 0].numpy()
    inner = int(np.ceil(28 / factor))
    top = (28 - inner) // 2
    zoomed = ndimage.zoom(levels[top : top + inner, top : top + inner], factor, order=1)
    trim = (len(zoomed) - 28) // 2
    expected = zoomed[trim : trim + 28, trim : trim + 28]
    made = corruptions._filtered(torch.from_numpy(levels).float(), corruptions._zoom(28, factor))
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("size", [16, 28, 32, 64])
def test_pixelate_is_pillows_box_filter_to_the_last_level(size):
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator(0, "pixels"))
    for constant in CORRUPTIONS["pixelate"].at_32 + CORRUPTIONS["pixelate"].at_64:
        made = CORRUPTIONS["pixelate"](images=images.float(), constants=constant).to(torch.uint8)
        for image, pixels in zip(images, made, strict=True):
            small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
                (int(size * constant),) * 2, Image.Resampling.BOX
            )
            large = np.asarray(small.resize((size, size), Image.Resampling.BOX))
            assert np.array_equal(pixels.permute(1, 2, 0), large)


def test_a_histogram_is_equalised_and_an_even_image_stays():
    levels = torch.tensor([[[0, 0, 7, 20, 20]], [[7, 7, 7, 7, 7]]]).float()
    assert corruptions._equalised(levels, 21).tolist() == [[[0, 0, 85, 255, 255]], [[7, 7, 7, 7, 7]]]


def test_an_edge_is_one_pixel_wide_and_a_weak_one_counts_where_it_touches_a_strong_one():
    strong = torch.zeros(16, 16)
    strong[:, 8:] = 100
    weak = strong / 5
    fading = strong * torch.linspace(1, 0.2, 16)[:, None]
    edges = corruptions._edges(torch.stack((strong, weak, fading, strong.T)))
    assert edges.flatten(1).sum(1).tolist() == [16, 0, 16, 16]
    assert edges[0].any(0).sum() == 1 and edges[2].any(0).sum() == 1 and torch.equal(edges[3], edges[0].T)


def test_distances_from_edges_are_within_two_percent_and_end_at_twenty():
    edges = torch.rand(4, 48, 48, generator=generator(0, "edges")) > 0.998
    edges[0] = False
    distance = corruptions._distance(edges)
    assert (distance[0] == 20).all()
    for found, marked in zip(distance[1:], edges[1:], strict=True):
        expected = np.minimum(ndimage.distance_transform_edt(~marked.numpy()), 20)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0.02)
        assert (expected > 3).any()


def test_an_image_that_no_drop_falls_on_stays_as_it_is():
    images, (mean, deviation, sigma, _, strength, mud) = smooth(2, 32).float(), CORRUPTIONS["spatter"].at_32[0]
    given = {"images": images, "constants": (mean, deviation, sigma, 9, strength, mud), "generator": generator(0)}
    assert torch.equal(CORRUPTIONS["spatter"](**given), images)


def test_a_jpeg_is_pillows(tmp_path):
    images = smooth(3, 64)
    for image, made in zip(images, corruptions.jpeg(images, 85), strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "saved.jpg", quality=85)
        difference = np.asarray(Image.open(tmp_path / "saved.jpg")).astype(int) - made.permute(1, 2, 0).numpy()
        assert (np.abs(difference) <= 2).mean() > 0.995


LABELS = np.arange(10_000) % 100


def image_data(name: str, place: torch.Tensor | None, labels: torch.Tensor, size: int) -> ImageData:
    test = Split(torch.zeros(len(labels), 3, size, size, dtype=torch.uint8), labels, place)
    return ImageData(name, tuple(map(str, range(100))), None, test, (0, 0, 0), (1, 1, 1), True, "cifar10", "made")


@pytest.fixture
def cifar():
    """Ten of CIFAR-100's test images, not in the archive's order."""
    place = torch.tensor([9999, 3, 17, 0, 1, 5000, 2, 18, 4, 42])
    return image_data("cifar100", place, torch.from_numpy(LABELS)[place], 32)


@pytest.fixture
def cifar_c(tmp_path, cifar):
    """A data root with fog of CIFAR-100-C, a file full of holes: of the ten images each is even, 10 i + severity."""
    folder = tmp_path / "CIFAR-100-C"
    folder.mkdir()
    fog = np.lib.format.open_memmap(folder / "fog.npy", "w+", np.uint8, (50_000, 32, 32, 3))
    for severity in SEVERITIES:
        for i, place in enumerate(cifar.test.place.tolist()):
            fog[(severity - 1) * 10_000 + place] = 10 * i + severity
    fog.flush()
    np.save(folder / "labels.npy", np.tile(LABELS, 5))
    return tmp_path


def test_only_what_is_there_is_official(cifar, cifar_c, monkeypatch):
    fog = cifar_c / "CIFAR-100-C" / "fog.npy"
    assert official.available(cifar, str(cifar_c), ("frost", "fog")) == {"fog": fog}
    assert official.available(cifar, str(cifar_c), ("frost",)) == {}
    assert official.available(cifar, str(cifar_c.parent), CORRUPTIONS) == {}
    monkeypatch.setenv("R2KD_DATA", str(cifar_c))
    assert official.available(cifar, None, CORRUPTIONS) == {"fog": fog}


def test_where_the_images_stood_in_the_archive_is_not_known_nothing_is_official(cifar, cifar_c):
    folder = image_data("cifar100", None, cifar.test.labels, 32)
    others = [image_data(name, cifar.test.place, cifar.test.labels, 32) for name in ("digits", "my_folder")]
    for images in (folder, *others):
        assert official.available(images, str(cifar_c), CORRUPTIONS) == {}


@pytest.mark.parametrize("severity", SEVERITIES)
def test_official_images_are_those_of_the_split_in_its_order(severity, cifar, cifar_c):
    (path,) = official.available(cifar, str(cifar_c), CORRUPTIONS).values()
    fog = official.split(path, severity, cifar.test)
    assert fog.images.shape == (10, 3, 32, 32) and fog.images.dtype == torch.uint8 and fog.images.is_contiguous()
    assert fog.images.flatten(1).unique(dim=1).tolist() == [[10 * i + severity] for i in range(10)]
    assert torch.equal(fog.labels, cifar.test.labels) and torch.equal(fog.place, cifar.test.place)
    chosen = torch.tensor([7, 2])
    subset = official.split(path, severity, cifar.test.take(chosen))
    assert torch.equal(subset.images, fog.images[chosen]) and torch.equal(subset.labels, fog.labels[chosen])


def test_an_officials_channels_are_its_own(cifar, cifar_c):
    path = cifar_c / "CIFAR-100-C" / "fog.npy"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.lib.format.open_memmap(path, "r+")[20_000 + 17] = pixels
    assert np.array_equal(official.split(path, 3, cifar.test).images[2].permute(1, 2, 0), pixels)


def cut(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(1000)


BROKEN = {
    "other labels": (
        lambda home: np.save(home / "labels.npy", np.tile((LABELS + 1) % 100, 5)),
        "labels.npy has other labels",
    ),
    "too few labels": (lambda home: np.save(home / "labels.npy", LABELS), "fog.npy is not of CIFAR-100-C"),
    "no labels": (lambda home: (home / "labels.npy").unlink(), r"labels.npy.*unpack CIFAR-100-C.tar"),
    "cut off": (lambda home: cut(home / "fog.npy"), r"CIFAR-100-C cannot be read \(.*\): unpack CIFAR-100-C.tar"),
    "empty": (lambda home: (home / "fog.npy").write_bytes(b""), r"CIFAR-100-C cannot be read \(.*\): unpack"),
    "one severity": (
        lambda home: np.lib.format.open_memmap(home / "fog.npy", "w+", np.uint8, (10_000, 32, 32, 3)).flush(),
        r"fog.npy is not of CIFAR-100-C: uint8 \(10000, 32, 32, 3\)",
    ),
    "of floats": (
        lambda home: np.lib.format.open_memmap(home / "fog.npy", "w+", np.float32, (50_000, 32, 32, 3)).flush(),
        "fog.npy is not of CIFAR-100-C: float32",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_official_file_is_named_in_one_line(how, cifar, cifar_c):
    harm, message = BROKEN[how]
    harm(cifar_c / "CIFAR-100-C")
    with pytest.raises(ValueError, match=message) as error:
        official.split(cifar_c / "CIFAR-100-C" / "fog.npy", 1, cifar.test)
    assert str(cifar_c / "CIFAR-100-C") in str(error.value) and "\n" not in str(error.value)


def picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (level,) * 3).save(path, quality=95)


@pytest.fixture
def tiny(tmp_path):
    """Tiny ImageNet's six validation images, and fog of Tiny-ImageNet-C: each image even, 40 i + severity."""
    folder, rows = tmp_path / "tiny-imagenet-200", []
    for i, wnid in enumerate(("n03", "n01", "n02", "n01", "n02", "n03")):
        name = f"val_{(7 * i) % 6}.JPEG"  # neither by name nor by class
        rows.append(f"{name}\t{wnid}\t0\t0\t63\t63\n")
        picture(folder / "val" / "images" / name, 255 - 40 * i)
        for severity in SEVERITIES:
            picture(tmp_path / "Tiny-ImageNet-C" / "fog" / str(severity) / wnid / name, 40 * i + severity)
    (folder / "val" / "val_annotations.txt").write_text("".join(rows) + "\n")
    (folder / "wnids.txt").write_text("n03\nn01\nn02\n")
    return tmp_path


def levels(images: torch.Tensor | ImageFiles) -> list[int]:
    return images[:].float().mean((1, 2, 3)).round().int().tolist()


def test_official_files_of_tiny_imagenet_are_found_by_place(tiny):
    images = data.load("tiny_imagenet", tiny, splits=("test",))
    found = official.available(images, str(tiny), CORRUPTIONS)
    assert found == {"fog": tiny / "Tiny-ImageNet-C" / "fog"}
    for severity in SEVERITIES:
        fog = official.split(found["fog"], severity, images.test)
        assert isinstance(fog.images, ImageFiles) and fog.images.shape == (6, 3, 64, 64)
        assert levels(fog.images) == [40 * i + severity for i in range(6)]
        assert torch.equal(fog.labels, images.test.labels) and fog.labels.tolist() == [2, 0, 1, 0, 1, 2]
    chosen = torch.tensor([4, 1])
    subset = official.split(found["fog"], 2, images.test.take(chosen))
    assert levels(subset.images) == [162, 42] and subset.labels.tolist() == [1, 0]


def test_a_missing_official_file_is_named(tiny):
    images = data.load("tiny_imagenet", tiny, splits=("test",))
    fog = tiny / "Tiny-ImageNet-C" / "fog"
    missing = next((fog / "3" / "n01").iterdir())
    missing.unlink()
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(missing))} is missing: unpack Tiny-ImageNet-C.tar there again$"
    ):
        official.split(fog, 3, images.test)
    assert len(official.split(fog, 2, images.test)) == 6


def test_official_files_are_resized_as_the_images_are(tiny):
    images = data.load("tiny_imagenet", tiny, image_size=32, splits=("test",))
    (path,) = official.available(images, str(tiny), CORRUPTIONS).values()
    fog = official.split(path, 4, images.test)
    assert fog.images[:].shape == (6, 3, 32, 32) and levels(fog.images) == [40 * i + 4 for i in range(6)]
