"""An augmented view of a batch: view = AUGMENTATIONS[name](images, generator, **context).

`images` is a normalised batch (B, 3, H, W) and `generator` a CPU torch.Generator, the only source of randomness. As in
the released code one draw serves the whole batch. The context that a view may need, each function taking what it uses:

    mean, std        of the normalisation, per channel: autoaug works on the 8-bit image
    policy           torchvision's AutoAugment policy: "cifar10" or "imagenet"
    teacher_logits   (B, C), the teacher's for `images`: cutmixpick keeps the most uncertain
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

PICKED = 64  # samples that cutmixpick keeps, as released


def none(images: Tensor, generator: Generator, **context) -> Tensor:
    """The images themselves: a student trained so sees the clean view only."""
    return images


def mixup(images: Tensor, generator: Generator, **context) -> Tensor:
    """Each image blended with another of the batch, one weight from Beta(0.2, 0.2). Zhang et al., ICLR 2018."""
    weight = _beta(0.2, generator)
    return weight * images + (1 - weight) * images[_permutation(images, generator)]


def cutmix(images: Tensor, generator: Generator, **context) -> Tensor:
    """A box of each image from another of the batch, its share of the area from Beta(1, 1). Yun et al., ICCV 2019."""
    share = 1 - _beta(1.0, generator)
    height, width = images.shape[-2:]
    rows, columns = _box(images, int(height * share**0.5), int(width * share**0.5), generator)
    mixed = images.clone()
    mixed[..., rows, columns] = images[_permutation(images, generator)][..., rows, columns]
    return mixed


def cutout(images: Tensor, generator: Generator, **context) -> Tensor:
    """A square of a quarter of the image's side set to 0, the mean, at one place. DeVries & Taylor, arXiv 1708.04552."""
    height, width = images.shape[-2:]
    rows, columns = _box(images, height // 4, width // 4, generator)
    cut = images.clone()
    cut[..., rows, columns] = 0
    return cut


def autoaug(
    images: Tensor,
    generator: Generator,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    policy: str = "cifar10",
    **context,
) -> Tensor:
    """torchvision's AutoAugment on the images as uint8, floor of 255 x. Cubuk et al., CVPR 2019.

    Raises ValueError for a policy that torchvision does not have.
    """
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    # 1e-3: an 8-bit value that normalisation rounded down must not lose a whole step to the floor
    pixels = ((images * std + mean) * 255 + 1e-3).floor().clamp(0, 255).to(torch.uint8)
    transform = AutoAugment(AutoAugmentPolicy(policy))
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.default_generator.manual_seed(_seed(generator))
        pixels = transform(pixels)
    return (pixels.to(images.dtype) / 255 - mean) / std


def cutmixpick(images: Tensor, generator: Generator, *, teacher_logits: Tensor, **context) -> Tensor:
    """Cutmix, then the 64 samples whose images before mixing have the highest teacher entropy: of a batch of 64, all.

    As released; in the order of the batch. CutMixPick is of Wang et al., NeurIPS 2022, who pick by the mixed images.
    """
    mixed = cutmix(images, generator)
    log_p = teacher_logits.float().log_softmax(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    picked = entropy.topk(min(PICKED, len(images))).indices.sort().values
    return mixed[picked]


View = Callable[..., Tensor]
AUGMENTATIONS: dict[str, View] = {
    "none": none,
    "mixup": mixup,
    "cutmix": cutmix,
    "cutout": cutout,
    "autoaug": autoaug,
    "cutmixpick": cutmixpick,
}


def _seed(generator: Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


def _beta(alpha: float, generator: Generator) -> float:
    """A draw from Beta(alpha, alpha); torch has the distribution only for its global generator."""
    return float(np.random.default_rng(_seed(generator)).beta(alpha, alpha))


def _permutation(images: Tensor, generator: Generator) -> Tensor:
    return torch.randperm(len(images), generator=generator).to(images.device)


def _box(images: Tensor, box_height: int, box_width: int, generator: Generator) -> tuple[slice, slice]:
    """Rows and columns of a box around a pixel drawn uniformly, clipped at the edges of the image."""
    slices = []
    for size, side in zip(images.shape[-2:], (box_height, box_width), strict=True):
        start = int(torch.randint(size, (), generator=generator)) - side // 2
        slices.append(slice(max(start, 0), max(start + side, 0)))
    return slices[0], slices[1]
