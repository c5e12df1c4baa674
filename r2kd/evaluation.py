"""Accuracy, agreement, entropy and calibration of a model on data, and groups of samples to compare them on.

Logits are (N, C), labels (N,); single results are plain floats.
"""

import math
from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import acceleration
from .data import ImageData, Split
from .progress import tqdm
from .stats import BINS

Key = TypeVar("Key", bound=Hashable)
BATCH_SIZES = {"cpu": 64, "cuda": 1024}  # on a CPU, 256 images at once take 1.5 times as long as four times 64
TEMPERATURES = (0.05, 20.0)


def normalized(split: Split, data: ImageData, batch_size: int | None = None) -> Iterator[Tensor]:
    """The images of a split, in its order, in normalised batches (B, 3, H, W) on its device."""
    indices = torch.arange(len(split)).split(batch_size or BATCH_SIZES[split.labels.device.type])
    bar = {"total": len(indices), "desc": "evaluating", "unit": "batch", "leave": False, "disable": len(indices) < 20}
    for images, _ in tqdm(split.batches(indices), **bar):
        yield data.normalize(images)


@torch.inference_mode()
@acceleration.exact()
def predict(
    model: nn.Module,
    split: Split,
    data: ImageData,
    batch_size: int | None = None,
) -> Tensor:
    """The model's logits (N, C) for a split, in float32, on the split's device.

    The model's own mode holds: a model in training mode normalises with the batch's statistics.
    """
    batches = normalized(split, data, batch_size)
    return torch.cat([model(images).float() for images in batches])


def predict_all(
    models: Mapping[Key, nn.Module],
    split: Split,
    data: ImageData,
    side_by_side: acceleration.SideBySide,
    precision: str = "float32",
) -> dict[Key, Tensor]:
    """`predict` of several models, in one pass over the images. `precision`: of their convolutions and products."""
    answers: dict[Key, list[Tensor]] = {key: [] for key in models}

    @torch.inference_mode()
    def answer(batch: Tensor, key: Key) -> None:
        with acceleration.autocast(batch.device, precision):
            answers[key].append(models[key](batch).float())

    with acceleration.exact():
        for batch in normalized(split, data):
            side_by_side(partial(answer, batch), models)
    return {key: torch.cat(found) for key, found in answers.items()}


def accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share, in percent, of samples whose label is among the k highest logits (all C of them where C < k)."""
    highest = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return 100 * int((highest == labels[:, None]).sum()) / len(labels)


def summary(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """top1, top5 in percent; loss, the mean cross-entropy in nats; n, the number of samples."""
    return {
        "top1": accuracy(logits, labels),
        "top5": accuracy(logits, labels, 5),
        "loss": float(F.cross_entropy(logits, labels)),
        "n": len(labels),
    }


def entropy(logits: Tensor) -> Tensor:
    """(N,) entropy of softmax(logits), in nats."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def confidence(logits: Tensor) -> Tensor:
    """(N,) highest probability of softmax(logits)."""
    return logits.softmax(dim=1).amax(dim=1)


def agreement(logits: Tensor, other_logits: Tensor) -> float:
    """Share, in percent, of samples for which both name the same class."""
    return 100 * float((logits.argmax(1) == other_logits.argmax(1)).float().mean())


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error in percent, 15 equal bins of confidence. Naeini et al., AAAI 2015; Guo et al., ICML 2017."""
    from torchmetrics.functional.classification import multiclass_calibration_error  # a second to import

    p = logits.softmax(1).clamp(max=1 - 2**-24)  # of exactly 1 torchmetrics makes a bin of its own
    return 100 * float(multiclass_calibration_error(p, labels, logits.shape[1], n_bins=BINS))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T from 0.05 to 20 that gives logits / T the lowest mean cross-entropy. Guo et al., ICML 2017.

    Where the best T lies outside (every sample is right, say), it is the bound. Raises ValueError for no samples.
    """
    from scipy.optimize import minimize_scalar  # so that a machine that only trains does without

    if len(labels) == 0:
        raise ValueError("no samples to fit a temperature to")
    exact = logits.double()
    loss = lambda log_t: float(F.cross_entropy(exact / math.exp(log_t), labels))  # noqa: E731 (one valley in log T)
    return math.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x)


def reliability_table(logits: Tensor, labels: Tensor, bins: int = BINS) -> list[dict]:
    """A row for each equal bin of confidence that holds samples.

    `bin`, 1 to `bins`; `confidence` and `accuracy`, the means of its samples, as shares; `samples`, how many.
    """
    certain = confidence(logits).double().cpu().numpy()
    correct = (logits.argmax(1) == labels).double().cpu().numpy()
    index = np.minimum((certain * bins).astype(int), bins - 1)
    rows = []
    for i in np.unique(index):
        chosen = index == i
        row = {"bin": int(i) + 1, "confidence": certain[chosen].mean(), "accuracy": correct[chosen].mean()}
        rows.append(row | {"samples": int(chosen.sum())})
    return rows


def ambiguity_bins(teacher_logits: Tensor, bins: int) -> Tensor:
    """(N,) int64: the quantile, of `bins`, of the teacher's entropy; 0 is the surest.

    The bins' sizes differ by at most one. Of equal entropies, the earlier sample counts as the surer.
    """
    order = entropy(teacher_logits.double()).argsort(stable=True)
    rank = order.argsort()
    return rank * bins // len(rank)


def confused_classes(teacher_logits: Tensor, labels: Tensor, pairs: int) -> Tensor:
    """(pairs, 2) int64: the classes that the teacher confuses most, worst pair first, in each the lower class first.

    A pair (a, b) scores the mean softmax probability (T = 1) of b on images of a plus that of a on images of b; a
    class without images gives nothing. The choice is greedy and disjoint: the highest score, then the highest of the
    other classes, so that no class is in two pairs. Raises ValueError where pairs < 1 or 2 pairs > C.
    """
    classes = teacher_logits.shape[1]
    if not 1 <= pairs <= classes // 2:
        raise ValueError(f"of {classes} classes there are 1 to {classes // 2} disjoint pairs, not {pairs}")
    labels, p = labels.cpu(), teacher_logits.double().softmax(1).cpu()
    images = labels.bincount(minlength=classes).clamp(min=1)
    mean = p.new_zeros(classes, classes).index_add(0, labels, p) / images[:, None]
    score = (mean + mean.T).fill_diagonal_(-1)
    chosen = []
    for _ in range(pairs):
        pair = divmod(int(score.argmax()), classes)
        chosen.append(pair)
        score[pair, :] = score[:, pair] = -1
    return torch.tensor(chosen, device=teacher_logits.device)


def by_group(logits: Tensor, labels: Tensor, groups: Tensor) -> list[dict]:
    """A row for each value of groups (N,), in order: `group`, `samples`, `top1` in percent, `loss`, mean nats."""
    rows = []
    for group in groups.unique():
        chosen = groups == group
        measured = summary(logits[chosen], labels[chosen])
        row = {"group": group.item(), "samples": measured["n"]}
        rows.append(row | {"top1": measured["top1"], "loss": measured["loss"]})
    return rows
