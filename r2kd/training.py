"""The training loop: a teacher alone, or one or more students of one teacher on the same batches and views.

The recipe is the released code's: SGD with momentum, three milestones, a clean and an augmented view. A run is stored
after every epoch; asked for again it is returned, and one that was cut off goes on where it was.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import data, evaluation, fidelity, losses, models, pruning, runs
from .augmentation import AUGMENTATIONS
from .data import ImageData
from .progress import tqdm
from .randomness import generator, seeded
from .runs import Run

METHODS = ("ce", "kd", "r2kd")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A model trained by cross-entropy on the clean view. The defaults are the released recipe.

    train_images, test_images: a class-balanced subset of each split, always the same; None is all of them.
    milestones: the learning rate is divided by 10 after these epochs; None puts them at 150, 180 and 210 of 240.
    device: "auto" is CUDA where there is one. device, data_root and runs_root do not change a run's address.
    Raises ValueError for a name or a number that cannot be.
    """

    model: str
    dataset: str = "digits"
    image_size: int | None = None
    train_images: int | None = None
    test_images: int | None = None
    epochs: int = 240
    batch_size: int = 64
    learning_rate: float = 0.05
    milestones: tuple[int, ...] | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    device: str = "auto"
    data_root: str | None = None
    runs_root: str | None = None

    def __post_init__(self) -> None:
        if self.model not in models.NAMES:
            raise ValueError(f"unknown model {self.model!r}; known: {', '.join(models.NAMES)}")
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError("batch_size must be at least 2: BatchNorm and the class-wise distance need neighbours")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TeacherConfig):
    """A student, `model`, taught by `teacher`: cross-entropy on the clean view, a distance on the clean and augmented views.

    method: "ce" (no teacher), "kd" (KL divergence) or "r2kd" (correlation distance, value and rank).
    teacher_checkpoint: weights to use for the teacher in place of training it.
    pruning_rate: share pruned from each layer of the teacher's copy; 0 is the dense teacher alone.
    rank_regularisation: of the soft ranks; see losses.soft_rank_loss.
    fidelity: "released", what the published students were trained by, or "intended", the method as described.
    rank, value, pruned_batchnorm, pick, draws, reported: the switches of fidelity.SWITCHES; None is as `fidelity` has it.
    """

    teacher: TeacherConfig | None = None
    teacher_checkpoint: str | None = None
    method: str = "r2kd"
    augmentation: str = "none"
    temperature: float = 4.0
    ce_weight: float = 1.0
    kd_weight: float = 1.0
    value_weight: float = 2.0
    rank_weight: float = 2.0
    pruning_rate: float = 0.1
    dense_weight: float = 0.7
    rank_regularisation: float = 0.1
    fidelity: str = "released"
    rank: str | None = None
    value: str | None = None
    pruned_batchnorm: str | None = None
    pick: str | None = None
    draws: str | None = None
    reported: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"unknown augmentation {self.augmentation!r}; known: {', '.join(AUGMENTATIONS)}")
        if not 0 <= self.pruning_rate < 1:
            raise ValueError(f"pruning_rate is a share of the weights, 0 <= rate < 1, not {self.pruning_rate}")
        fidelity.preset(self.fidelity)
        for switch in fidelity.SWITCHES:
            if self.switch(switch.name) not in switch.values:
                raise ValueError(f"{switch.name} is {' or '.join(switch.values)}, not {self.switch(switch.name)!r}")
        if self.method == "ce" and (self.augmentation != "none" or self.teacher is not None):
            raise ValueError("method 'ce' has no teacher, and the augmented view carries no labels to learn from")
        if self.method != "ce" and self.teacher is None:
            raise ValueError(f"method {self.method!r} needs a teacher")

    def switch(self, name: str) -> str:
        """The value of a switch: as set, else as `fidelity` has it."""
        return getattr(self, name) or fidelity.preset(self.fidelity)[name]


Config = TeacherConfig | DistillConfig


def train_teacher(config: TeacherConfig, images: ImageData | None = None, progress: bool = True) -> Run:
    """Train `config.model` by cross-entropy; the finished run. `images`: the data set, if the caller has loaded it."""
    return _train([config], images, progress)[0]


def distill(config: DistillConfig, images: ImageData | None = None, progress: bool = True) -> Run:
    """Train one student, and its teacher first where that is not finished; the finished run."""
    return distill_all([config], images, progress)[0]


def distill_all(configs: list[DistillConfig], images: ImageData | None = None, progress: bool = True) -> list[Run]:
    """Train several students on the same batches, views and teacher logits: each as if it were trained alone.

    They must agree in all but the student, its loss, its augmentation and the pruning. Raises ValueError where they do not,
    FloatingPointError, once the others are done, where a loss is no longer finite.
    """
    return _train(configs, images, progress)


def open_data(config: Config) -> ImageData:
    """The data set of a configuration: its classes with training images, and the subset that it names."""
    loaded = data.load(config.dataset, config.data_root, config.image_size).with_training_classes()
    return loaded.subset(config.train_images, config.test_images)


def find_run(config: Config, images: ImageData) -> Run:
    """The run folder of a configuration, finished or not, or not yet there."""
    kind = "distill" if isinstance(config, DistillConfig) else "teacher"
    parts = [kind, images.name, config.model]
    if isinstance(config, DistillConfig):
        parts += [config.method, config.augmentation]
    return runs.at(config.runs_root, "-".join([*parts, f"seed{config.seed}"]), _identity(config, images))


def resolve_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU. Raises ValueError for a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not to be had here: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def milestones(config: Config) -> tuple[int, ...]:
    """The epochs after which the learning rate is divided by 10."""
    if config.milestones is not None:
        return tuple(config.milestones)
    return tuple(round(config.epochs * share) for share in (150 / 240, 180 / 240, 210 / 240))


def load_model(run: Run, num_classes: int, which: str = "last") -> nn.Module:
    """A finished run's model in eval mode, with the weights of the "last" or the "best" epoch."""
    return models.from_checkpoint(run.config["model"], num_classes, run.weights(which))


def reported_top1(config: DistillConfig, run: Run) -> float:
    """The accuracy in percent that the run reports: of its best epoch on the test split, as released, or of its last."""
    return run.result[f"{config.switch('reported')}_top1"]


def student_loss(
    config: DistillConfig, student_logits: dict[str, Tensor], teacher_logits: dict[str, Tensor], target: Tensor
) -> tuple[Tensor, Tensor]:
    """(cross-entropy, distance): their sum is minimised. Logits (B, C) by view: "clean" and, if there is one, "augmented".

    The cross-entropy is of the clean view only; the distances of all views are added. Released code; golden step.npz.
    """
    ce = config.ce_weight * losses.cross_entropy(student_logits["clean"], target)
    distances = [
        _distance(config, logits, teacher_logits[view])
        for view, logits in student_logits.items()
        if config.method != "ce"
    ]
    return ce, torch.stack(distances).sum() if distances else torch.zeros_like(ce)


def _distance(config: DistillConfig, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    if config.method == "kd":
        return config.kd_weight * losses.kd_loss(student_logits, teacher_logits, config.temperature)
    soft_rank_loss = partial(losses.soft_rank_loss, regularisation=config.rank_regularisation)
    value_loss = {"cosine": losses.value_loss, "pearson": losses.dist_loss}[config.switch("value")]
    rank_loss = {"hard": losses.rank_loss, "soft": soft_rank_loss}[config.switch("rank")]
    value = value_loss(student_logits, teacher_logits, config.temperature)
    rank = rank_loss(student_logits, teacher_logits, config.temperature)
    return config.value_weight * value + config.rank_weight * rank


class View(NamedTuple):
    """What an augmented view of a batch depends on; see augmentation."""

    augmentation: str = "none"
    draws: str = "batch"
    pick: str = "before"

    @property
    def purpose(self) -> tuple[str, ...]:
        """What its random draws are for: views that differ in anything draw their own."""
        return tuple(part for part, usual in zip(self, (None, "batch", "before"), strict=True) if part != usual)


CLEAN = View()


@dataclass
class Arm:
    """One model in training: what a run resumes from, and the sums of the epoch it is in."""

    config: Config
    run: Run
    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    metrics: list[dict] = field(default_factory=list)
    timing: list[dict] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_row: dict = field(default_factory=dict)
    sums: Tensor | None = None  # loss, cross-entropy, distance, hits; each summed over images
    images: int = 0

    @property
    def views(self) -> dict[str, View]:
        """The views that the model sees, in the order of its forwards."""
        if getattr(self.config, "augmentation", "none") == "none":
            return {"clean": CLEAN}
        augmentation = self.config.augmentation
        pick = self.config.switch("pick") if augmentation == "cutmixpick" else CLEAN.pick
        return {"clean": CLEAN, "augmented": View(augmentation, self.config.switch("draws"), pick)}

    def begin_epoch(self, device: torch.device) -> None:
        self.sums, self.images = torch.zeros(4, device=device), 0
        passed = sum(self.epoch >= milestone for milestone in milestones(self.config))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * 0.1**passed

    def step(self, batch: "Batch") -> None:
        """One update. Each view is a forward of its own, with its own BatchNorm statistics, the clean one first."""
        self.model.train()
        logits = {name: self.model(batch.images(view)) for name, view in self.views.items()}
        if isinstance(self.config, DistillConfig):
            views = {} if self.config.method == "ce" else self.views
            taught = {name: batch.teacher_logits(view, self.config) for name, view in views.items()}
            ce, distance = student_loss(self.config, logits, taught, batch.target)
        else:
            ce = losses.cross_entropy(logits["clean"], batch.target)
            distance = torch.zeros_like(ce)
        loss = ce + distance
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        hits = (logits["clean"].argmax(1) == batch.target).float().mean()
        self.sums += torch.stack((loss, ce, distance, hits)).detach() * len(batch.target)
        self.images += len(batch.target)

    def end_epoch(self, images: ImageData, seconds: float) -> None:
        """Test, remember the best, store the epoch. Raises FloatingPointError, storing nothing, if the loss is not finite."""
        loss, ce, distance, hits = (self.sums / self.images).tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of {self.run.folder.name} became {loss} in epoch {self.epoch + 1}; the epochs before it "
                f"are kept in {self.run.folder}. Try a smaller learning rate than {self.config.learning_rate}"
            )
        self.model.eval()
        tested = evaluation.summary(evaluation.predict(self.model, images.test, images), images.test.labels)
        self.epoch += 1
        row = {
            "epoch": self.epoch,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "loss": loss,
            "loss_ce": ce,
            "loss_distance": distance,
            "train_top1": 100 * hits,
            "test_top1": tested["top1"],
            "test_top5": tested["top5"],
            "test_loss": tested["loss"],
        }
        self.metrics.append(row)
        self.timing.append(
            {"epoch": self.epoch, "seconds": round(seconds, 3), "images_per_second": round(self.images / seconds, 1)}
        )
        if not self.best or row["test_top1"] > self.best_row["test_top1"]:
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.best_row = row
        self.run.save_epoch(
            {
                "epoch": self.epoch,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "best_row": self.best_row,
                "metrics": self.metrics,
                "timing": self.timing,
            }
        )

    def resume(self) -> None:
        """Go on at the last whole epoch, if there is one."""
        state = self.run.load_epoch()
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for name in ("epoch", "best", "best_row", "metrics", "timing"):
                setattr(self, name, state[name])

    def finish(self) -> None:
        last = self.metrics[-1]
        result = {
            "last_top1": last["test_top1"],
            "best_top1": self.best_row["test_top1"],
            "best_epoch": self.best_row["epoch"],
            "last_top5": last["test_top5"],
            "last_loss": last["test_loss"],
            "epochs": self.epoch,
            "seconds": round(sum(row["seconds"] for row in self.timing), 1),
        }
        weights = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
        self.run.finish(last=weights, best=self.best, result=result)


class Batch:
    """A batch's views and the teachers' logits for them, each computed once, when the first arm asks.

    `views` holds the images of those that are there already, CLEAN among them, each (B, 3, H, W); `augment` makes another:
    augment(view, clean images, dense teacher) -> images.
    """

    def __init__(
        self,
        views: dict[View, Tensor],
        target: Tensor,
        teachers: "Teachers | None",
        augment: Callable[[View, Tensor, Callable], Tensor] | None = None,
    ) -> None:
        self.target = target
        self._views = views
        self._logits: dict[tuple, Tensor] = {}
        self._teachers, self._augment = teachers, augment

    def images(self, view: View) -> Tensor:
        """(B, 3, H, W)"""
        if view not in self._views:
            images = self._augment(view, self._views[CLEAN], self._dense)
            self._views[view] = images.contiguous(memory_format=torch.channels_last)
        return self._views[view]

    def teacher_logits(self, view: View, config: DistillConfig) -> Tensor:
        """(B, C): of the dense teacher, or of its mixture with the pruned copy that `config` describes."""
        mixed = self._teachers.mixed(config)
        if mixed is None:
            return self._dense_logits(view)
        key = (view, id(mixed))
        if key not in self._logits:
            self._logits[key] = mixed(self.images(view), dense_logits=self._dense_logits(view))
        return self._logits[key]

    def _dense_logits(self, view: View) -> Tensor:
        if (view,) not in self._logits:
            with torch.no_grad():
                self._logits[(view,)] = self._teachers.dense(self.images(view))
        return self._logits[(view,)]

    def _dense(self, images: Tensor) -> Tensor:
        """The dense teacher's logits; those of the clean view are kept."""
        if images is self._views[CLEAN]:
            return self._dense_logits(CLEAN)
        with torch.no_grad():
            return self._teachers.dense(images)


class Teachers:
    """The dense teacher and the mixtures with its pruned copies that the arms ask for."""

    def __init__(self, dense: nn.Module) -> None:
        self.dense = dense
        self._mixed: dict[tuple, pruning.MixedTeacher] = {}

    def mixed(self, config: DistillConfig) -> pruning.MixedTeacher | None:
        key = (config.pruning_rate, config.dense_weight, config.switch("pruned_batchnorm"))
        if config.pruning_rate and key not in self._mixed:
            pruned = pruning.prune_l1(self.dense, config.pruning_rate).to(memory_format=torch.channels_last)
            self._mixed[key] = pruning.MixedTeacher(self.dense, pruned, *key[1:])
        return self._mixed.get(key)


def _train(configs: list[Config], images: ImageData | None, progress: bool) -> list[Run]:
    """Train what is not finished of `configs`, arm beside arm; the runs in their order."""
    images = open_data(configs[0]) if images is None else images
    found = [find_run(config, images) for config in configs]
    missing = {run: config for config, run in zip(configs, found, strict=True) if not run.finished}
    if not missing:
        return found
    first = next(iter(missing.values()))
    for name in _SHARED:
        if len({getattr(config, name) for config in missing.values()}) > 1:
            raise ValueError(f"students trained together must agree in {name}")
    device = resolve_device(first.device)
    images = images.to(device)
    teachers = _teachers(list(missing.values()), images, device, progress)
    arms = [_start(config, run, images, device) for run, config in missing.items()]
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        failures = _epochs(arms, images, teachers, device, progress)
    if failures:
        raise FloatingPointError("; ".join(map(str, failures)))
    return found


def _epochs(
    arms: list[Arm], images: ImageData, teachers: Teachers | None, device: torch.device, progress: bool
) -> list[FloatingPointError]:
    """All epochs that some arm still has to go; an arm that was cut off later joins at its own. What failed is returned."""
    config = arms[0].config
    padding = images.image_size // 8
    left = config.epochs - min(arm.epoch for arm in arms)
    bar = tqdm(
        total=left * len(images.train),
        unit="img",
        unit_scale=True,
        desc=_title(arms),
        leave=False,
        disable=not progress,
    )
    failures = []
    for arm in arms:
        if arm.epoch == config.epochs:  # cut off between its last epoch and its result
            arm.finish()
    for epoch in range(config.epochs - left, config.epochs):
        active = [arm for arm in arms if arm.epoch == epoch]
        for arm in active:
            arm.begin_epoch(device)
        order, crops = generator(config.seed, "order", epoch), generator(config.seed, "crops", epoch)
        generators = {
            view: generator(config.seed, *view.purpose, epoch) for arm in active for view in arm.views.values()
        }
        augment = partial(_augment, images=images, generators=generators)
        started = shown = time.perf_counter()
        for index in data.batch_indices(len(images.train), config.batch_size, order):
            index = index.to(device)
            cropped = data.crop_and_flip(images.train.images[index], padding, images.flip, crops)
            batch = Batch({CLEAN: images.normalize(cropped)}, images.train.labels[index], teachers, augment)
            for arm in active:
                arm.step(batch)
            bar.update(len(index))
            if progress and time.perf_counter() - shown > 0.5:  # reading a sum waits for the device
                shown = time.perf_counter()
                loss, _, _, hits = (active[0].sums / active[0].images).tolist()
                bar.set_postfix_str(f"epoch {epoch + 1}/{config.epochs} loss {loss:.3f} train {100 * hits:.1f} %")
        seconds = time.perf_counter() - started
        for arm in active:
            try:
                arm.end_epoch(images, seconds)
            except FloatingPointError as error:
                failures.append(error)
        for arm in active:
            if arm.epoch == config.epochs:
                arm.finish()
    bar.close()
    return failures


def _augment(view: View, clean: Tensor, teacher: Callable, images: ImageData, generators: dict) -> Tensor:
    context = {"mean": images.mean, "std": images.std, "policy": images.policy, "teacher": teacher}
    context |= {"draws": view.draws, "pick": view.pick}
    return AUGMENTATIONS[view.augmentation](clean, generators[view], **context)


def _title(arms: list[Arm]) -> str:
    name = arms[0].run.folder.name.rsplit("-", 1)[0]
    return name if len(arms) == 1 else f"{len(arms)} students, seed {arms[0].config.seed}"


def _start(config: Config, run: Run, images: ImageData, device: torch.device) -> Arm:
    run.start(_as_dict(config) | {"data": images.fingerprint, "classes": images.num_classes})
    with seeded(config.seed, "weights", config.model):
        model = models.create(config.model, images.num_classes)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    arm = Arm(config, run, model, optimizer)
    arm.resume()
    return arm


def _teachers(configs: list[Config], images: ImageData, device: torch.device, progress: bool) -> Teachers | None:
    """The frozen teacher of these students, trained first where it is not finished; None where nobody has one."""
    named = {(config.teacher, config.teacher_checkpoint) for config in configs if getattr(config, "teacher", None)}
    if not named:
        return None
    if len(named) > 1:
        raise ValueError("students trained together must have one teacher")
    teacher, checkpoint = named.pop()
    if checkpoint:
        dense = models.from_checkpoint(teacher.model, images.num_classes, checkpoint)
    else:
        dense = load_model(train_teacher(teacher, images, progress), images.num_classes)
    dense.requires_grad_(False)
    return Teachers(dense.to(device, memory_format=torch.channels_last))


def _as_dict(config: Config) -> dict:
    switches = {name: config.switch(name) for name in fidelity.NAMES} if isinstance(config, DistillConfig) else {}
    return dataclasses.asdict(config) | {"milestones": list(milestones(config))} | switches


_SHARED = ("dataset", "image_size", "train_images", "test_images", "epochs", "batch_size", "seed", "device")
_WHEREABOUTS = ("device", "data_root", "runs_root", "fidelity", "reported")  # the numbers do not depend on them


def _identity(config: Config, images: ImageData) -> dict:
    """What the numbers of a run depend on."""
    identity = {name: value for name, value in _as_dict(config).items() if name not in _WHEREABOUTS}
    identity |= {"dataset": images.name, "data": images.fingerprint, "classes": images.num_classes}
    if isinstance(config, DistillConfig) and config.teacher is not None:
        identity["teacher"] = _identity(config.teacher, images)
        if config.teacher_checkpoint:
            identity["teacher"] = config.teacher.model
            identity["teacher_checkpoint"] = models.checkpoint_digest(config.teacher_checkpoint)
    return identity
