"""The loop over epochs and batches: the arms that train together meet the same batches, views and teacher logits."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from . import acceleration, evaluation
from .acceleration import SideBySide
from .arm import Arm
from .batch import Batch, Teachers, epoch_batches
from .data import ImageData
from .progress import tqdm


def run_epochs(
    arms: list[Arm],
    images: ImageData,
    teachers: Teachers | None,
    progress: bool,
    side_by_side: SideBySide,
    after_epoch: Callable[[], None] | None = None,
) -> None:
    """All epochs that some arm still has to go; an arm that was cut off later joins at its own.

    What goes wrong with one arm is kept in its `failure`, and the others go on.
    """
    config = arms[0].config
    recipe = {"seed": config.seed, "batch_size": config.recipe.batch_size, "plain": config.machine.plain}
    for arm in arms:
        if arm.finished:  # cut off between its last epoch and its result
            arm.finish()
    epochs = range(min(arm.epoch for arm in arms), config.recipe.epochs)
    bar = {"total": len(epochs) * len(images.train), "desc": _title(arms), "disable": not progress}
    with tqdm(**bar, unit="img", unit_scale=True, leave=False) as shown:
        for epoch in epochs:
            active = [arm for arm in arms if arm.epoch == epoch and not arm.failure]
            for arm in active:
                arm.begin_epoch()
            views = {view for arm in active for view in arm.config.views.values()}
            started = told = time.perf_counter()
            for batch in epoch_batches(images, views, teachers, epoch=epoch, **recipe):
                step(batch, active, side_by_side)
                active = [arm for arm in active if not arm.failure]
                if not active:
                    break
                shown.update(len(batch.target))
                if progress and time.perf_counter() - told > 0.5:  # reading a sum waits for the device
                    told = time.perf_counter()
                    active[0].lane.join()
                    loss, _, _, hits = (active[0].sums / active[0].images).tolist()
                    whose = "" if len(arms) == 1 else f" {active[0].config.method.label} {active[0].config.view.name}"
                    shown.set_postfix_str(
                        f"epoch {epoch + 1}/{epochs.stop}{whose} loss {loss:.3f} train {100 * hits:.1f} %"
                    )
            for arm in arms:  # the next batch was made while they were at this one: a GPU is waited for here alone
                arm.lane.join()
            acceleration.wait(images.train.labels.device)
            seconds = time.perf_counter() - started
            _test(active, images, side_by_side)
            for arm in [arm for arm in active if not arm.failure]:
                with _failing_alone(arm):
                    arm.end_epoch(images, seconds)
                    if arm.finished:
                        arm.finish()
            if after_epoch:
                after_epoch()


def step(batch: Batch, arms: list[Arm], side_by_side: SideBySide) -> None:
    """One update of each arm. What goes wrong with one is kept in its `failure`."""
    if not batch.target.is_cuda:  # a GPU's teachers answer when they are asked, ahead of their students
        batch.ask([arm.config for arm in arms if arm.taught], side_by_side)
    side_by_side(partial(_update, batch), arms)


def _update(batch: Batch, arm: Arm) -> None:
    with _failing_alone(arm):
        arm.step(batch)


def _test(arms: list[Arm], images: ImageData, side_by_side: SideBySide) -> None:
    """In one pass over the images, which may have to be decoded."""
    for name, split in images.tested.items():
        looking = [arm for arm in arms if arm.looks_at(name)]
        for batch in evaluation.normalized(split, images) if looking else ():
            side_by_side(partial(_answer, name, batch), [arm for arm in looking if not arm.failure])


@torch.inference_mode()
def _answer(name: str, batch: Tensor, arm: Arm) -> None:
    with _failing_alone(arm):
        arm.test(name, batch)


@contextmanager
def _failing_alone(arm: Arm) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        acceleration.clear_frames(error)
        arm.failure = error


def whereabouts(arms: list[Arm]) -> str:
    """Where the training of these arms is, in words."""
    return f"in epoch {min(arm.epoch for arm in arms) + 1} of {arms[0].config.recipe.epochs} ({_title(arms)})"


def _title(arms: list[Arm]) -> str:
    name = arms[0].run.address.rsplit("-", 1)[0]
    return name if len(arms) == 1 else f"{len(arms)} students, seed {arms[0].config.seed}"
