"""A batch as the arms of a study share it: its clean and augmented views, and what the frozen teachers answer to them."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, fx, nn

from . import acceleration, data, pruning
from .acceleration import SideBySide
from .augmentation import augment
from .config import CLEAN, DistillConfig
from .data import ImageData
from .entries import Choice
from .frozen import frozen
from .parts import Pruning
from .randomness import generator


class Teachers:
    """A dense teacher and its pruned copies, frozen. `plain`: as the models are; else folded where they are in eval mode."""

    def __init__(self, dense: nn.Module, precision: str = "float32", plain: bool = False) -> None:
        self._unpruned, self._precision, self._plain = dense, precision, plain
        self._device = next(dense.parameters()).device
        self.lane = acceleration.Lane(self._device, "teachers")
        self.dense = self._frozen(dense)
        self._mixed: dict[Pruning, pruning.MixedTeacher] = {}
        self._forwards: dict[nn.Module, acceleration.Replayed] = {}

    def mixed(self, config: DistillConfig) -> pruning.MixedTeacher | None:
        """The mixture with the pruned copy that `config` describes; None where it prunes nothing."""
        if not config.pruned:
            return None
        wanted = config.pruning
        if wanted not in self._mixed:
            pruned = pruning.prune_l1(self._unpruned, wanted.pruning_rate)
            pruned = pruned.to(memory_format=acceleration.layout(self._plain))
            if wanted.pruned_batchnorm == "running":
                pruned = self._frozen(pruned)
            self._mixed[wanted] = pruning.MixedTeacher(self.dense, pruned, wanted.dense_weight, wanted.pruned_batchnorm)
        return self._mixed[wanted]

    def logits(self, teacher: nn.Module, images: Tensor) -> Tensor:
        """(B, C) float32: what one of the teachers answers."""
        # no_grad: in inference_mode a capture leaves the CUDA generator, up to torch 2.10, unusable to the student's
        with torch.no_grad(), acceleration.autocast(self._device, self._precision):
            if self._plain:
                return teacher(images).float()
            logits = self._forwards.setdefault(teacher, acceleration.Replayed(self.lane))(teacher, images)
            self.lane.join()
            return logits.float().clone()  # the next replay writes over a graph's

    def _frozen(self, model: nn.Module) -> nn.Module:
        if self._plain:
            return model.eval()
        return frozen(model, getattr(torch, self._precision))


class Batch:
    """The views of a batch, (B, 3, H, W) each, and the teachers' logits for them, computed once, when the first arm asks.

    `index`: of each augmented view (B,), the image of the batch that each of its images came from.
    """

    def __init__(
        self, images: dict[Choice, Tensor], target: Tensor, teachers: Teachers | None = None, index: dict | None = None
    ) -> None:
        self.images, self.target, self._teachers = images, target, teachers
        itself = torch.arange(len(target), device=target.device)
        self.index = dict.fromkeys(images, itself) | (index or {})
        self._logits: dict[tuple[nn.Module, Choice], Tensor] = {}

    def teacher_logits(self, view: Choice, config: DistillConfig) -> Tensor:
        """(B, C): of the dense teacher, or of its mixture with the pruned copy that `config` describes."""
        dense = self._answers(self._teachers.dense, view)
        mixed = self._teachers.mixed(config)
        return dense if mixed is None else mixed.mix(dense, self._answers(mixed.pruned, view))

    def ask(self, configs: Iterable[DistillConfig], side_by_side: SideBySide) -> None:
        """Have the teachers answer what these students will ask. One that is no graph may keep something from one forward to the
        next: it answers one view after the other."""
        asked: dict[nn.Module, dict[Choice, None]] = {}
        for config in configs:
            mixed = self._teachers.mixed(config)
            for teacher in (self._teachers.dense, *([mixed.pruned] if mixed else [])):
                asked.setdefault(teacher, {}).update(dict.fromkeys(config.views.values()))
        calls = []
        for teacher, views in asked.items():
            apart = isinstance(teacher, fx.GraphModule)
            calls += [(teacher, [view]) for view in views] if apart else [(teacher, list(views))]
        side_by_side(lambda call: [self._answers(call[0], view) for view in call[1]], calls)

    def dense_logits(self, images: Tensor) -> Tensor:
        """The dense teacher's answer (B, C) to any images; that to a view is kept."""
        view = next((view for view, known in self.images.items() if known is images), None)
        dense = self._teachers.dense
        return self._teachers.logits(dense, images) if view is None else self._answers(dense, view)

    def _answers(self, teacher: nn.Module, view: Choice) -> Tensor:
        if (teacher, view) not in self._logits:  # each by itself: rounding can depend on how many images a forward has
            self._logits[(teacher, view)] = self._teachers.logits(teacher, self.images[view])
        return self._logits[(teacher, view)]


def epoch_batches(
    images: ImageData,
    views: set[Choice],
    teachers: Teachers | None,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    plain: bool = False,
) -> Iterator[Batch]:
    """The batches of an epoch (counted from 0), on the device of the images, each with the views asked for and the clean one.

    Order, crops and each view have a generator of their own, from (seed, what it is for, epoch): views that differ in an
    option draw their own.
    """
    order, crops = generator(seed, "order", epoch), generator(seed, "crops", epoch)
    drawn = {
        view: generator(seed, view.name, *(str(value) for _, value in view.changed), epoch)
        for view in sorted(views - {CLEAN}, key=str)
    }
    layout = acceleration.layout(plain)
    context = {"mean": images.mean, "std": images.std, "policy": images.policy}
    context["epoch"] = torch.full((), epoch + 1.0, device=images.train.labels.device)
    indices = data.batch_indices(len(images.train), batch_size, order)
    for pixels, target in images.train.batches(indices):
        cropped = data.crop_and_flip(pixels, images.image_size // 8, images.flip, crops)
        batch = Batch({CLEAN: images.normalize(cropped).contiguous(memory_format=layout)}, target, teachers)
        context |= {"target": target, "teacher": batch.dense_logits}
        for view, draws in drawn.items():
            augmented, batch.index[view] = augment(view, batch.images[CLEAN], draws, **context)
            batch.images[view] = augmented.contiguous(memory_format=layout)
        yield batch
