"""The training loop: a teacher alone, or one or more students of one teacher on the same batches and views.

The recipe is the released code's: SGD with momentum, three milestones, a clean and an augmented view. A run is stored
after every epoch; asked for again it is returned, and one that was cut off goes on where it was.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from . import acceleration, data, evaluation, fidelity, losses, models, runs
from .batch import CLEAN, Batch, Teachers, View, epoch_batches
from .config import Config, DistillConfig, TeacherConfig, milestones
from .data import ImageData
from .progress import tqdm
from .randomness import seeded
from .runs import Run

__all__ = ["DistillConfig", "TeacherConfig", "distill", "distill_all", "train_teacher"]


def train_teacher(config: TeacherConfig, images: ImageData | None = None, progress: bool = True) -> Run:
    """Train `config.model` by cross-entropy; the finished run. `images`: the data set, if the caller has loaded it."""
    return _train([config], images, progress)[0]


def distill(config: DistillConfig, images: ImageData | None = None, progress: bool = True) -> Run:
    """Train one student, and its teacher first where that is not finished; the finished run."""
    return distill_all([config], images, progress)[0]


def distill_all(configs: list[DistillConfig], images: ImageData | None = None, progress: bool = True) -> list[Run]:
    """Train several students on the same batches, views and teacher logits: each as if it were trained alone.

    They must agree in all but the student, its loss, its augmentation and the pruning. Raises ValueError where they do not,
    FloatingPointError where a loss is no longer finite. What goes wrong with one is raised once the others are done.
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
    images: int = 0
    failure: Exception | None = None

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.sums = torch.zeros(4, device=self.device)  # loss, cross-entropy, distance, hits; each summed over images
        self._gradients = self._backward if self.config.plain else acceleration.Replayed(self._backward)

    @classmethod
    def new(cls, config: Config, run: Run, num_classes: int, device: torch.device) -> "Arm":
        """With the weights of the seed, before its first epoch."""
        with seeded(config.seed, "weights", config.model):
            model = models.create(config.model, num_classes)
        model = model.to(device, memory_format=acceleration.layout(config.plain))
        recipe = {"lr": config.learning_rate, "momentum": config.momentum, "weight_decay": config.weight_decay}
        recipe["fused"] = device.type == "cuda" and not config.plain  # torch's fused CPU kernel ignores strides
        return cls(config, run, model, torch.optim.SGD(model.parameters(), **recipe))

    @property
    def views(self) -> dict[str, View]:
        """The views that the model sees, in the order of its forwards."""
        if getattr(self.config, "augmentation", "none") == "none":
            return {"clean": CLEAN}
        augmentation = self.config.augmentation
        pick = self.config.switch("pick") if augmentation == "cutmixpick" else CLEAN.pick
        return {"clean": CLEAN, "augmented": View(augmentation, self.config.switch("draws"), pick)}

    def begin_epoch(self) -> None:
        self.model.train()
        self.sums.zero_()
        self.images = 0
        passed = sum(self.epoch >= milestone for milestone in milestones(self.config))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * 0.1**passed

    def step(self, batch: Batch) -> None:
        """One update. Each view is a forward of its own, with its own BatchNorm statistics, the clean one first."""
        views = self.views.values()
        taught = getattr(self.config, "method", "ce") != "ce"
        answers = [batch.teacher_logits(view, self.config) for view in views] if taught else []
        self._gradients(batch.target, *(batch.images[view] for view in views), *answers)
        self.optimizer.step()
        self.images += len(batch.target)

    def _backward(self, target: Tensor, *images_and_answers: Tensor) -> None:
        """The gradients of a batch, and what it adds to the sums: of its views and the teacher's logits for each."""
        views = list(self.views)
        images, answers = images_and_answers[: len(views)], images_and_answers[len(views) :]
        with acceleration.autocast(self.device, self.config.plain):
            logits = {view: self.model(batch) for view, batch in zip(views, images, strict=True)}
        logits = {view: values.float() for view, values in logits.items()}
        if isinstance(self.config, DistillConfig):
            taught = dict(zip(views, answers, strict=False))  # there are none without a teacher
            ce, distance = student_loss(self.config, logits, taught, target)
        else:
            ce = losses.cross_entropy(logits["clean"], target)
            distance = torch.zeros_like(ce)
        loss = ce + distance
        self.optimizer.zero_grad(set_to_none=False)  # a CUDA graph writes where the gradients were
        loss.backward()
        hits = (logits["clean"].argmax(1) == target).float().mean()
        self.sums += torch.stack((loss, ce, distance, hits)).detach() * len(target)

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
    if device.type == "cpu" and not first.plain:
        acceleration.keep_freed_memory()
    images = images.to(device)
    teachers = _teachers(list(missing.values()), images, device, progress)
    arms = [_start(config, run, images, device) for run, config in missing.items()]
    exact = {"deterministic": True, "allow_tf32": not first.plain}
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, **exact):
        _epochs(arms, images, teachers, progress)
    failures = [arm.failure for arm in arms if arm.failure]
    if len(failures) > 1:
        raise type(failures[0])("; ".join(map(str, failures))) from failures[0]
    if failures:
        raise failures[0]
    return found


@contextmanager
def _failing_alone(arm: Arm) -> Iterator[None]:
    """What goes wrong with one arm does not stop the others."""
    try:
        yield
    except Exception as error:
        arm.failure = error


def _epochs(arms: list[Arm], images: ImageData, teachers: Teachers | None, progress: bool) -> None:
    """All epochs that some arm still has to go; an arm that was cut off later joins at its own."""
    config = arms[0].config
    left = config.epochs - min(arm.epoch for arm in arms)
    bar = tqdm(
        total=left * len(images.train),
        unit="img",
        unit_scale=True,
        desc=_title(arms),
        leave=False,
        disable=not progress,
    )
    for arm in arms:
        if arm.epoch == config.epochs:  # cut off between its last epoch and its result
            arm.finish()
    for epoch in range(config.epochs - left, config.epochs):
        active = [arm for arm in arms if arm.epoch == epoch and not arm.failure]
        for arm in active:
            arm.begin_epoch()
        views = {view for arm in active for view in arm.views.values()}
        recipe = {"seed": config.seed, "batch_size": config.batch_size, "plain": config.plain}
        started = shown = time.perf_counter()
        for batch in epoch_batches(images, views, teachers, epoch=epoch, **recipe):
            for arm in active:
                with _failing_alone(arm):
                    arm.step(batch)
            active = [arm for arm in active if not arm.failure]
            if not active:
                break
            bar.update(len(batch.target))
            if progress and time.perf_counter() - shown > 0.5:  # reading a sum waits for the device
                shown = time.perf_counter()
                loss, _, _, hits = (active[0].sums / active[0].images).tolist()
                bar.set_postfix_str(f"epoch {epoch + 1}/{config.epochs} loss {loss:.3f} train {100 * hits:.1f} %")
        seconds = time.perf_counter() - started
        for arm in active:
            with _failing_alone(arm):
                arm.end_epoch(images, seconds)
                if arm.epoch == config.epochs:
                    arm.finish()
    bar.close()


def _title(arms: list[Arm]) -> str:
    name = arms[0].run.folder.name.rsplit("-", 1)[0]
    return name if len(arms) == 1 else f"{len(arms)} students, seed {arms[0].config.seed}"


def _start(config: Config, run: Run, images: ImageData, device: torch.device) -> Arm:
    run.start(_as_dict(config) | {"data": images.fingerprint, "classes": images.num_classes})
    arm = Arm.new(config, run, images.num_classes, device)
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
    return Teachers(dense.requires_grad_(False).to(device), configs[0].plain)


def _as_dict(config: Config) -> dict:
    switches = {name: config.switch(name) for name in fidelity.NAMES} if isinstance(config, DistillConfig) else {}
    return dataclasses.asdict(config) | {"milestones": list(milestones(config))} | switches


_SHARED = ("dataset", "image_size", "train_images", "test_images", "epochs", "batch_size", "seed", "plain", "device")
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
