"""Accuracy, agreement, entropy and calibration of a model on data. Logits are (N, C); results are plain floats."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import acceleration
from .data import ImageData, Split
from .progress import tqdm

BATCH_SIZES = {"cpu": 64, "cuda": 1024}  # on a CPU, 256 images at once take 1.5 times as long as four times 64
BINS = 15


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
    transform: Callable[[Tensor], Tensor] | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """The model's logits (N, C) for a split, in float32, on the split's device. `transform` is applied to each normalised batch.

    The model's own mode holds: a model in training mode normalises with the batch's statistics.
    """
    batches = normalized(split, data, batch_size)
    return torch.cat([model(images if transform is None else transform(images)).float() for images in batches])


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

    return 100 * float(multiclass_calibration_error(logits.softmax(1), labels, logits.shape[1], n_bins=BINS))


def reliability_table(logits: Tensor, labels: Tensor, bins: int = 10) -> list[dict]:
    """A row for each equal bin of confidence that holds samples: `confidence` and `accuracy`, its means, and `samples`."""
    certain = confidence(logits).double().cpu().numpy()
    correct = (logits.argmax(1) == labels).double().cpu().numpy()
    index = np.minimum((certain * bins).astype(int), bins - 1)
    rows = []
    for i in np.unique(index):
        chosen = index == i
        row = {"confidence": certain[chosen].mean(), "accuracy": correct[chosen].mean()}
        rows.append(row | {"samples": int(chosen.sum())})
    return rows
