"""An arm: one model in training, what it resumes from, and what one step and one epoch do to it."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import acceleration, evaluation, losses, models
from .batch import Batch
from .config import Config, DistillConfig
from .data import ImageData
from .methods import Answers
from .randomness import seeded
from .runs import Run

_ONE_DRAWS = threading.Lock()


def student_loss(
    config: DistillConfig, answers: dict[str, Answers], epoch: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """(cross-entropy, distance): their sum is minimised. `answers` by view: "clean" and, if there is one, "augmented".

    The cross-entropy is of the clean view only; what the method says to all views is added. `epoch`: from 1, (). `index`: (B,)
    the image of the batch that each of the augmented view's came from. Released code; golden step.npz. Raises ValueError for a
    method that returns no scalar tensor.
    """
    clean = answers["clean"]
    ce = config.method["ce_weight"] * losses.cross_entropy(clean.student, clean.target)
    itself = torch.arange(len(clean.student), device=clean.student.device)
    places = {"clean": itself, "augmented": index}
    about = {"epoch": epoch, "clean": clean}
    distances = [
        config.method(**answer._asdict(), view=view, index=places[view], **about) for view, answer in answers.items()
    ]
    for found in distances:  # a forgotten mean over the batch would be a loss 64 times as strong, and no error
        if not isinstance(found, Tensor) or found.shape:
            what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
            raise ValueError(f"the method {config.method.name!r} returns {what}, not a scalar tensor: take its mean")
    return ce, torch.stack(distances).sum()


@dataclass
class Arm:
    """One model in training: what a run resumes from, and the sums of the epoch it is in. `lane`: where its steps run. `draws`: as
    dropout does."""

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
    lane: acceleration.Lane | None = None
    draws: bool = False
    answers: dict[str, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.taught = getattr(self.config, "taught", False)
        self.precision = self.config.precision  # asked once: a step asks again and again
        self.sums = torch.zeros(4, device=self.device)  # loss, cross-entropy, distance, hits; each summed over images
        self.lane = self.lane or acceleration.Lane(self.device)
        self._replayed = acceleration.Replayed(self.lane)

    @classmethod
    def new(
        cls,
        config: Config,
        run: Run,
        images: ImageData,
        device: torch.device,
        lane: acceleration.Lane | None = None,
    ) -> "Arm":
        """With the weights of the seed, before its first epoch. Raises ValueError for a model that answers no logits."""
        with seeded(config.seed, "weights", config.model.name):
            model = models.create(config.model, images.num_classes)
        few = images.normalize(images.train.images[:2].to("cpu"))
        models.check_answers(model, config.model.name, few, images.num_classes)
        draws = models.draws(model, few)
        plain, recipe = config.machine.plain, config.recipe
        model = model.to(device, memory_format=acceleration.layout(plain))
        sgd = {"lr": config.learning_rate, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
        if device.type == "cuda" and not plain:  # torch's fused CPU kernel ignores strides
            sgd |= {"fused": True, "lr": torch.tensor(config.learning_rate, device=device)}  # read by the graph
            for parameter in model.parameters():
                if parameter.requires_grad:  # a frozen one that had a gradient would decay
                    parameter.grad = torch.zeros_like(parameter)  # laid out as its parameter, as the fused kernel asks
        return cls(config, run, model, torch.optim.SGD(model.parameters(), **sgd), lane=lane, draws=draws)

    @property
    def finished(self) -> bool:
        """Whether it has seen all of its epochs."""
        return self.epoch == self.config.recipe.epochs

    @property
    def learning_rate(self) -> float:
        """That of the epoch it is in."""
        return self.config.learning_rate * 0.1 ** sum(self.epoch >= milestone for milestone in self.config.milestones)

    def begin_epoch(self) -> None:
        self.model.train()
        self.sums.zero_()
        self.images = 0
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.learning_rate)
            else:
                group["lr"] = self.learning_rate

    def step(self, batch: Batch) -> None:
        """One update, on its lane. Each view is a forward of its own, with its own BatchNorm statistics, the clean one first."""
        views = list(self.config.views.values())
        answers = [batch.teacher_logits(view, self.config) for view in views] if self.taught else []
        epoch = torch.full((), self.epoch + 1.0, device=self.device)  # filled there, not copied
        inputs = [batch.target, epoch, batch.index[views[-1]], *(batch.images[view] for view in views), *answers]
        if self.config.machine.plain or self.draws:  # a replay could not be seeded
            self._update(*inputs)
        else:
            self._replayed(self._update, *inputs)
        self.images += len(batch.target)

    def _update(self, target: Tensor, epoch: Tensor, index: Tensor, *images_and_answers: Tensor) -> None:
        """One update by a batch, and what it adds to the sums: by its views and the teacher's logits for each."""
        views = self.config.views
        images, answers = images_and_answers[: len(views)], images_and_answers[len(views) :]
        with self._drawing(), acceleration.autocast(self.device, self.precision):
            logits = {view: self.model(batch) for view, batch in zip(views, images, strict=True)}
        logits = {view: values.float() for view, values in logits.items()}
        if isinstance(self.config, DistillConfig):
            taught = dict(zip(views, answers, strict=False))  # there are none without a teacher
            labels = {"clean": target}
            if self.config.view.entry.keeps_target:
                labels["augmented"] = target[index]
            seen = {view: Answers(values, taught.get(view), labels.get(view)) for view, values in logits.items()}
            ce, distance = student_loss(self.config, seen, epoch, index)
        else:
            ce = losses.cross_entropy(logits["clean"], target)
            distance = torch.zeros_like(ce)
        loss = ce + distance
        self.optimizer.zero_grad(set_to_none=False)  # a CUDA graph writes where the gradients were
        loss.backward()
        self.optimizer.step()
        hits = (logits["clean"].argmax(1) == target).float().mean()
        self.sums += torch.stack((loss, ce, distance, hits)).detach() * len(target)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Where a model that draws has torch's generator to itself, seeded for this step: students that train beside it draw too."""
        if not self.draws:
            yield
            return
        with _ONE_DRAWS, seeded(self.config.seed, "model", self.epoch, self.images, device=self.device):
            yield

    def looks_at(self, name: str) -> bool:
        """Whether it is tested on the split of this name after the epoch it is in: on the test images not after each."""
        return name != "test" or self.config.recipe.tests(self.epoch + 1)

    def test(self, name: str, images: Tensor) -> None:
        """Answer to a batch (B, 3, H, W) of the split of this name, in float32."""
        self.answers.setdefault(name, []).append(self.model.eval()(images).float())

    def end_epoch(self, images: ImageData, seconds: float) -> None:
        """Count its answers, remember the best, store the epoch.

        Raises FloatingPointError, storing nothing, if the loss, also on the images it is tested on, or a weight is not finite.
        Best is the epoch of the highest accuracy on the validation images where there are some, else, as released, on the test
        images, of those after which they are looked at.
        """
        loss, ce, distance, hits = (self.sums / self.images).tolist()
        self._check_finite(f"the loss (cross-entropy {ce:.4g}, distance {distance:.4g})", loss)
        if name := models.not_finite(self.model.state_dict()):
            self._check_finite(f"{name}, one of the weights", math.nan)
        row = {"epoch": self.epoch + 1, "learning_rate": self.learning_rate, "loss": loss}
        row |= {"loss_ce": ce, "loss_distance": distance, "train_top1": 100 * hits}
        for name, split in images.tested.items():
            measured = {}
            if name in self.answers:
                measured = evaluation.summary(torch.cat(self.answers.pop(name)), split.labels)
                self._check_finite(f"the loss on the {name} images", measured["loss"])
            row |= {f"{name}_{measure}": measured.get(measure, math.nan) for measure in ("top1", "top5", "loss")}
        self.epoch += 1
        self.metrics.append(row)
        self.timing.append(
            {"epoch": self.epoch, "seconds": round(seconds, 3), "images_per_second": round(self.images / seconds, 1)}
        )
        judge = f"{list(images.tested)[-1]}_top1"
        if row[judge] > (self.best_row[judge] if self.best else -1):  # an epoch without a test is none: NaN
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

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{what} of {self.run.address} became {value} in epoch {self.epoch + 1}; the epochs before it "
                f"are kept in {self.run.folder}. Try a smaller learning rate than {self.config.learning_rate}"
            )

    def resume(self) -> None:
        """Go on at the last whole epoch, if there is one."""
        state = self.run.load_epoch()
        if state is not None:
            self.model.load_state_dict(state["model"])
            own = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, settings in zip(self.optimizer.param_groups, own, strict=True):
                group.update(settings)  # fused or not as on this device, the learning rate where a graph reads it
            for name in ("epoch", "best", "best_row", "metrics", "timing"):
                setattr(self, name, state[name])

    def finish(self) -> None:
        """Store tables, weights and result. best_top1 is on the test images; validation_top1 is of the epoch that the validation
        images chose, and chosen_top1, where test images were looked at after it. A kill may have come between the last state and
        its tables.
        """
        last = self.metrics[-1]
        best = max(
            (row for row in self.metrics if row["test_top1"] >= 0), key=lambda row: row["test_top1"]
        )  # the first
        result = {
            "last_top1": last["test_top1"],
            "best_top1": best["test_top1"],
            "best_epoch": best["epoch"],
            "last_top5": last["test_top5"],
            "last_loss": last["test_loss"],
            "epochs": self.epoch,
            "seconds": round(sum(row["seconds"] for row in self.timing), 1),
        }
        if "validation_top1" in last:
            chosen = self.best_row
            if chosen["test_top1"] >= 0:  # not NaN: after that epoch test images were looked at
                result["chosen_top1"] = chosen["test_top1"]
            result |= {"chosen_epoch": chosen["epoch"], "validation_top1": chosen["validation_top1"]}
            result["last_validation_top1"] = last["validation_top1"]
        self.run.write_tables({"metrics": self.metrics, "timing": self.timing}, lasting=True)
        weights = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
        self.run.finish(last=weights, best=self.best, result=result)
