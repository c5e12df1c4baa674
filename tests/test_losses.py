import functools
import math

from r2kd import losses

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

DISTANCES = {
    "value": losses.value_loss,
    "rank": losses.rank_loss,
    "soft rank": losses.soft_rank_loss,
    "dist": losses.dist_loss,
    "kd": losses.kd_loss,
}
RELEASED = {
    "ce": lambda student, teacher, target: losses.cross_entropy(student, target),
    "kd_T4": lambda student, teacher, target: losses.kd_loss(student, teacher),
    "r2kd_value_T4_w2": lambda student, teacher, target: 2 * losses.value_loss(student, teacher),
    "r2kd_value_T1_w1": lambda student, teacher, target: losses.value_loss(student, teacher, temperature=1.0),
    "dkd_a1_b8_T4": lambda student, teacher, target: losses.dkd_loss(student, teacher, target, 4.0, 1.0, 8.0),
    "dist_b1_g1_T1": lambda student, teacher, target: losses.dist_loss(student, teacher, temperature=1.0),
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


def test_no_loss_of_the_golden_file_is_left_out(golden):
    names = {key.split("/")[1] for key in np.load(golden / "losses.npz")}
    assert names - {"student", "teacher", "target"} == set(RELEASED)


BASELINES = {
    "ls_kd_T2": lambda s, t, y, ss, ts: losses.kd_loss(losses.standardise(s), losses.standardise(t), 2.0),
    "ls_dkd_a1_b2_T2": lambda s, t, y, ss, ts: losses.dkd_loss(
        losses.standardise(s), losses.standardise(t), y, 2.0, 1.0, 2.0
    ),
    "mlkd_ce": lambda s, t, y, ss, ts: 0.1 * (losses.cross_entropy(s, y) + losses.cross_entropy(ss, y)),
    "mlkd_kd": lambda s, t, y, ss, ts: 0.9 * losses.mlkd_terms(s, t, ss, ts)["kd"],
    "mlkd_cc": lambda s, t, y, ss, ts: 0.9 * losses.mlkd_terms(s, t, ss, ts)["cc"],
    "mlkd_bc": lambda s, t, y, ss, ts: 0.9 * losses.mlkd_terms(s, t, ss, ts)["bc"],
    "mlkd_total": losses.mlkd_loss,
    "ls_mlkd_total_T2_w9": functools.partial(losses.mlkd_loss, kd_weight=9.0, temperature=2.0, standardised=True),
}


@pytest.mark.parametrize("case", ["small", "tiny", "peaked"])
@pytest.mark.parametrize("name", BASELINES)
def test_values_and_gradients_of_the_baselines_are_the_released_ones(name, case, golden):
    numbers, given = np.load(golden / "baselines.npz"), np.load(golden / "losses.npz")
    student = torch.tensor(given[f"{case}/student"], requires_grad=True)
    strong = torch.tensor(numbers[f"{case}/student_strong"], requires_grad=True)
    teacher, target = (torch.tensor(given[f"{case}/{name}"]) for name in ("teacher", "target"))
    loss = BASELINES[name](student, teacher, target, strong, torch.tensor(numbers[f"{case}/teacher_strong"]))
    assert loss.item() == pytest.approx(float(numbers[f"{case}/{name}"]), rel=1e-9)
    loss.backward()
    for logits, key in ((student, "grad"), (strong, "grad_strong")):
        if f"{case}/{name}/{key}" in numbers:
            wanted = numbers[f"{case}/{name}/{key}"]
            found = np.zeros_like(wanted) if logits.grad is None else logits.grad.numpy()
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-12)


def test_no_baseline_of_the_golden_file_is_left_out(golden):
    names = {key.split("/")[1] for key in np.load(golden / "baselines.npz")}
    assert names - {"student_strong", "teacher_strong"} == set(BASELINES)


def test_each_switch_of_mlkd_changes_its_own_terms_alone():
    student, teacher = logits(0, 8, 10, 2.0)
    strong = logits(1, 8, 10, 2.0)
    released = losses.mlkd_terms(student, teacher, *strong)
    changed = {
        "mask": ("select", {"kd", "cc", "bc"}),
        "strong_temperatures": ("own", {"kd"}),
        "strong_terms": ("kept", {"cc", "bc"}),
    }
    for switch, (value, wanted) in changed.items():
        terms = losses.mlkd_terms(student, teacher, *strong, **{switch: value})
        assert {name for name in terms if not torch.isclose(terms[name], released[name])} == wanted


def test_the_mask_as_released_selects_nothing_and_as_intended_leaves_out_what_the_teacher_is_sure_of():
    _, teacher = logits(0, 8, 10, 2.0)
    sure = teacher.softmax(1).amax(1) > teacher.softmax(1).amax(1).quantile(0.5)
    other = teacher + torch.randn(8, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strong = (teacher, teacher)
    student = torch.where(sure[:, None], other, teacher).requires_grad_()  # apart where the teacher is sure
    kept = losses.mlkd_terms(student, teacher, *strong, mask="select", strong_temperatures="own")["kd"]
    scaled = losses.mlkd_terms(student, teacher, *strong, strong_temperatures="own")["kd"]
    assert kept.item() == pytest.approx(0, abs=1e-9) and scaled.item() > 0.1


def test_standardised_logits_have_no_scale_and_constant_ones_a_gradient():
    student, teacher = logits(0, 8, 10, 2.0)
    found = losses.standardise(3 * student + 5)
    torch.testing.assert_close(found, losses.standardise(student))
    torch.testing.assert_close(found.std(dim=1), torch.ones(8, dtype=torch.float64))
    flat = torch.zeros(8, 10, dtype=torch.float64, requires_grad=True)
    losses.kd_loss(losses.standardise(flat), losses.standardise(teacher)).backward()
    assert flat.grad.isfinite().all()


def logits(seed: int, batch: int, classes: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(batch, classes, generator=draws, dtype=torch.float64) for _ in range(2))


cases = given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 12), st.floats(0.1, 20))


@cases
def test_every_distance_of_a_thing_to_itself_is_zero(seed, batch, classes, scale):
    # a class without weight, or with the same weight in all samples, counts as distant, even from itself
    student, _ = logits(seed, batch, classes, min(scale, 2))
    assume(
        (student.amax(dim=1) - student.amin(dim=1)).min() > 4e-3
    )  # as good as equal logits are distant by soft ranks
    for name, distance in DISTANCES.items():
        if name != "dist":
            assert distance(student, student).item() == pytest.approx(0, abs=1e-3)
    student, _ = logits(seed, 6 * batch, classes, 2)  # two samples of one class may be as good as alike
    assume((student / 4).softmax(dim=1).std(dim=1).min() > 3e-3)
    assert losses.dist_loss(student, student).item() == pytest.approx(0, abs=1e-2)


@cases
def test_distances_stay_in_their_bounds(seed, batch, classes, scale):
    student, teacher = logits(seed, batch, classes, scale)
    assert -1e-9 <= losses.value_loss(student, teacher, 3.0).item() <= 2 * 3.0**2
    assert -1e-9 <= losses.rank_loss(student, teacher).item() <= 2 + 1e-9
    assert -1e-9 <= losses.soft_rank_loss(student, teacher).item() <= 2 + 1e-9
    assert -1e-9 <= losses.dist_loss(student, teacher, 3.0).item() <= 4 * 3.0**2 + 1e-9
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


@pytest.mark.parametrize("distance", [losses.value_loss, losses.dist_loss, losses.kd_loss])
def test_the_gradient_is_right(distance):
    student, teacher = logits(1, 5, 4, 2.0)
    assert torch.autograd.gradcheck(distance, (student.requires_grad_(), teacher))


@pytest.mark.parametrize("regularisation", [0.03, 0.1, 1.0, 10.0])
def test_the_soft_rank_gradient_is_right(regularisation):
    student, teacher = logits(1, 5, 7, 2.0)
    distance = functools.partial(losses.soft_rank_loss, temperature=2.0, regularisation=regularisation)
    assert torch.autograd.gradcheck(distance, (student.requires_grad_(), teacher.requires_grad_()))


def orders(seed: int, batch: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are permutations of 0 ... C - 1, so that no two lie closer than 1."""
    draws = torch.Generator().manual_seed(seed)
    rows = [[torch.randperm(classes, generator=draws) for _ in range(batch)] for _ in range(2)]
    return tuple(torch.stack(row).double() for row in rows)


@cases
def test_soft_ranks_are_the_hard_ones_in_the_limit(seed, batch, classes, scale):
    student, teacher = orders(seed, batch, classes)
    soft = losses.soft_rank_loss(scale * student, scale * teacher, regularisation=scale / 200)
    assert soft.item() == pytest.approx(losses.rank_loss(student, teacher).item(), abs=1e-5)


@cases
def test_in_the_limit_a_monotone_map_changes_no_soft_rank(seed, batch, classes, scale):
    student, teacher = orders(seed, batch, classes)
    loss = losses.soft_rank_loss(student, teacher, regularisation=1e-3).item()
    for monotone in (lambda z: scale * z**3 + z, lambda z: (z / 2).exp() + 0.1 * z, lambda z: z + 3 * (z > 2)):
        mapped = losses.soft_rank_loss(monotone(student), teacher, regularisation=1e-3)
        assert mapped.item() == pytest.approx(loss, abs=1e-6)


@cases
def test_soft_ranks_of_equal_orders_are_at_no_distance_of_reversed_at_the_largest(seed, batch, classes, scale):
    order, _ = orders(seed, batch, classes)
    same, reversed_ = scale * order**2 + order, -scale * order
    assert losses.soft_rank_loss(same, order, regularisation=1e-3).item() == pytest.approx(0, abs=1e-5)
    assert losses.soft_rank_loss(reversed_, order, regularisation=scale / 1e3).item() == pytest.approx(2, abs=1e-5)


@cases
def test_strongly_regularised_it_is_pearsons_distance_of_the_logits(seed, batch, classes, scale):
    student, teacher = logits(seed, batch, classes + 3, 1.0)
    pearson = [np.corrcoef(a, b)[0, 1] for a, b in zip(student.numpy(), teacher.numpy(), strict=True)]
    soft = losses.soft_rank_loss(student, teacher, regularisation=5.0)
    assert soft.item() == pytest.approx(1 - np.mean(pearson), abs=1e-2)


def test_soft_ranks_in_half_precision_are_those_of_single():
    student, teacher = (values.half() for values in logits(3, 64, 100, 4.0))
    single = student.float().requires_grad_()
    half = student.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses.soft_rank_loss(half, teacher)
    expected = losses.soft_rank_loss(single, teacher.float())
    assert loss.item() == expected.item()
    (1024 * loss).backward()  # as a gradient scaler does
    (1024 * expected).backward()
    torch.testing.assert_close(half.grad, single.grad.half(), rtol=0, atol=0)


@pytest.mark.parametrize("regularisation", [0.0, -1.0, float("nan")])
def test_soft_ranks_refuse_no_regularisation(regularisation):
    with pytest.raises(ValueError, match="must be above 0"):
        losses.soft_rank_loss(torch.zeros(2, 2), torch.zeros(2, 2), regularisation=regularisation)


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
        if name == "rank" or (
            name == "dist" and dtype == torch.float16
        ):  # DIST's epsilon: up to 1e8 where all are alike
            continue
        loss.backward()
        assert given.grad.isfinite().all()


@cases
def test_dkd_is_two_divergences_of_the_softened_outputs(seed, batch, classes, scale):
    student, teacher = logits(seed, batch, classes, scale)
    target = torch.arange(batch) % classes
    p, q = ((values / 4).softmax(1) for values in (student, teacher))
    rows = torch.arange(batch)
    binary = [torch.stack((v[rows, target], 1 - v[rows, target]), dim=1) for v in (p, q)]
    target_kl = (binary[1] * (binary[1].log() - binary[0].log())).sum(1).mean()
    others = [v.masked_fill(torch.nn.functional.one_hot(target, classes).bool(), 0) for v in (p, q)]
    r, s = (v / v.sum(1, keepdim=True) for v in others)
    others_kl = torch.where(s > 0, s * (s.log() - r.log()), 0).sum(1).mean()
    expected = 16 * (2 * target_kl + 3 * others_kl)
    torch.testing.assert_close(losses.dkd_loss(student, teacher, target, 4.0, 2.0, 3.0), expected, rtol=1e-6, atol=1e-9)
    assert losses.dkd_loss(student, student, target).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dkd_is_finite_at_the_extremes_and_its_gradient_is_right(dtype):
    target = torch.tensor([0, 1, 2])
    for student in (torch.zeros(3, 4), 1e4 * torch.eye(3, 4), -1e4 * torch.eye(3, 4)):
        for teacher in (torch.zeros(3, 4), 1e4 * torch.eye(3, 4), -1e4 * torch.eye(3, 4)):
            asked = student.to(dtype).requires_grad_()
            loss = losses.dkd_loss(asked, teacher.to(dtype), target)
            loss.backward()
            assert loss.isfinite() and asked.grad.isfinite().all() and loss.dtype != torch.bfloat16
    given = [values.requires_grad_() for values in logits(0, 3, 5, 2.0)]
    assert torch.autograd.gradcheck(lambda *both: losses.dkd_loss(*both, target), given)
