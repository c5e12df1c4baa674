from r2kd import losses, simplex

import pytest
import torch

TEACHER = torch.tensor([5.0, 3.0, 0.0])
KL, COSINE, PEARSON, HARD, SOFT = simplex.LOSSES.values()


def at(*p, temperature=4.0):
    """Logits of the softened probabilities p."""
    return temperature * torch.tensor(p).log()


@pytest.mark.parametrize("name", simplex.LOSSES)
def test_a_map_is_the_loss_of_each_point_alone(name):
    loss, points = simplex.LOSSES[name], at((0.2, 0.3, 0.5), (0.6, 0.3, 0.1))
    found = simplex.distances(loss, points, TEACHER, 4.0)
    alone = [float(loss(point[None], TEACHER[None], 4.0)) for point in points]
    assert found.tolist() == pytest.approx(alone, rel=1e-5) and found[1] < found[0]


def test_correlation_is_the_same_along_a_ray_from_the_centre_and_kl_and_the_cosine_are_bowls():
    teacher = (TEACHER / 4).softmax(0)
    ray = torch.stack([1 / 3 + scale * (teacher - 1 / 3) for scale in (0.5, 1.0, 1.2)])
    values = {loss: simplex.distances(loss, 4 * ray.log(), TEACHER, 4.0) for loss in simplex.LOSSES.values()}
    for loss in (PEARSON, HARD):
        assert values[loss].tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    for loss in (KL, COSINE):
        before, there, beyond = values[loss].tolist()
        assert there == pytest.approx(0, abs=1e-4) and before > 0.05 and beyond > 0.005


@pytest.mark.parametrize("loss", [KL, COSINE, PEARSON, SOFT])
def test_a_small_step_along_an_arrow_makes_the_loss_smaller(loss):
    points = simplex._lattice()
    moved = simplex.descent(loss, 4 * points.log(), TEACHER, 4.0)
    assert moved.sum(dim=1).abs().max() < 1e-5  # probabilities stay probabilities
    step = 0.01 * moved / moved.norm(dim=1, keepdim=True)
    before, after = (simplex.distances(loss, 4 * p.log(), TEACHER, 4.0) for p in (points, points + step))
    assert (after < before + 1e-6).float().mean() > 0.9


def test_hard_ranks_have_six_plateaus_and_no_arrow():
    points = simplex._raster()[0]
    values = simplex.distances(losses.rank_loss, 4 * points.log(), TEACHER, 4.0)
    assert (
        len(values.mul(1000).round().unique()) == 4
    )  # six orders of three classes, two pairs as far from the teacher's
    assert not simplex.descent(losses.rank_loss, 4 * points[::50].log(), TEACHER, 4.0).any()


def test_the_teacher_moves_with_its_logits_and_nears_the_centre_with_temperature():
    explorer = simplex.explorer(temperature=4)
    assert [control.value for control in explorer.controls.values()] == [5, 3, 4]
    centre = simplex.CORNERS.mean(dim=0)
    far = []
    for temperature in (1, 8):
        panel = explorer(temperature=temperature).axes[0]
        star = torch.tensor(panel.lines[-1].get_xydata()[0], dtype=torch.float32)
        assert star.tolist() == pytest.approx(((TEACHER / temperature).softmax(0) @ simplex.CORNERS).tolist())
        far.append(float((star - centre).norm()))
    assert far[1] < 0.5 * far[0]
    first = panel.images[0].get_array().copy()
    explorer(logit_of_A=0, temperature=8)
    assert (first != panel.images[0].get_array()).any()


def test_the_raster_fills_the_triangle():
    points, inside = simplex._raster()
    assert points.sum(dim=1).allclose(torch.ones(len(points))) and (points > 0).all()
    assert inside.mean() == pytest.approx(0.5, abs=0.02) and len(points) == inside.sum()
