import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r2kd import losses

DISTANCES = {"value": losses.value_loss, "rank": losses.rank_loss, "kd": losses.kd_loss}
RELEASED = {
    "ce": lambda student, teacher, target: losses.cross_entropy(student, target),
    "kd_T4": lambda student, teacher, target: losses.kd_loss(student, teacher),
    "r2kd_value_T4_w2": lambda student, teacher, target: 2 * losses.value_loss(student, teacher),
    "r2kd_value_T1_w1": lambda student, teacher, target: losses.value_loss(student, teacher, temperature=1.0),
    "r2kd_rank_T4_w2": lambda student, teacher, target: 2 * losses.rank_loss(student, teacher),
}


@pytest.mark.parametrize("case", ["small", "tiny", "peaked"])
@pytest.mark.parametrize("name", RELEASED)
def test_values_and_gradients_are_the_released_ones(name, case, golden):
    numbers = np.load(golden / "losses.npz")
    student = torch.tensor(numbers[f"{case}/student"], requires_grad=True)
    loss = RELEASED[name](student, torch.tensor(numbers[f"{case}/teacher"]), torch.tensor(numbers[f"{case}/target"]))
    assert loss.item() == pytest.approx(float(numbers[f"{case}/{name}"]), rel=1e-6)
    if f"{case}/{name}/grad" in numbers:
        loss.backward()
        np.testing.assert_allclose(student.grad.numpy(), numbers[f"{case}/{name}/grad"], rtol=1e-6, atol=1e-12)


def logits(seed: int, batch: int, classes: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(batch, classes, generator=draws, dtype=torch.float64) for _ in range(2))


cases = given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 12), st.floats(0.1, 20))


@cases
def test_every_distance_of_a_thing_to_itself_is_zero(seed, batch, classes, scale):
    student, _ = logits(
        seed, batch, classes, min(scale, 2)
    )  # a class without weight counts as distant, even from itself
    for distance in DISTANCES.values():
        assert distance(student, student).item() == pytest.approx(0, abs=1e-3)


@cases
def test_distances_stay_in_their_bounds(seed, batch, classes, scale):
    student, teacher = logits(seed, batch, classes, scale)
    assert -1e-9 <= losses.value_loss(student, teacher, 3.0).item() <= 2 * 3.0**2
    assert -1e-9 <= losses.rank_loss(student, teacher).item() <= 2 + 1e-9
    assert losses.kd_loss(student, teacher).item() >= -1e-9


@cases
def test_the_order_of_samples_and_classes_does_not_matter(seed, batch, classes, scale):
    student, teacher = logits(seed, batch, classes, scale)
    samples, columns = torch.randperm(batch), torch.randperm(classes)
    for distance in DISTANCES.values():
        shuffled = distance(student[samples][:, columns], teacher[samples][:, columns])
        assert shuffled.item() == pytest.approx(distance(student, teacher).item(), rel=1e-9, abs=1e-9)


@cases
def test_a_constant_added_to_a_samples_logits_changes_nothing(seed, batch, classes, scale):
    student, teacher = logits(seed, batch, classes, scale)
    for distance in DISTANCES.values():
        shifted = distance(student + 3.5, teacher - 1.25).item()
        assert shifted == pytest.approx(distance(student, teacher).item(), rel=1e-6, abs=1e-9)


def test_reversed_order_is_the_largest_rank_distance_and_scaling_is_none():
    _, teacher = logits(0, 8, 10, 1.0)
    assert losses.rank_loss(-teacher, teacher).item() == pytest.approx(2, abs=1e-5)
    assert losses.rank_loss(0.5 * teacher, teacher).item() == pytest.approx(0, abs=1e-5)


def test_the_value_gradient_is_right():
    student, teacher = logits(1, 5, 4, 2.0)
    assert torch.autograd.gradcheck(losses.value_loss, (student.requires_grad_(), teacher))


def test_the_rank_term_as_released_has_no_gradient():
    student, teacher = logits(2, 4, 5, 1.0)
    assert not losses.rank_loss(student.requires_grad_(), teacher).requires_grad


EXTREMES = {
    "peaked": lambda: torch.eye(6) * 1e4,
    "equal": lambda: torch.zeros(6, 6),
    "constant": lambda: torch.full((6, 6), 300.0),
    "one class": lambda: torch.tensor([0.0, 0, 0, 0, 0, 6e4]).repeat(6, 1),
}


@pytest.mark.parametrize("student", EXTREMES)
@pytest.mark.parametrize("teacher", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_losses_and_gradients_are_finite_at_the_extremes(student, teacher, dtype):
    for name, distance in DISTANCES.items():
        given = EXTREMES[student]().to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.float16, enabled=dtype == torch.float16):
            loss = distance(given, EXTREMES[teacher]().to(dtype))
        assert math.isfinite(loss.item())
        if name != "rank":
            loss.backward()
            assert given.grad.isfinite().all()
