"""Training a teacher alone, or one or more students of one teacher on the same batches and views.

The recipe is the released code's: SGD with momentum, three milestones, a clean and an augmented view. A run is stored
after every epoch; asked for again it is returned, and one that was cut off goes on where it was.
"""

import math
import sys
from collections.abc import Callable

import torch
from torch import nn

from . import acceleration, data, evaluation, files, models, records, runs
from .acceleration import resolve_device
from .arm import Arm
from .batch import Teachers
from .config import Config, DistillConfig, TeacherConfig, acting_data
from .data import ImageData
from .loop import run_epochs, whereabouts
from .parts import Data
from .progress import interruptible
from .runs import Run

__all__ = ["DistillConfig", "TeacherConfig", "distill", "distill_all", "open_data", "resolve_device", "train_teacher"]


def train_teacher(config: TeacherConfig, images: ImageData | None = None, progress: bool = True) -> Run:
    """Train `config.model` by cross-entropy, or test it where its weights are given; the finished run.

    `images`: the data set, if the caller has loaded it. Raises as `distill_all` does.
    """
    images = open_data(config) if images is None else images
    return _given_teacher(config, images) if config.checkpoint else _train([config], images, progress)[0]


def put_back(config: TeacherConfig, images: ImageData | None = None) -> None:
    """Make a finished run of a teacher whose weights stand beside its record, so that nobody has to train it again.

    Nothing happens where there are none, or the run is finished. Raises ValueError for a damaged file.
    """
    images = open_data(config) if images is None else images
    run = config.run(images)

    def make(_) -> None:
        if (found := records.kept(run)) and not _prepared(config, run, images).finished:
            run.put_back(*found)

    files.in_turn(lambda: {} if run.finished else {run.folder: run}, make)


def distill(
    config: DistillConfig,
    images: ImageData | None = None,
    progress: bool = True,
    after_epoch: Callable[[], None] | None = None,
) -> Run:
    """Train one student, and its teacher first where that is not finished; the finished run.

    `after_epoch` is called when an epoch is kept; a KeyboardInterrupt that it raises stops the training there.
    """
    return distill_all([config], images, progress, after_epoch=after_epoch)[0]


def distill_all(
    configs: list[DistillConfig],
    images: ImageData | None = None,
    progress: bool = True,
    wait: bool = True,
    after_epoch: Callable[[], None] | None = None,
) -> list[Run]:
    """Train several students on the same batches, views and teacher logits: each as if it were trained alone.

    They must agree in what `shared` returns. Those that another process is training are waited for, or without `wait` left to it,
    unfinished. Raises ValueError where they do not agree, or where `images` are not theirs, FloatingPointError where a loss or a
    weight is no longer finite. What goes wrong with one is raised once the others are done.
    """
    return _train(configs, open_data(configs[0]) if images is None else images, progress, wait, after_epoch)


def shared(config: DistillConfig) -> dict:
    """What students that train together must agree in."""
    recipe = {name: config.recipe.options[name] for name in ("epochs", "batch_size")}
    return {"data": config.data, "machine": config.machine, "seed": config.seed} | recipe


def open_data(config: Config) -> ImageData:
    """The data set of a configuration: its classes with training images, the subset that it names, and its label noise."""
    wanted = config.data
    loaded = data.load(wanted.dataset, config.machine.data_root, wanted.image_size).with_training_classes()
    return loaded.subset(wanted.train_images, wanted.test_images, wanted.validation_images, wanted.label_noise)


def load_model(config: Config, run: Run, num_classes: int, which: str = "last") -> nn.Module:
    """A finished run's model in eval mode, with the weights of the "last" or the "best" epoch.

    Raises ValueError for weights that are not finite, as runs of before may have.
    """
    ensure_sound(config, run, which)
    return models.from_checkpoint(config.model, num_classes, run.weights(which))


def ensure_sound(config: Config, run: Run, which: str = "last") -> None:
    """See that the weights of a finished run are those that it stored: damaged ones are set aside, said, and trained again.

    Raises ValueError where `config` does not make this run here.
    """
    if run.sound(which):
        return
    with files.alone(run.folder):
        if not run.sound(which):
            run.set_aside(f"{which}.pt", "result.json")
    again = distill(config) if isinstance(config, DistillConfig) else train_teacher(config)
    if again.folder.resolve() != run.folder.resolve():
        raise ValueError(f"{run.folder} has no {which}.pt; train it again")


def reported_top1(config: Config, run: Run) -> float:
    """The accuracy in percent that the run reports: of its best epoch on the test split, as released, or of its last."""
    return run.result[f"{config.recipe.reported}_top1"]


def _train(
    configs: list[Config],
    images: ImageData,
    progress: bool,
    wait: bool = True,
    after_epoch: Callable[[], None] | None = None,
) -> list[Run]:
    """Train what is not finished of `configs`, arm beside arm, each run by one process; the runs in their order."""
    _check_images(configs[0].data, images)
    found = [config.run(images) for config in configs]
    wanted = dict(zip(found, configs, strict=True))
    missing = {run: config for run, config in wanted.items() if not run.finished}
    if not missing:
        return found
    first = next(iter(missing.values()))
    for config in missing.values():
        for name, value in shared(config).items():
            if value != shared(first)[name]:
                raise ValueError(f"students trained together must agree in {name}")
    device = resolve_device(first.machine.device)
    if device.type == "cpu" and not first.machine.plain:
        acceleration.keep_freed_memory()
    if first.precision == "bfloat16":
        acceleration.say_if_slow(device)
    failures: list[Exception] = []
    files.in_turn(
        lambda: {run.folder: (run, config) for run, config in missing.items() if not run.finished},
        lambda mine: failures.extend(_train_together(dict(mine), images.to(device), device, progress, after_epoch)),
        wait,
    )
    if len(failures) > 1:
        plain = (torch.OutOfMemoryError, FloatingPointError, ValueError, OSError, RuntimeError, Exception)
        kind = next(kind for kind in plain if isinstance(failures[0], kind))  # a type of one's own may not take a text
        raise kind("; ".join(str(failure) or type(failure).__name__ for failure in failures)) from failures[0]
    if failures:
        raise failures[0]
    return found


def _train_together(
    missing: dict[Run, Config],
    images: ImageData,
    device: torch.device,
    progress: bool,
    after_epoch: Callable[[], None] | None,
) -> list[Exception]:
    """What went wrong with some of them. Models, graphs and teachers are gone when it returns."""
    missing = {run: config for run, config in missing.items() if not _prepared(config, run, images).finished}
    if not missing:  # of them there was but a config.json to be made again
        return []
    configs = list(missing.values())
    teachers = _teachers(configs, images, device, progress)
    lanes = [acceleration.Lane(device, i) for i in range(min(configs[0].machine.streams, len(configs)))]
    arms: list[Arm] = []
    try:
        with acceleration.SideBySide(device, configs[0].threads) as side_by_side:
            for i, (run, config) in enumerate(missing.items()):
                arms.append(_start(config, run, images, device, lanes[i % len(lanes)], side_by_side.threads))
            with acceleration.exact(), interruptible(lambda: whereabouts(arms)):
                run_epochs(arms, images, teachers, progress, side_by_side, after_epoch)
        failures = [arm.failure for arm in arms if arm.failure]
        for failure in failures:
            acceleration.clear_frames(failure)  # the loop that it came through holds all arms
        return failures
    finally:
        for lane in [*lanes, *([teachers.lane] if teachers else [])]:
            lane.release()
        arms.clear()  # what a failure's traceback leads to is this frame
        teachers = None


def _start(
    config: Config, run: Run, images: ImageData, device: torch.device, lane: acceleration.Lane, threads: int
) -> Arm:
    arm = Arm.new(config, run, images, device, lane)
    try:
        arm.resume()
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):  # a state of another model
        run.set_aside("state.pt")
        arm = Arm.new(config, run, images, device, lane)
    run.start(device, config.precision, arm.epoch, threads)
    return arm


def _prepared(config: Config, run: Run, images: ImageData) -> Run:
    """The run, with a folder that holds nothing damaged. It may be finished then."""
    acts = config.acts(images)
    if not run.folder.exists() and (changed := runs.computed_otherwise(run, acts)):
        print(f"{changed}: trained anew", file=sys.stderr)
    run.prepare(config.settings() | {"acts": acts})
    return run


def _teachers(configs: list[Config], images: ImageData, device: torch.device, progress: bool) -> Teachers | None:
    """The frozen teacher of these students, trained first where it is not finished; None where nobody has one."""
    taught = [config for config in configs if getattr(config, "taught", False)]
    if not taught:
        return None
    if len({config.teacher for config in taught}) > 1:
        raise ValueError("students trained together must have one teacher")
    teacher = taught[0].teacher
    own = images if teacher.data == taught[0].data else open_data(teacher).to(device)
    run = train_teacher(teacher, own, progress)
    dense = load_model(teacher, run, images.num_classes)
    _check_answers_finite(dense, run, images)
    return Teachers(dense.requires_grad_(False).to(device), taught[0].precision, taught[0].machine.plain)


def _given_teacher(config: TeacherConfig, images: ImageData) -> Run:
    """A teacher whose weights are given: kept in a run of its own, with its accuracy on the test images."""
    run = config.run(images)
    files.in_turn(lambda: {} if run.finished else {run.folder: run}, lambda _: _test_given(config, run, images))
    return run


def _test_given(config: TeacherConfig, run: Run, images: ImageData) -> None:
    device = resolve_device(config.machine.device)
    model = models.from_checkpoint(config.model, images.num_classes, config.checkpoint)
    test = images.test.to(device)
    tested = evaluation.summary(evaluation.predict(model.to(device), test, images), test.labels)
    weights = model.cpu().state_dict()
    if not math.isfinite(tested["loss"]):
        raise ValueError(f"the teacher {config.checkpoint} gives answers that are not finite")
    if _prepared(config, run, images).finished:
        return
    run.start(device, config.precision)
    result = {f"{which}_top1": tested["top1"] for which in runs.WEIGHTS}
    run.finish(weights, weights, result | {"last_top5": tested["top5"], "last_loss": tested["loss"]})


def _check_answers_finite(teacher: nn.Module, run: Run, images: ImageData) -> None:
    """Raises ValueError naming the teacher: its students' losses would be what is not finite, and nobody would know why."""
    few = images.normalize(images.train.images[:2].to("cpu"))
    with torch.inference_mode():
        if not teacher(few).isfinite().all():
            raise ValueError(f"the teacher {run.address} gives answers that are not finite: {run.weights()}")


def _check_images(wanted: Data, images: ImageData) -> None:
    """Raises ValueError where `images` are not as many or as noisy as configured: the run would be taken for another."""
    acting = acting_data(wanted, images)
    splits = {"train_images": images.train, "test_images": images.test, "validation_images": images.validation or ()}
    held = {name: len(split) for name, split in splits.items()} | {"label_noise": images.label_noise}
    for name, found in held.items():
        if found != (asked := acting.get(name, 0)):
            raise ValueError(f"the images given are not those of the configuration: {name} {found}, not {asked}")
