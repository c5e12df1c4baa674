"""Explorers of students, as functions of their controls' values."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

from r2kd import experiments, student_explorers

import pytest
from matplotlib.figure import Figure


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("explored")
    whole = experiments.study("smoke", runs_root=str(root / "runs"), figures_root=str(root / "figures"), device="cpu")
    tests = whole.tests.with_options(corruptions="none", attacks="none")
    return replace(whole, arms={arm: whole.arms[arm] for arm in ("cross-entropy", "KD")}, tests=tests)


@pytest.fixture(scope="module")
def images(study):
    return study.open_data()


@pytest.fixture(scope="module")
def students(study, images):
    return experiments.run_students(study, images)


def last_top1(students, arm, seed):
    (found,) = (s for s in students if s.arm == arm and s.config.seed == seed)
    return found.run.result["last_top1"]


def test_two_arms_are_compared_seed_by_seed(students):
    explorer = student_explorers.compare(students)
    figure = explorer(arm="KD", other="cross-entropy")
    differences = [last_top1(students, "KD", seed) - last_top1(students, "cross-entropy", seed) for seed in (0, 1)]
    assert figure.axes[1].lines[1].get_ydata() == pytest.approx(differences, abs=1e-4)
    assert figure.axes[1].get_title().startswith(f"{sum(differences) / 2:+.2f}")
    assert explorer.png().startswith(b"\x89PNG")
    for metric in explorer.controls["metric"].options:
        assert isinstance(explorer(metric=metric, smoothing=3), Figure)


def test_the_images_that_only_one_gets_right_are_counted_as_its_lead(study, images, students):
    explorer = student_explorers.errors(study, images, students)
    lead = {}
    for which in student_explorers.ALONE[:2]:
        said = explorer(student="KD, seed 0", other="cross-entropy, seed 0", images_of=which, image=3).subfigs[1]
        lead[which] = int(said._suptitle.get_text().split(": ")[1].split(" of ")[0].replace(",", ""))
    first, second = lead.values()
    difference = last_top1(students, "KD", 0) - last_top1(students, "cross-entropy", 0)
    assert first - second == pytest.approx(difference / 100 * len(images.test), abs=1e-3)
    assert isinstance(explorer(student="KD, seed 0", other="KD, seed 0", images_of=student_explorers.ALONE[0]), Figure)


def test_without_weights_there_is_nobody_to_ask(study, images, students):
    assert "nobody to ask" in student_explorers.errors(study, images, students[:1])


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_student_is_trained_while_one_looks_on_stopped_and_goes_on(study, students):
    explorer = student_explorers.live(study, students, epochs=40)
    pictures = []
    explorer._picture = SimpleNamespace(update=pictures.append)  # what a cell that shows it has
    button = explorer.controls["train_it"]

    def epochs():
        until(lambda: not [thread for thread in threading.enumerate() if "train" in thread.name])
        title = explorer().axes[0].get_title()
        return 0 if title.endswith(": not trained yet") else int(title.split("epoch ")[1].split()[0])

    assert epochs() == 0 and {line.get_label() for line in explorer().axes[0].lines} == {"cross-entropy", "KD"}
    for seen in (3, 6):
        button.value = True
        explorer.refresh()
        until(lambda seen=seen: len(pictures) >= seen)
        button.value = False
        assert 1 <= epochs() < 40 and not explorer.said.value
        assert len(pictures) - 2 <= epochs() <= len(pictures)  # it goes on where it was
