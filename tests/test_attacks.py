import itertools

from r2kd import attacks, data, evaluation, models
from r2kd.image_files import ImageFiles
from r2kd.randomness import generator, seeded

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

ROUNDING = 1e-6  # of pixels, float32


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").subset(None, 100)


@pytest.fixture(scope="module")
def trained(digits):
    """A small convolutional net after 60 steps: 97 % of these test digits."""
    with seeded(0, "net"):
        convolutions = nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()
        model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 10))
    images, labels = digits.normalize(digits.train.images), digits.train.labels
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    draws = generator(0, "order")
    for _ in range(6):
        for chosen in data.batch_indices(len(labels), 100, draws):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def small():
    """Untrained, of 4 classes: what is not linear."""
    with seeded(0, "net"):
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4)).eval()


class Linear:
    """Two classes, whose logits are w.x + 1 and 0: the margin of class 0 is w.x + 1."""

    def __init__(self, scale=1.0):
        self.w = scale * torch.randn(3, 16, 16, generator=generator(0, "w"))

    def margin(self, images):
        return (images * self.w).sum((1, 2, 3)) + 1

    def __call__(self, images):
        return torch.stack([self.margin(images), torch.zeros(len(images))], dim=1)


def grey(count=8, size=16):
    """Images away from the borders of the box, and the labels of class 0."""
    images = 0.3 + 0.4 * torch.rand(count, 3, size, size, generator=generator(0, "grey"))
    return images, torch.zeros(count, dtype=torch.long)


def run(name, model, images, labels, epsilon, seed=0):
    chosen = attacks.ATTACKS.choose(name)
    return chosen(model=model, images=images, labels=labels, epsilon=epsilon, generator=generator(seed, name))


def norms(moved, norm):
    """(B,) in an entry's norm."""
    return torch.linalg.vector_norm(moved.flatten(1), ord={"Linf": torch.inf, "L2": 2}[norm], dim=1)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
@pytest.mark.parametrize("label", [0, 1])
def test_in_the_cube_a_linear_model_is_moved_to_the_corner(name, label):
    model, (images, labels) = Linear(), grey()
    attacked = run(name, model, images, labels + label, 8 / 255)
    corner = images - (1 - 2 * label) * 8 / 255 * model.w.sign()
    torch.testing.assert_close(attacked, corner, rtol=0, atol=ROUNDING)
    fallen = (1 - 2 * label) * (model.margin(images) - model.margin(attacked))
    torch.testing.assert_close(fallen, torch.full((8,), float(8 / 255 * model.w.abs().sum())), rtol=1e-4, atol=0)


def test_in_the_ball_a_linear_models_margin_falls_by_the_radius_times_the_norm():
    model, (images, labels) = Linear(), grey()
    fallen = model.margin(images) - model.margin(run("pgd_l2", model, images, labels, 0.5))
    share = fallen / (0.5 * model.w.norm())
    assert share.min() > 0.999 and share.max() < 1 + 1e-5


def test_the_balls_start_is_uniform_in_it():
    images = torch.full((20_000, 3, 1, 1), 0.5)
    start = attacks.pgd_l2(None, images, None, 0.4, generator(0, "start"), steps=0) - images
    volumes = (start.flatten(1).norm(dim=1) / 0.4) ** 3  # of the inner ball that the start is on the surface of
    assert torch.allclose(volumes.quantile(torch.tensor([0.25, 0.5, 0.75])), torch.tensor([0.25, 0.5, 0.75]), atol=0.02)
    assert float(start.mean(0).norm()) < 0.01


def test_the_cubes_start_is_uniform_in_it():
    images = torch.full((20_000, 3, 1, 1), 0.5)
    start = attacks.pgd(None, images, None, 0.4, generator(0, "start"), steps=0) - images
    assert torch.allclose(
        start.flatten().quantile(torch.tensor([0.25, 0.5, 0.75])), torch.tensor([-0.2, 0, 0.2]), atol=0.01
    )


def test_random_signs_move_every_pixel_by_epsilon_one_way_as_often_as_the_other():
    images, _ = grey(64)
    moved = attacks.noise(images, 8 / 255, generator(0, "noise")) - images
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 8 / 255), rtol=0, atol=ROUNDING)
    assert float((moved > 0).float().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd_l2"])
def test_a_sure_model_is_attacked_as_an_unsure_one(name):
    """At a margin of 1e4 the cross-entropy of float32 has no gradient at all."""
    images, labels = grey()
    labels = (Linear().margin(images) < 0).long()
    sure, unsure = (run(name, Linear(scale), images, labels, 4 / 255) for scale in (1e4, 1e-2))
    torch.testing.assert_close(sure, unsure, rtol=0, atol=ROUNDING)


def test_the_gradient_has_the_direction_of_cross_entropys(small):
    images, labels = grey(4)
    labels = torch.arange(4)
    pixels = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(small(pixels), labels, reduction="sum"), pixels)
    found = attacks._gradient(small, images, labels)
    torch.testing.assert_close(F.normalize(found.flatten(1)), F.normalize(expected.flatten(1)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", attacks.ATTACKS)
@settings(max_examples=30)
@given(epsilon=st.floats(0, 2), levels=st.integers(1, 255), seed=st.integers(0, 9))
def test_what_an_attack_returns_is_in_the_box_and_in_the_radius(name, epsilon, levels, seed, small):
    images = (
        torch.randint(levels + 1, (3, 3, 16, 16), generator=generator(seed, "levels")) / levels
    )  # 0 and 1 among them
    attacked = run(name, small, images, torch.tensor([0, 1, 3]), epsilon, seed)
    assert attacked.shape == images.shape and attacked.dtype == torch.float32 and not attacked.requires_grad
    assert float(attacked.min()) >= 0 and float(attacked.max()) <= 1
    assert float(norms(attacked - images, attacks.ATTACKS[name].norm).max()) <= epsilon + ROUNDING


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_an_attack_uses_its_radius(name, small):
    images, labels = grey()
    entry = attacks.ATTACKS[name]
    for epsilon in entry.epsilons[1:]:
        moved = norms(run(name, small, images, labels, epsilon * entry.unit) - images, entry.norm)
        torch.testing.assert_close(moved, torch.full((8,), float(epsilon * entry.unit)), rtol=0.02, atol=0)


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_a_radius_of_zero_leaves_images_and_accuracy_as_they_are(name, trained, small, digits):
    images = digits.test.images[:8].float() / 255
    assert torch.equal(run(name, small, images, digits.test.labels[:8] % 4, 0.0), images)
    clean = evaluation.predict(trained, digits.test, digits)
    for epsilon in (0, 0.0):
        assert torch.equal(attacks.attacked_logits(trained, digits.test, digits, name, epsilon), clean)
    almost = attacks.attacked_logits(trained, digits.test, digits, name, 1e-6)  # the same by the other way
    torch.testing.assert_close(almost, clean, rtol=1e-3, atol=1e-3)


def test_in_pixels_normalises_as_the_data_does():
    images = data.load("digits", splits=("test",))
    given = attacks.in_pixels(lambda normalised: normalised, images)(images.test.images.float() / 255)
    expected = images.normalize(images.test.images)
    torch.testing.assert_close(given, expected, rtol=0, atol=ROUNDING)
    assert given.is_contiguous(memory_format=torch.channels_last)
    half = attacks.in_pixels(lambda normalised: normalised.mean((2, 3)).bfloat16(), images)
    assert half(torch.rand(2, 3, 8, 8)).dtype == torch.float32


def test_in_pixels_has_each_channels_statistics():
    images = data.ImageData("", (), None, None, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25), False, "")
    answer = attacks.in_pixels(lambda normalised: normalised, images)(torch.full((1, 3, 1, 1), 0.4))
    torch.testing.assert_close(answer.flatten(), torch.tensor([0.3, 0.4, 0.4]))


@pytest.mark.parametrize("name, unit", [("fgsm", 1 / 255), ("noise", 1 / 255), ("pgd_l2", 1)])
def test_a_radius_is_in_the_attacks_own_unit(name, unit, digits):
    seen = spied(digits, name, 2)
    moved = norms(seen[-1] - digits.test.images[:64].float() / 255, attacks.ATTACKS[name].norm)
    assert float(moved.max()) == pytest.approx(2 * unit, rel=0.03)


def spied(digits, name, epsilon, seed=0, scale=1.0):
    """The pixels that a linear model of the first 64 test images is asked about, in turn."""
    seen = []
    weight = scale * torch.randn(3 * 16 * 16, 10, generator=generator(1, "weight"))

    def model(normalised):
        pixels = normalised * torch.tensor(digits.std).view(3, 1, 1) + torch.tensor(digits.mean).view(3, 1, 1)
        seen.append(pixels.detach().clone())
        return normalised.flatten(1) @ weight

    split = digits.test.take(torch.arange(64))
    attacks.attacked_logits(model, split, digits, name, epsilon, seed)
    return seen


@pytest.mark.parametrize("name", ["pgd", "pgd_l2", "noise"])
def test_every_model_meets_the_same_start_whatever_was_drawn_before(name, digits):
    torch.manual_seed(1)
    first = spied(digits, name, 8)[0]
    torch.manual_seed(2)
    spied(digits, name, 4)
    assert torch.equal(spied(digits, name, 8.0, scale=-3)[0], first)
    assert not torch.equal(spied(digits, name, 8, seed=1)[0], first)
    if name != "noise":
        assert torch.equal(spied(digits, f"{name}:steps=2", 8)[0], first)  # so that numbers of steps are paired


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_the_same_seed_gives_the_same_bytes(name, trained, digits):
    first, again = (attacks.attacked_logits(trained, digits.test, digits, name, 2) for _ in range(2))
    assert torch.equal(first, again) and first.dtype == torch.float32 and first.shape == (100, 10)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_to_be_had_where_the_caller_wants_none(mode, trained, digits):
    expected = attacks.attacked_logits(trained, digits.test, digits, "pgd:steps=2", 2)
    with mode():
        split = data.Split(digits.test.images.clone(), digits.test.labels.clone())  # of inference_mode's kind
        assert torch.equal(attacks.attacked_logits(trained, split, digits, "pgd:steps=2", 2), expected)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode) and not torch.is_grad_enabled()


@pytest.mark.parametrize("training", [False, True])
def test_a_model_stays_as_it_was(training, digits):
    with seeded(0, "net"):
        model = models.create("resnet8", 10).train(training)
    frozen = list(model.parameters())[::2]
    for parameter in frozen:
        parameter.requires_grad_(False)
    weights = [parameter.clone() for parameter in model.parameters()]
    logits = attacks.attacked_logits(model, digits.test, digits, "pgd:steps=2", 2)
    assert model.training == training and not logits.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in list(model.parameters())[::2]] == [False] * len(frozen)
    assert all(parameter.requires_grad for parameter in list(model.parameters())[1::2])
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_an_attack_is_in_float32_whatever_torch_is_allowed(digits):
    allowed = []

    def model(images):
        allowed.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return images.mean(dim=(2, 3))

    before = torch.backends.cudnn.allow_tf32
    split = digits.test.take((digits.test.labels < 3).nonzero().flatten())
    attacks.attacked_logits(model, split, digits, "fgsm", 2)
    assert allowed == [(False, False)] * 2 and torch.backends.cudnn.allow_tf32 == before


def test_streamed_images_are_attacked_as_those_in_memory(tmp_path, trained, digits):
    paths = [str(tmp_path / f"{i}.png") for i in range(8)]
    for path, image in zip(paths, digits.test.images[:8], strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    labels = digits.test.labels[:8]
    streamed, held = (data.Split(images, labels) for images in (ImageFiles(paths, 16, False), digits.test.images[:8]))
    given = (digits, "pgd:steps=2", 4)
    assert torch.equal(
        attacks.attacked_logits(trained, streamed, *given), attacks.attacked_logits(trained, held, *given)
    )


def test_a_trained_net_falls_and_its_gradients_are_not_masked(trained, digits):
    rows = attacks.masking_check(trained, digits.test, digits)
    assert all(row["held"] is True for row in rows) and len(rows) == 4
    radii, signs, steps, single = (row["top1"] for row in rows)
    assert radii["clean"] > 95 and radii["pgd 64/255"] < 1
    assert steps["20 steps"] == radii["pgd 8/255"] == signs["pgd 8/255"] == single["pgd 8/255"]
    assert (
        evaluation.accuracy(attacks.attacked_logits(trained, digits.test, digits, "pgd_l2", 4), digits.test.labels) < 1
    )


def test_masked_gradients_are_found_out(trained, digits):
    stairs = lambda images: trained((images * 8).round() / 8)  # noqa: E731 (no slope anywhere)
    larger, random, _, _ = attacks.masking_check(stairs, digits.test.take(torch.arange(50)), digits)
    assert larger["top1"]["clean"] > 90 and larger["top1"]["pgd 64/255"] > 1
    assert larger["held"] is False and random["held"] is False


@pytest.mark.parametrize(
    "left, fails",
    [
        ({}, set()),
        ({"pgd:steps=50 8": 21}, set()),  # one image in a hundred is chance
        ({"pgd:steps=50 8": 22}, {2}),
        ({"pgd:steps=20 8": 32, "pgd:steps=50 8": 32, "pgd:steps=10 8": 32, "pgd:steps=5 8": 32}, {3}),
        ({"pgd 0": 18}, {0}),
        ({"pgd 64": 1}, {0}),
        ({"noise 8": 20}, {1}),
        ({"noise 64": 0}, {1}),
    ],
)
def test_each_sign_of_masking_is_told_by_its_row(left, fails, monkeypatch):
    """By the percent that stand under an attack at a radius, all else being as it should be."""

    def logits(model, split, images, attack, epsilon, seed):
        usual = {0: 95, 8: 20, 64: 0}[epsilon] + {"noise": 60, "fgsm": 10}.get(attack, 0)
        right = torch.arange(100) < left.get(f"{attack} {epsilon}", usual)
        return F.one_hot((~right).long()).float()

    monkeypatch.setattr(attacks, "attacked_logits", logits)
    rows = attacks.masking_check(None, data.Split(None, torch.zeros(100, dtype=torch.long)), None)
    assert {i for i, row in enumerate(rows) if not row["held"]} == fails


def test_an_unknown_attack_is_named_and_a_radius_is_not_negative(trained, digits):
    with pytest.raises(ValueError, match="unknown attack 'cw'; known: fgsm, pgd, pgd_l2, noise"):
        attacks.attacked_logits(trained, digits.test, digits, "cw", 1)
    with pytest.raises(ValueError, match="unknown option 'step' of attack 'pgd'; known: steps, relative_step"):
        attacks.attacked_logits(trained, digits.test, digits, "pgd:step=1", 1)
    with pytest.raises(ValueError, match="not -1"):
        attacks.attacked_logits(trained, digits.test, digits, "fgsm", -1)


def test_an_attack_has_an_address_and_radii_from_the_clean_images_up():
    addresses = [attacks.ATTACKS.choose(name).acts() for name in (*attacks.ATTACKS, "pgd:steps=50")]
    assert all(a != b for a, b in itertools.combinations(addresses, 2))
    for entry in attacks.ATTACKS.values():
        assert entry.epsilons[0] == 0 and list(entry.epsilons) == sorted(entry.epsilons)


def test_ones_own_function_is_an_attack(trained, digits):
    negative = attacks.attacked_logits(trained, digits.test, digits, lambda images: 1 - images, 1)
    expected = evaluation.predict(trained, data.Split(255 - digits.test.images, digits.test.labels), digits)
    torch.testing.assert_close(negative, expected, rtol=1e-3, atol=1e-3)
    clean = evaluation.predict(trained, digits.test, digits)
    assert torch.equal(attacks.attacked_logits(trained, digits.test, digits, lambda images: 1 - images, 0), clean)
