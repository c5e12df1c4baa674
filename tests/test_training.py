import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Literal

from r2kd import acceleration, augmentation, batch, evaluation, fidelity, files, losses, models, pruning, runs, training
from r2kd.arm import Arm, student_loss
from r2kd.config import CLEAN, DistillConfig, TeacherConfig
from r2kd.methods import Answers
from r2kd.randomness import seeded

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Stream, fill

SMALL = {"dataset": "digits", "image_size": 16, "train_images": 100, "test_images": 100, "epochs": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def images():
    return training.open_data(TeacherConfig.of("resnet8", **SMALL))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, images):
    config = TeacherConfig.of("resnet8", **SMALL, runs_root=str(tmp_path_factory.mktemp("teacher")))
    training.train_teacher(config, images, progress=False)
    return config


def student(taught_by, root, model="resnet8", **changes) -> DistillConfig:
    return DistillConfig.of(model, **({"teacher": taught_by, "runs_root": str(root)} | SMALL | changes))


def weights(run, which="last"):
    return models.read_checkpoint(run.weights(which))


def same_weights(run, other) -> bool:
    return all(
        torch.equal(value, weights(other, which)[name])
        for which in ("last", "best")
        for name, value in weights(run, which).items()
    )


def golden_step(golden, plain=False, **switches):
    """The student, the teachers and the batch of step.npz; both views are given, none is drawn."""
    step = np.load(golden / "step.npz")
    config = student(_teacher("resnet32"), ".", model="resnet20", view="cutmix", plain=plain, **switches)
    pupil = fill(models.create("resnet20", 100))
    optimizer = torch.optim.SGD(pupil.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    arm = Arm(config, runs.at(".", "golden", {}), pupil, optimizer)
    teachers = batch.Teachers(fill(models.create("resnet32", 100)).eval(), plain=plain)
    given = {config.views["clean"]: step["image"], config.views["augmented"]: step["augmented_image"]}
    views = {view: torch.tensor(images) for view, images in given.items()}
    return step, arm, teachers, lambda: batch.Batch(views, torch.tensor(step["target"]), teachers)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("mode", "switches"), [("batch", {"fidelity": "released"}), ("running", {"pruned_batchnorm": "running"})]
)
def test_three_updates_are_the_released_ones(mode, switches, plain, golden):
    step, arm, teachers, given = golden_step(golden, plain, **switches)
    first = arm.model.train()(torch.tensor(step["image"])).detach().numpy()
    np.testing.assert_allclose(first, step[f"{mode}/student_logits"], rtol=1e-4, atol=1e-3)
    fill(arm.model)  # that forward moved the running statistics
    for k in range(3):
        arm.begin_epoch()
        arm.step(given())
        _, ce, distance, _ = (arm.sums / arm.images).tolist()
        assert ce == pytest.approx(float(step[f"{mode}/loss_ce/{k}"]), rel=1e-3)
        assert distance == pytest.approx(float(step[f"{mode}/loss_kd/{k}"]), rel=1e-3)
        if k == 0:
            assert_close(arm.model.fc.weight.grad, step[f"{mode}/grad/fc.weight"])
            # one ReLU of the released float32 run, 1.7e-7 standard deviations from 0, is on the other side in float64
            assert_close(arm.model.conv1.weight.grad, step[f"{mode}/grad/conv1.weight"], tolerance=3e-3)
    assert_close(arm.model.fc.bias.detach(), step[f"{mode}/after3/fc.bias"])
    if mode == "running" and not plain:
        return  # there the pruned copy is folded, and holds other numbers
    pruned = teachers.mixed(arm.config).pruned
    for name in ("conv1.weight", "layer1.0.conv1.weight"):
        np.testing.assert_array_equal(pruned.state_dict()[name].numpy(), step[f"pruned/{name}"])
    table = pruning.sparsity_table(pruned)
    assert sum(row["weights"] - row["zeros"] for row in table) == step["pruned/nonzero"]


def test_intended_differs_from_released_in_the_switches_of_the_table_and_in_nothing_else(golden):
    picked = {"taught_by": _teacher("resnet32"), "root": ".", "view": "cutmixpick"}
    released, intended = (student(**picked, fidelity=name) for name in ("released", "intended"))
    own = [switch for switch in fidelity.SWITCHES if switch.of == "R2KD"]
    for switch in own:
        assert released[switch.key] == switch.released != switch.intended == intended[switch.key]
    each = {switch.name: switch.intended for switch in own}
    assert released == student(**picked) != intended == student(**picked, **each)
    apart = {key for key, value in intended.settings().items() if value != released.settings()[key]}
    assert apart == {switch.key.replace("pruning.", "").replace("recipe.", "") for switch in own}

    def losses_of(**switches):
        _, arm, _, given = golden_step(golden, **switches)
        arm.begin_epoch()
        arm.step(given())
        return (arm.sums / arm.images).tolist()

    as_released = losses_of()
    for name in ("rank", "value", "pruned_batchnorm"):  # the other three act before the step, or after the last
        changed = losses_of(**{name: each[name]})
        assert changed[1] == as_released[1] and abs(changed[2] / as_released[2] - 1) > 1e-3
    assert losses_of(fidelity="intended") == losses_of(rank="soft", value="pearson", pruned_batchnorm="running")


MLKD = {switch.name: switch.intended for switch in fidelity.SWITCHES if switch.of == "MLKD"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        MLKD,
        *({name: value} for name, value in MLKD.items()),
        {"standardise": True, "temperature": 2.0, "kd_weight": 9.0},
    ],
    ids=str,
)
def test_mlkd_as_an_entry_adds_up_to_the_loss_of_its_paper(settings):
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 8, 10, generator=draws, dtype=torch.float64)
    target = torch.randint(10, (8,), generator=draws)
    config = student(_teacher("resnet8"), ".", method="mlkd", view="randaugment", **settings)

    def entry(clean, teacher, strong, teacher_strong):
        answers = {"clean": Answers(clean, teacher, target), "augmented": Answers(strong, teacher_strong, target)}
        return sum(student_loss(config, answers, torch.tensor(1.0), torch.arange(8)))

    def published(clean, teacher, strong, teacher_strong):
        switches = {{"standardise": "standardised"}.get(name, name): value for name, value in settings.items()}
        return losses.mlkd_loss(clean, teacher, target, strong, teacher_strong, **switches)

    found = []
    for loss in (entry, published):
        given = logits.clone().requires_grad_()
        value = loss(*given)
        value.backward()
        found.append((value.detach(), given.grad[[0, 2]]))
    torch.testing.assert_close(*found)
    assert found[0][0] > 0.1 and found[0][1].abs().amax(dim=(1, 2)).min() > 1e-4


def test_mlkd_trains_on_both_views(images, teacher, tmp_path):
    both = [student(teacher, tmp_path, method="mlkd", view="autoaug", epochs=1, fidelity=f) for f in fidelity.PRESETS]
    released, intended = (training.distill(config, images, progress=False) for config in both)
    assert released != intended and not same_weights(released, intended)
    assert np.isfinite(released.metrics[["loss", "loss_ce", "loss_distance"]].to_numpy()).all()


def test_the_augmented_view_is_drawn_as_the_switches_say(images, teacher, monkeypatch):
    asked = []

    def cutmixpick(images, *, draws: Literal["batch", "sample"] = "batch", pick: Literal["before", "after"] = "before"):
        asked.append((draws, pick))
        return images

    entry = augmentation.AUGMENTATIONS.make(cutmixpick)
    monkeypatch.setitem(augmentation.AUGMENTATIONS._entries, "cutmixpick", entry)
    for name in fidelity.PRESETS:
        config = student(teacher, teacher["runs_root"], view="cutmixpick", fidelity=name, epochs=1, seed=77)
        training.distill(config, images, progress=False)
    assert set(asked) == {("batch", "before"), ("sample", "after")}


def test_what_a_run_reports_is_its_best_epoch_as_released_or_its_last(images, teacher, tmp_path):
    config = student(teacher, tmp_path)
    run = training.distill(config, images, progress=False)
    intended = config.with_settings({"reported": "last"})
    assert intended.run(images) == run
    assert training.reported_top1(config, run) == run.metrics["test_top1"].max()
    assert training.reported_top1(intended, run) == run.metrics["test_top1"].iloc[-1]


def rank_alone(**switches):
    """How a student's Spearman correlation with its teacher moves in 30 updates on the rank term alone."""
    config = DistillConfig.of("resnet8", teacher=TeacherConfig.of("resnet8"), ce_weight=0, value_weight=0, **switches)
    pupil = torch.nn.Parameter(torch.randn(64, 100, generator=torch.Generator().manual_seed(0)))
    taught = torch.randn(64, 100, generator=torch.Generator().manual_seed(1))
    target = torch.zeros(64, dtype=torch.long)
    optimizer = torch.optim.SGD([pupil], lr=50.0)
    moved = []
    for _ in range(30):
        moved.append(1 - float(losses.rank_loss(pupil, taught)))
        answers = {"clean": Answers(pupil, taught, target)}
        _, distance = student_loss(config, answers, torch.tensor(1.0), torch.arange(64))
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
    return moved, float(pupil.grad.abs().max())


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (
            lambda student, teacher: (student - teacher).square().mean(1),
            r"returns a tensor of shape \(8,\), not a scalar",
        ),
        (lambda student, teacher: None, "returns None, not a scalar"),
        (lambda student, teacher: 0.5, "returns 0.5, not a scalar"),
    ],
)
def test_a_method_that_returns_no_scalar_is_refused(loss, said):
    config = DistillConfig.of(
        "resnet8", teacher=TeacherConfig.of("resnet20", dataset="digits"), method=loss, dataset="digits"
    )
    answers = {"clean": Answers(torch.zeros(8, 10), torch.ones(8, 10), torch.zeros(8, dtype=torch.long))}
    with pytest.raises(ValueError, match=said):
        student_loss(config, answers, torch.tensor(1.0), torch.arange(8))


def test_as_released_the_rank_term_has_no_gradient_and_as_intended_it_teaches():
    released, gradient = rank_alone(fidelity="released")
    assert gradient == 0 and released[-1] == released[0]
    intended, gradient = rank_alone(fidelity="intended")
    assert gradient > 0 and intended[-1] > intended[0] + 0.1


def test_as_released_the_weight_of_the_rank_term_changes_no_student(teacher, images, tmp_path):
    with_rank = training.distill(student(teacher, tmp_path), images, progress=False)
    without = training.distill(student(teacher, tmp_path, rank_weight=0.0), images, progress=False)
    assert with_rank.folder != without.folder and same_weights(with_rank, without)
    assert with_rank.metrics["loss_distance"].iloc[-1] > without.metrics["loss_distance"].iloc[-1]


def test_a_student_trained_by_the_rank_term_alone_comes_to_rank_as_its_teacher_does(teacher, images, tmp_path):
    pupils = {}
    for name in fidelity.PRESETS:
        alone = {"fidelity": name, "ce_weight": 0.0, "value_weight": 0.0, "pruning_rate": 0.0, "weight_decay": 0.0}
        run = training.distill(student(teacher, tmp_path, **alone, epochs=8, learning_rate=0.2), images, progress=False)
        pupils[name] = training.load_model(teacher, run, images.num_classes)
    with seeded(0, "weights", "resnet8"):
        pupils["untrained"] = models.create("resnet8", images.num_classes)
    taught = evaluation.predict(
        training.load_model(teacher, training.train_teacher(teacher, images), 10), images.train, images
    )
    agreement = {
        name: 1 - float(losses.rank_loss(evaluation.predict(pupil.train(), images.train, images), taught))
        for name, pupil in pupils.items()
    }
    assert agreement["released"] == agreement["untrained"]
    assert agreement["intended"] > agreement["untrained"] + 0.1


def assert_close(values: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-3) -> None:
    assert np.linalg.norm(values.numpy() - expected) <= tolerance * np.linalg.norm(expected)


def _teacher(model: str) -> TeacherConfig:
    return TeacherConfig.of(model, **SMALL)


def test_a_run_keeps_its_configuration_environment_table_and_weights(teacher, images):
    run = training.train_teacher(teacher, images, progress=False)
    assert run.finished and not (run.folder / "state.pt").exists()
    assert run.config["model"] == "resnet8" and run.config["milestones"] == [1, 2, 2]
    (start,) = json.loads((run.folder / "environment.json").read_text())
    assert {"torch", "python", "platform", "commit", "threads"} <= start.keys() and start["epochs"] == 0
    assert list(run.metrics["epoch"]) == [1, 2] and list(pd.read_csv(run.folder / "timing.csv")["epoch"]) == [1, 2]
    assert run.result["last_top1"] == run.metrics["test_top1"].iloc[-1]
    assert run.result["best_top1"] == run.metrics["test_top1"].max()
    best = run.metrics.set_index("epoch")["test_top1"]
    assert best[run.result["best_epoch"]] == best.max()


@pytest.fixture
def labels_seen(monkeypatch):
    """How often each class was a label, (10,), by the folder of the run, over all its epochs."""
    seen, step = {}, Arm.step

    def counting(arm, given):
        counts = torch.bincount(given.target, minlength=10)
        seen[arm.run.folder] = seen.get(arm.run.folder, 0) + counts
        step(arm, given)

    monkeypatch.setattr(Arm, "step", counting)
    return seen


def test_a_student_of_noisy_labels_learns_from_them_and_is_tested_on_clean_ones(images, tmp_path, labels_seen):
    more = {"epochs": 15, "batch_size": 20, "runs_root": str(tmp_path)}
    clean, noisy = (TeacherConfig.of("resnet8", **SMALL | more, label_noise=rate) for rate in (0, 0.4))
    held = training.open_data(noisy)
    runs_of = [training.train_teacher(clean, images, progress=False), training.train_teacher(noisy, held, False)]
    for run, given in zip(runs_of, (images, held), strict=True):
        assert torch.equal(labels_seen[run.folder], 15 * torch.bincount(given.train.labels, minlength=10))
    assert not torch.equal(held.train.labels, images.train.labels)
    assert torch.equal(held.test.labels, images.test.labels)
    first, other = (run.metrics for run in runs_of)
    assert other["loss"].iloc[-1] > first["loss"].iloc[-1] + 0.5
    assert other["train_top1"].iloc[-1] < first["train_top1"].iloc[-1] - 20
    tested = training.load_model(noisy, runs_of[1], 10).eval()
    with torch.inference_mode():
        hits = tested(images.normalize(images.test.images)).argmax(1) == images.test.labels
    assert 100 * float(hits.float().mean()) == pytest.approx(runs_of[1].result["last_top1"])


def test_a_teacher_of_clean_labels_teaches_students_of_noisy_ones(teacher, images, tmp_path, labels_seen):
    untrained = teacher.with_settings({"runs_root": str(tmp_path)})
    noisy = [student(untrained, tmp_path, method=name, label_noise=0.4) for name in ("ce", "kd")]
    held = training.open_data(noisy[0])
    trained = training.distill_all(noisy, held, progress=False)
    taught = untrained.run(images)
    assert taught.finished and same_weights(taught, teacher.run(images))
    for run, given in [(taught, images), *((run, held) for run in trained)]:
        assert torch.equal(labels_seen[run.folder], 2 * torch.bincount(given.train.labels, minlength=10))


def test_images_with_other_label_noise_than_the_configurations_are_refused(images, tmp_path):
    clean, fifth, two_fifths = (
        TeacherConfig.of("resnet8", **SMALL, runs_root=str(tmp_path), label_noise=rate) for rate in (0, 0.2, 0.4)
    )
    held = training.open_data(fifth)
    for config, given, said in (
        (fifth, images, "label_noise 0.0, not 0.2"),
        (clean, held, "label_noise 0.2, not 0"),
        (two_fifths, held, "label_noise 0.2, not 0.4"),
    ):
        with pytest.raises(ValueError, match=f"the images given are not those of the configuration: {said}$"):
            training.train_teacher(config, given, progress=False)
    assert not list(tmp_path.iterdir())


def test_students_of_other_label_noise_do_not_train_together(teacher, tmp_path):
    fifth, two_fifths = (student(teacher, tmp_path, label_noise=rate) for rate in (0.2, 0.4))
    with pytest.raises(ValueError, match="agree in data"):
        training.distill_all([fifth, two_fifths], progress=False)


def test_the_learning_rate_falls_at_the_released_milestones():
    assert TeacherConfig.of("resnet8").milestones == (150, 180, 210)
    assert TeacherConfig.of("resnet8", epochs=16).milestones == (10, 12, 14)
    assert TeacherConfig.of("resnet8", milestones=(3,)).milestones == (3,)


def test_a_finished_run_is_returned_at_once(teacher, images, monkeypatch):
    monkeypatch.setattr(training, "run_epochs", lambda *_: pytest.fail("trained again"))
    assert training.train_teacher(teacher, images, progress=False).finished


def test_equal_seeds_give_equal_tables_and_weights_another_seed_others(teacher, images, tmp_path):
    first, again, other = (
        training.distill(student(teacher, tmp_path / name, seed=seed, view="cutmix"), images, progress=False)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert (first.folder / "metrics.csv").read_bytes() == (again.folder / "metrics.csv").read_bytes()
    assert same_weights(first, again)
    assert not first.metrics.equals(other.metrics) and not same_weights(first, other)


def test_the_global_generator_neither_matters_nor_moves(teacher, images, tmp_path):
    torch.manual_seed(1)
    first = training.distill(student(teacher, tmp_path / "a", view="autoaug"), images, progress=False)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    again = training.distill(student(teacher, tmp_path / "b", view="autoaug"), images, progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    assert same_weights(first, again)


def test_a_student_trained_beside_others_is_the_one_trained_alone(teacher, images, tmp_path):
    changes = [
        {"method": "ce", "teacher": None},
        {"method": "kd", "pruning_rate": 0.0, "view": "mixup"},
        {"view": "cutmixpick"},
        {"view": "cutout", "pruning_rate": 0.0},
        {"pruned_batchnorm": "running", "view": "cutmixpick"},
        {"fidelity": "intended", "view": "cutmix"},
        {"temperature": 2.0, "view": "autoaug"},
        {"pruning_rate": 0.3},
    ]
    assert len(changes) == 8
    together = training.distill_all([student(teacher, tmp_path / "all", **c) for c in changes], images, progress=False)
    for change, run in zip(changes, together, strict=True):
        alone = training.distill(student(teacher, tmp_path / "alone", **change), images, progress=False)
        assert alone.folder.name == run.folder.name
        assert same_weights(alone, run)
        assert (alone.folder / "metrics.csv").read_bytes() == (run.folder / "metrics.csv").read_bytes()


def test_a_student_is_the_same_on_any_number_of_cores(teacher, images, tmp_path):
    changes = ({"method": "ce", "view": "none"}, {"view": "cutmixpick"}, {"view": "autoaug", "fidelity": "intended"})
    before, found = torch.get_num_threads(), []
    try:
        for cores in (1, 2, 3):
            torch.set_num_threads(cores)
            configs = [student(teacher, tmp_path / str(cores), **change) for change in changes]
            found.append(training.distill_all(configs, images, progress=False))
            assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*found, strict=True):
        assert one.row["threads"] == 1 and all(same_weights(one, other) for other in others)
        assert all((one.folder / "metrics.csv").read_bytes() == (o.folder / "metrics.csv").read_bytes() for o in others)


def test_a_teacher_trains_with_all_threads_or_as_many_as_asked_for(images, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for asked, used in ((None, 2), (1, 1), (9, 2)):
            config = TeacherConfig.of("resnet8", **SMALL, runs_root=str(tmp_path / str(asked)), threads=asked)
            assert training.train_teacher(config, images, progress=False).row["threads"] == used
    finally:
        torch.set_num_threads(before)


def dropping(num_classes):
    body = [torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.BatchNorm1d(48), torch.nn.Dropout(0.3)]
    return torch.nn.Sequential(*body, torch.nn.Linear(48, num_classes))


def test_dropout_draws_from_its_runs_seed_beside_others_and_after_a_stop(teacher, images, tmp_path):
    changes = [{"model": dropping, "view": view} for view in ("none", "cutmix", "cutout")]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = [student(teacher, tmp_path / "all", **change) for change in changes]
        together = training.distill_all(together, images, progress=False)
    finally:
        torch.set_num_threads(before)
    for change, run in zip(changes, together, strict=True):
        torch.rand(1)  # whatever else has drawn
        config = student(teacher, tmp_path / "alone", **change)

        def stop():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            training.distill(config, images, progress=False, after_epoch=stop)
        assert same_weights(training.distill(config, images, progress=False), run)


def test_students_of_other_seeds_or_teachers_do_not_train_together(teacher, images, tmp_path):
    mine = student(teacher, tmp_path)
    with pytest.raises(ValueError, match="agree in seed"):
        training.distill_all([mine, dataclasses.replace(mine, seed=5)], images, progress=False)
    other = student(dataclasses.replace(teacher, seed=9), tmp_path, view="mixup")
    with pytest.raises(ValueError, match="one teacher"):
        training.distill_all([mine, other], images, progress=False)


def test_the_address_follows_from_what_the_numbers_depend_on(teacher, images, tmp_path):
    mine = student(teacher, tmp_path)
    address = mine.run(images).address
    assert mine.with_settings({"device": "auto", "data_root": "elsewhere"}).run(images).address == address
    moved = dataclasses.replace(mine, teacher=teacher.with_settings({"runs_root": "elsewhere"}))
    assert moved.run(images).address == address
    for change in ({"seed": 3}, {"teacher": dataclasses.replace(teacher, seed=1)}):
        assert dataclasses.replace(mine, **change).run(images).address != address
    for change in ({"temperature": 2.0}, {"epochs": 9}):
        assert mine.with_settings(change).run(images).address != address
    other_images = dataclasses.replace(images, fingerprint="other files")
    assert mine.run(other_images).address != address


def test_a_teacher_can_come_from_a_checkpoint(teacher, images, tmp_path):
    trained = training.train_teacher(teacher, images, progress=False)
    given = TeacherConfig.of("resnet8", checkpoint=str(trained.weights("last")), **SMALL, runs_root=str(tmp_path))
    named = student(given, tmp_path / "named")
    assert same_weights(
        training.distill(named, images, progress=False),
        training.distill(student(teacher, tmp_path / "trained"), images, progress=False),
    )
    kept = training.train_teacher(given, images)
    assert kept.result["last_top1"] == trained.result["last_top1"] and kept.weights().exists()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        training.distill(student(dataclasses.replace(given, checkpoint="nowhere"), tmp_path), images, progress=False)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_before(images, tmp_path):
    config = TeacherConfig.of("resnet8", **SMALL, learning_rate=1e30, runs_root=str(tmp_path))
    with pytest.raises(FloatingPointError, match="smaller learning rate than 1e"):
        training.train_teacher(config, images, progress=False)
    run = config.run(images)
    assert not run.finished and not (run.folder / "state.pt").exists()


def test_a_student_that_diverges_does_not_take_the_others_down(teacher, images, tmp_path):
    good, bad = student(teacher, tmp_path), student(teacher, tmp_path, learning_rate=1e30, view="cutout")
    with pytest.raises(FloatingPointError, match="r2kd-cutout"):
        training.distill_all([bad, good], images, progress=False)
    assert good.run(images).finished
    alone = training.distill(student(teacher, tmp_path / "alone"), images, progress=False)
    assert same_weights(good.run(images), alone)


def test_a_student_whose_own_loss_fails_does_not_take_the_others_down(teacher, images, tmp_path, monkeypatch):
    good, bad = student(teacher, tmp_path), student(teacher, tmp_path, method="kd")

    def broken(*_):
        raise RuntimeError("a loss of my own, and its mistake")

    monkeypatch.setattr(losses, "kd_loss", broken)
    with pytest.raises(RuntimeError, match="and its mistake"):
        training.distill_all([bad, good], images, progress=False)
    assert not bad.run(images).finished
    alone = training.distill(student(teacher, tmp_path / "alone"), images, progress=False)
    assert same_weights(good.run(images), alone)
    with pytest.raises(RuntimeError, match="mistake"):
        training.distill(bad, images, progress=False)


def test_what_an_arm_held_that_failed_is_let_go_of(teacher, images, tmp_path, monkeypatch):
    """On a GPU the next arm would run out of memory, too."""
    held = []

    def out_of_memory(student, *_):
        activation = 2 * student
        held.append(weakref.ref(activation))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(losses, "kd_loss", out_of_memory)
    step = Arm.step

    def looked_at(arm, given):
        assert all(activation() is None for activation in held)
        step(arm, given)

    monkeypatch.setattr(Arm, "step", looked_at)
    bad, good = student(teacher, tmp_path, method="kd"), student(teacher, tmp_path)
    with pytest.raises(torch.OutOfMemoryError):
        training.distill_all([bad, good], images, progress=False)
    assert len(held) == 1 and good.run(images).finished


@pytest.mark.parametrize("ends", ["as it should", "in a failure", "by Ctrl-C"])
def test_nothing_of_a_training_is_left_when_it_ends_and_its_graphs_go_together(
    ends, teacher, images, tmp_path, monkeypatch
):
    alive, released = [], []
    new, release, step = Arm.new, acceleration.Lane.release, Arm.step

    def remembered(*given):
        arm = new(*given)
        alive.append(weakref.ref(arm))
        return arm

    def failing(arm, given):
        if ends != "as it should" and arm.config.method.name == "kd":
            raise KeyboardInterrupt if ends == "by Ctrl-C" else RuntimeError("a failure")
        step(arm, given)

    monkeypatch.setattr(Arm, "new", remembered)
    monkeypatch.setattr(Arm, "step", failing)
    monkeypatch.setattr(acceleration.Lane, "release", lambda lane: released.append(lane) or release(lane))
    configs = [student(teacher, tmp_path, method=name, streams=2) for name in ("r2kd", "kd", "ce")]
    gc.collect()
    gc.disable()  # nothing may wait for the collector of cycles
    try:
        with suppress(RuntimeError, KeyboardInterrupt):
            training.distill_all(configs, images, progress=False)
        assert len(alive) == 3 and not any(arm() for arm in alive)
    finally:
        gc.enable()
    assert len(set(released)) == 3  # two lanes for the students, one for their teachers


def test_an_interrupt_is_two_lines_in_a_notebook_and_says_where_it_was(teacher, images, tmp_path, monkeypatch):
    step = Arm.step

    def stopped(arm, given):
        if arm.epoch == 1 and arm.config.method.name == "kd":
            raise KeyboardInterrupt
        step(arm, given)

    configs = [student(teacher, tmp_path, method=name, epochs=3) for name in ("r2kd", "kd")]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt) as stop:
        patched.setattr(Arm, "step", stopped)
        training.distill_all(configs, images, progress=False)
    said = stop.value._render_traceback_()
    assert said[0] == "interrupted in epoch 2 of 3 (2 students, seed 0); all that was finished is kept"
    assert said[1:] == ["run the cell again to go on"]
    run, _ = training.distill_all(configs, images, progress=False)
    assert run.metrics["epoch"].tolist() == [1, 2, 3] and len(run.starts) == 2


def test_through_lanes_and_graphs_as_on_a_gpu_the_students_are_the_same(teacher, images, tmp_path, monkeypatch):
    """A graph reads the tensors that it was captured with, and writes over what it returned."""
    replays = []

    def capture(replayed, function, inputs):
        held = [tensor.clone() for tensor in inputs]

        def replay():
            replays.append(function)
            again = function(*held)
            if output is not None:
                output.copy_(again)

        output = torch.empty(len(inputs[0]), 10) if isinstance(function, torch.nn.Module) else None
        return SimpleNamespace(replay=replay), held, output

    def trained(root):
        configs = [
            # with all threads for a student, as here, or on a GPU, steps are asked for one after the other
            student(teacher, root, method=method, view=view, streams=2, threads=torch.get_num_threads())
            for method, view in (("r2kd", "cutmixpick"), ("kd", "mixup"), ("ce", "none"))
        ]
        return training.distill_all(configs, images, progress=False)

    usual = trained(tmp_path / "usual")
    lane = acceleration.Lane.__init__
    monkeypatch.setattr(acceleration.Replayed, "_capture", capture)
    monkeypatch.setattr(
        acceleration.Lane, "__init__", lambda self, *of: lane(self, *of) or vars(self).update(stream=Stream())
    )
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(acceleration, "WARM_UP", 1)
    as_on_a_gpu = trained(tmp_path / "graphs")
    assert len(replays) > 10 and len(set(replays)) == 5  # three students, the dense teacher and its pruned copy
    assert all(same_weights(one, other) for one, other in zip(usual, as_on_a_gpu, strict=True))


def test_all_students_are_tested_in_one_pass_over_the_images(teacher, images, tmp_path, monkeypatch):
    passes = []
    normalized = evaluation.normalized
    monkeypatch.setattr(evaluation, "normalized", lambda *given: passes.append(given[0]) or normalized(*given))
    configs = [student(teacher, tmp_path, method=name) for name in ("r2kd", "kd", "ce")]
    training.distill_all(configs, images, progress=False)
    assert len(passes) == SMALL["epochs"]


def test_a_state_that_is_loaded_leaves_the_optimizer_as_this_device_has_it(teacher, images, tmp_path):
    config = student(teacher, tmp_path)
    run = config.run(images)
    cut = Arm.new(config, run, images, torch.device("cpu"))
    cut.optimizer.param_groups[0] |= {"fused": True, "foreach": None, "lr": 7.0}
    training._prepared(config, run, images)
    run.save_epoch(
        {"epoch": 1, "model": cut.model.state_dict(), "optimizer": cut.optimizer.state_dict()}
        | {"best": {}, "best_row": {}, "metrics": [{"epoch": 1}], "timing": [{"epoch": 1}]}
    )
    arm = Arm.new(config, run, images, torch.device("cpu"))
    own = {name: value for name, value in arm.optimizer.param_groups[0].items() if name != "params"}
    arm.resume()
    assert arm.epoch == 1
    assert {name: value for name, value in arm.optimizer.param_groups[0].items() if name != "params"} == own


def test_a_run_half_done_in_one_precision_is_begun_anew_in_the_other_and_that_is_said(
    teacher, images, tmp_path, monkeypatch, capsys
):
    half = student(teacher, tmp_path, precision="bfloat16")
    begin = Arm.begin_epoch

    def cut(arm):
        if arm.epoch == 1:
            raise KeyboardInterrupt
        begin(arm)

    monkeypatch.setattr(Arm, "begin_epoch", cut)
    with pytest.raises(KeyboardInterrupt):
        training.distill(half, images, progress=False)
    monkeypatch.undo()
    capsys.readouterr()
    full = training.distill(student(teacher, tmp_path), images, progress=False)
    assert capsys.readouterr().err == (
        f"the precision is float32, not bfloat16 as in {half.run(images).address}: trained anew\n"
    )
    assert full.config["precision"] == full.row["precision"] == "float32"
    done = training.distill(half, images, progress=False)
    assert done.config["precision"] == "bfloat16"
    assert done.row["precision"] == acceleration.carried_out(torch.device("cpu"), "bfloat16")
    assert done.config["acts"]["machine"] == {"precision": "bfloat16"} and full.config["acts"]["machine"] == {}
    assert list(done.metrics["epoch"]) == [1, 2] and not same_weights(done, full)


def test_bfloat16_on_a_cpu_without_it_is_said_to_be_no_faster_and_runs(teacher, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(acceleration, "native_bfloat16", lambda device: False)
    acceleration.say_if_slow.cache_clear()
    run = training.distill(student(teacher, tmp_path, precision="bfloat16"), images, progress=False)
    assert run.finished and run.row["precision"] == "bfloat16 in float32"
    training.distill(student(teacher, tmp_path, precision="bfloat16", seed=1), images, progress=False)  # said once
    assert capsys.readouterr().err == (
        "this processor has no instructions for bfloat16: rounded to it in float32, and no faster\n"
    )


@pytest.mark.parametrize("switches", [{"pruned_batchnorm": "running"}, {"fidelity": "released"}])
def test_the_fast_path_computes_the_losses_of_the_plain_one_over_fifty_steps(switches, images):
    """From the same weights at each step of the recipe; and left to itself, at a learning rate that is kind to rounding."""
    arms, teachers = {}, {}
    kinds = {"plain": True, "fast": False, "slow plain": True, "slow fast": False}
    for name, plain in kinds.items():
        slow = {"learning_rate": 0.0001} if "slow" in name else {}
        config = student(_teacher("resnet14"), ".", model="resnet8", view="cutmix", plain=plain, **switches, **slow)
        arms[name] = Arm.new(config, runs.Run(runs.Path(".")), images, torch.device("cpu"))
        teachers[name] = batch.Teachers(fill(models.create("resnet14", 10)).eval(), plain=plain)

    def batches_of(name):
        epochs = (
            batch.epoch_batches(
                images,
                set(arms[name].config.views.values()),
                teachers[name],
                seed=0,
                epoch=i,
                batch_size=20,
                plain=kinds[name],
            )
            for i in range(10)
        )
        return (given for epoch in epochs for given in epoch)

    for given in zip(*map(batches_of, kinds), strict=True):
        arms["fast"].model.load_state_dict(arms["plain"].model.state_dict())
        lost = {}
        for name, one in zip(kinds, given, strict=True):
            arms[name].begin_epoch()
            arms[name].step(one)
            lost[name] = (arms[name].sums / arms[name].images).tolist()
        assert lost["fast"] == pytest.approx(lost["plain"], rel=1e-4)
        assert lost["slow fast"][0] == pytest.approx(lost["slow plain"][0], rel=1e-3)


@pytest.mark.parametrize("switches", [{"fidelity": "released"}, {"fidelity": "intended"}])
def test_in_bfloat16_the_losses_are_float32_and_nearly_the_same(switches, images):
    lost = {}
    for precision in ("float32", "bfloat16"):
        given = {"view": "cutmixpick", "learning_rate": 0.001, "precision": precision}
        config = student(_teacher("resnet14"), ".", **given, **switches)
        arm = Arm.new(config, runs.Run(runs.Path(".")), images, torch.device("cpu"))
        arm.begin_epoch()
        teachers = batch.Teachers(fill(models.create("resnet14", 10)).eval(), precision)
        views = set(config.views.values())
        for given in batch.epoch_batches(images, views, teachers, seed=0, epoch=0, batch_size=20):
            assert given.teacher_logits(CLEAN, config).dtype == torch.float32
            arm.step(given)
        assert {parameter.dtype for parameter in arm.model.parameters()} == {torch.float32}
        lost[precision] = (arm.sums / arm.images).tolist()[:3]
    assert lost["bfloat16"] == pytest.approx(lost["float32"], rel=0.05)
    assert lost["bfloat16"] != lost["float32"]


def test_a_plain_run_is_another_run_and_changes_what_it_says_it_does(teacher, images, tmp_path):
    fast, plain = (student(teacher, tmp_path, plain=plain) for plain in (False, True))
    assert fast.run(images) != plain.run(images)
    folded = {
        name: batch.Teachers(models.create("resnet8", 10), plain=name == "plain").dense for name in ("fast", "plain")
    }
    assert {name: hasattr(dense, "bn1") for name, dense in folded.items()} == {"fast": False, "plain": True}
    arms = [Arm.new(c, c.run(images), images, torch.device("cpu")) for c in (fast, plain)]
    layouts = [arm.model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last) for arm in arms]
    assert layouts == [True, False]
    assert training.distill(plain, images, progress=False).config["plain"] is True


TRAIN = """
import sys, torch
from r2kd import training
from r2kd.config import DistillConfig, TeacherConfig
torch.set_num_threads(2)
common = dict(dataset="digits", image_size=16, train_images=300, test_images=100, epochs=8, runs_root=sys.argv[1])
teacher = TeacherConfig.of("resnet8", **common | {"epochs": 1})
print(training.distill(DistillConfig.of("resnet8", teacher=teacher, view="cutmix", **common)).folder)
"""


def test_a_training_killed_within_an_epoch_ends_as_one_never_stopped(tmp_path):
    def start(name):
        return subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(tmp_path / name)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    whole = start("whole")
    folder = whole.communicate(timeout=120)[0].decode().strip()
    cut = start("cut")
    deadline = time.monotonic() + 120
    state = tmp_path / "cut" / os.path.basename(folder) / "metrics.csv"
    while not state.exists() or len(state.read_text().splitlines()) < 4:  # three whole epochs, then some of the fourth
        assert cut.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.05)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    assert not (state.parent / "result.json").exists()
    resumed = start("cut")
    assert resumed.communicate(timeout=120)[0].decode().strip() == str(state.parent)
    uninterrupted = runs.Run(tmp_path / "whole" / os.path.basename(folder))
    assert (uninterrupted.folder / "metrics.csv").read_bytes() == state.read_bytes()
    for which in ("last", "best"):
        assert uninterrupted.weights(which).read_bytes() == runs.Run(state.parent).weights(which).read_bytes()


def test_an_arm_cut_off_earlier_than_the_others_catches_up(teacher, images, tmp_path, monkeypatch):
    configs = [student(teacher, tmp_path / "both", view=name) for name in ("mixup", "cutout")]
    saved = runs.Run.save_epoch

    def interrupted(run, state):
        if state["epoch"] == 2 and "cutout" in run.folder.name:
            raise KeyboardInterrupt
        saved(run, state)

    monkeypatch.setattr(runs.Run, "save_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.distill_all(configs, images, progress=False)
    monkeypatch.undo()
    for config, run in zip(configs, training.distill_all(configs, images, progress=False), strict=True):
        alone = config.with_settings({"runs_root": str(tmp_path / "alone")})
        assert same_weights(run, training.distill(alone, images, progress=False))


def test_a_full_disk_is_said_and_loses_nothing(images, tmp_path, monkeypatch):
    config = TeacherConfig.of("resnet8", **SMALL, runs_root=str(tmp_path))
    written = files.Path.write_bytes

    def full(path, content):
        if "state.pt" in path.name and full.calls == 1:
            written(path, content[:100])
            raise OSError(28, "No space left on device")
        full.calls += "state.pt" in path.name
        return written(path, content)

    full.calls = 0
    monkeypatch.setattr(files.Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device; what was written before is kept.*state\.pt"):
        training.train_teacher(config, images, progress=False)
    run = config.run(images)
    assert run.load_epoch()["epoch"] == 1 and not list(run.folder.glob(".*"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": "resnet9"}, "unknown model"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"learning_rate": float("nan")}, "learning_rate of recipe is a finite number, not nan"),
        ({"method": "dream"}, "unknown method"),
        ({"view": "rotate"}, "unknown view"),
        ({"pruning_rate": 1.0}, "pruning_rate is a share"),
        ({"pruned_batchnorm": "off"}, "pruned_batchnorm is batch or running, not 'off'"),
        ({"fidelity": "hearsay"}, "unknown fidelity .hearsay.; known: released, intended"),
        ({"rank": "firm"}, "rank is hard or soft, not .firm."),
        ({"method": "ce", "view": "mixup"}, "asks for neither teacher nor labels"),
        ({"method": "dkd", "view": "mixup"}, "'dkd' asks for labels, and view 'mixup' keeps none"),
        ({"teacher": None}, "needs a teacher"),
        ({"train_images": -5}, "train_images must be above 0, not -5"),
        ({"image_size": 0}, "image_size must be at least 8, not 0"),
        ({"seeed": 3}, "unknown setting 'seeed'; known: dataset, image_size"),
        ({"teacher.epoch": 3}, "unknown setting 'teacher.epoch'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        student(_teacher("resnet8"), ".", **wrong)


def test_a_device_that_is_not_here_is_named():
    with pytest.raises(ValueError, match="'cuda:99' is not to be had here"):
        training.resolve_device("cuda:99")


def test_test_images_are_looked_at_in_the_last_epochs_alone_and_the_best_is_one_of_them(images, teacher, tmp_path):
    for kept in (0, 32):
        asked = {"epochs": 5, "tested_from": 0.5, "train_images": 64, "validation_images": kept}
        shown = images.subset(64, None, kept)
        late = training.distill(student(teacher, tmp_path, **asked), shown, progress=False)
        always = training.distill(student(teacher, tmp_path, **asked | {"tested_from": 0.0}), shown, progress=False)
        seen = late.metrics["test_top1"]
        assert seen.isna().tolist() == [True, True, False, False, False] and late.address != always.address
        assert seen[2:].tolist() == always.metrics["test_top1"][2:].tolist()
        assert late.result["last_top1"] == always.result["last_top1"]
        assert late.result["best_top1"] == seen.max() and late.result["best_epoch"] >= 3
        if kept:
            assert late.metrics["validation_top1"].tolist() == always.metrics["validation_top1"].tolist()
            assert late.result["validation_top1"] == always.result["validation_top1"]
