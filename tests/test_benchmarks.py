import dataclasses

from benchmarks import agreement, loops, report, step
from r2kd import experiments

import pytest
import torch

CPU = torch.device("cpu")
PAIR = experiments.pair_models("res20_res8")


def test_the_readme_shows_the_tables_beside_it_and_no_other_number():
    assert (report.FOLDER / "README.md").read_text() == report.render()


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_both_loops_train_on_the_same_images_at_the_same_first_loss(mode):
    images = dataclasses.replace(step.benchmark_images(16), flip=False)
    firsts = []
    for loop in (loops.plain_loop, loops.our_loop):
        endless = loop(PAIR, images, mode, CPU)
        steps = [next(endless) for _ in range(4)]
        endless.close()
        assert all(0 < taken.data_seconds < taken.seconds for taken in steps)
        firsts.append(steps[0].loss)
    assert firsts[0] == pytest.approx(firsts[1], rel=0.05)  # the weights are the same, the first batches are not


def test_the_flops_are_those_of_four_answers_and_two_lessons_a_student():
    teacher, student = 0.2507e9, 0.0816e9  # multiply-adds of both counted twice, resnet56 and resnet20 at 32 pixels
    lesson = 3 * student - 2 * 16 * 3 * 9 * 32 * 32  # the first layer's input needs no gradient
    for arms in (1, 8):
        expected = loops.BATCH * (4 * teacher + 2 * arms * lesson)
        assert step.step_flops("res56_res20", arms) == pytest.approx(expected, rel=0.01)


def test_from_the_same_weights_the_fast_path_has_the_loss_of_the_plain_one(monkeypatch):
    monkeypatch.setitem(experiments.PAIRS, "res20_res8", PAIR)
    differences = report.largest_differences(agreement.losses("res20_res8", 16, 4, CPU))
    assert float(differences.set_index("path").loc["fast, from the plain weights"].iloc[0]) < 1e-4
