"""An augmented view of a batch, one entry each: images, index = augment(choice, images, generator, **context).

`images` is a normalised batch (B, 3, H, W) and `generator` a CPU torch.Generator, the only source of randomness. What a view
can ask for beside them:

    mean, std   of the normalisation, per channel: autoaug works on the 8-bit image
    policy      torchvision's AutoAugment policy: "cifar10" or "imagenet"
    teacher     images -> logits (B, C): cutmixpick keeps what it is most uncertain of
    target      (B,) the labels; epoch: the epoch, from 1, a tensor ()

A view returns as many images as it was given, in their order, or (images, index) with the image of the batch that each came
from. Facts of an entry: `drawn`, False where there is no second view; `keeps_target`, True where a view's
image is still of the class of the image that it came from: without it, no method is told a label; `control`, True where it is
what other second views are compared with.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.v2.functional import equalize

from .entries import Choice, Registry

PICKED = 64  # samples that cutmixpick keeps, as released
STRONG = {  # of randaugment: the range of a magnitude, as torchvision's operators take it (of a factor what it exceeds 1 by)
    "AutoContrast": (0.0, 0.0),
    "Brightness": (-0.95, -0.05),
    "Color": (-0.95, -0.05),
    "Contrast": (-0.95, -0.05),
    "Equalize": (0.0, 0.0),
    "Identity": (0.0, 0.0),
    "Posterize": (4.0, 8.0),
    "Rotate": (-30.0, 30.0),
    "Sharpness": (-0.95, -0.05),
    "ShearX": (-0.3, 0.3),
    "ShearY": (-0.3, 0.3),
    "Solarize": (0.0, 255.0),  # as released 256, which torchvision refuses
    "TranslateX": (-0.3, 0.3),  # of the side
    "TranslateY": (-0.3, 0.3),
}

AUGMENTATIONS = Registry(
    "view",
    gives=("images", "generator", "mean", "std", "policy", "teacher", "target", "epoch"),
    facts={"drawn": True, "keeps_target": False, "control": False},
)
view = AUGMENTATIONS.entry

Draws = Literal["batch", "sample"]


def augment(choice: Choice, images: Tensor, generator: Generator, **context) -> tuple[Tensor, Tensor]:
    """The view (B', 3, H, W) of a batch (B, 3, H, W), and (B',) the image of the batch that each of its images came from.

    Raises ValueError where the view returns anything else.
    """
    made = choice(images=images, generator=generator, **context)
    index = torch.arange(len(images), device=images.device)
    augmented, index = made if isinstance(made, tuple) else (made, index)
    if not isinstance(augmented, Tensor) or augmented.shape != (len(index), *images.shape[1:]):
        got = tuple(augmented.shape) if isinstance(augmented, Tensor) else type(augmented).__name__
        raise ValueError(
            f"the view {choice.name!r} of images {tuple(images.shape)} is {got}: it must return as many of the same "
            "shape, or (images, index)"
        )
    return augmented, index


@view("none", drawn=False, keeps_target=True)
def none(images: Tensor) -> Tensor:
    """The images themselves: a student trained so sees the clean view only."""
    return images


@view("identity", keeps_target=True, control=True)
def identity(images: Tensor) -> Tensor:
    """The clean images once more, forwarded again: what a second view changes by itself, as it doubles passes and distances."""
    return images


@view("mixup", cite="Zhang et al., ICLR 2018")
def mixup(images: Tensor, generator: Generator, *, draws: Draws = "batch") -> Tensor:
    """Each image blended with another of the batch, the weight from Beta(0.2, 0.2)."""
    weight = _beta(0.2, _draws(images, draws), generator).view(-1, 1, 1, 1)
    kept, other = (share.to(images, non_blocking=True) for share in (weight, 1 - weight))
    return kept * images + other * images[_permutation(images, generator)]


@view("cutmix", cite="Yun et al., ICCV 2019")
def cutmix(images: Tensor, generator: Generator, *, draws: Draws = "batch") -> Tensor:
    """A box of each image from another of the batch, its share of the area from Beta(1, 1)."""
    height, width = images.shape[-2:]
    side = (1 - _beta(1.0, _draws(images, draws), generator)).sqrt()
    box = _boxes(images, height * side, width * side, generator)
    return torch.where(box, images[_permutation(images, generator)], images)


@view("cutout", cite="DeVries & Taylor, arXiv 1708.04552", keeps_target=True)
def cutout(images: Tensor, generator: Generator, *, draws: Draws = "batch") -> Tensor:
    """A square of a quarter of the image's side set to 0, the mean."""
    height, width = images.shape[-2:]
    quarter = torch.full((_draws(images, draws),), 0.25, dtype=torch.float64)
    return images.masked_fill(_boxes(images, height * quarter, width * quarter, generator), 0)


@view("autoaug", cite="Cubuk et al., CVPR 2019", keeps_target=True)
def autoaug(
    images: Tensor,
    generator: Generator,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    policy: str,
    draws: Draws = "batch",
) -> Tensor:
    """torchvision's AutoAugment on the images as uint8, floor of 255 x.

    Raises ValueError for a policy that torchvision does not have.
    """
    pixels = _to_bytes(images, mean, std)
    transform = AutoAugment(AutoAugmentPolicy(policy))
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.default_generator.manual_seed(_seed(generator))
        drawn = [transform.get_params(len(transform.policies)) for _ in range(_draws(images, draws))]
    space, parts = transform._augmentation_space(10, pixels.shape[-2:]), pixels.chunk(len(drawn))
    for step in range(2):
        operations = [
            _operation(transform.policies[chosen][step], space, uniforms[step], signs[step])
            for chosen, uniforms, signs in drawn
        ]
        parts = _in_groups(parts, operations, transform)
    return _from_bytes(torch.cat(parts), images, mean, std)


@view("cutmixpick", cite="Wang et al., NeurIPS 2022")
def cutmixpick(
    images: Tensor,
    generator: Generator,
    *,
    teacher: Callable[[Tensor], Tensor],
    draws: Draws = "batch",
    pick: Literal["before", "after"] = "before",
) -> tuple[Tensor, Tensor]:
    """Cutmix, of which the samples are kept that the teacher's answer to has the highest entropy; in the order of the batch.

    pick "before", as released: mixed once, the 64 whose images before mixing are the most uncertain; of a batch of 64, all.
    pick "after", as its authors have it (Wang et al., NeurIPS 2022): mixed twice, the half of the mixed images.
    """
    if pick not in ("before", "after"):
        raise ValueError(f"pick is 'before' or 'after' mixing, not {pick!r}")
    runs = 1 if pick == "before" else 2
    mixed = torch.cat([cutmix(images, generator, draws=draws) for _ in range(runs)])
    kept = min(PICKED, len(images)) if pick == "before" else len(images)
    log_p = teacher(images if pick == "before" else mixed).float().log_softmax(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    chosen = entropy.topk(kept).indices.sort().values
    return mixed[chosen], chosen % len(images)


@view("randaugment", cite="Cubuk et al., NeurIPS 2020", keeps_target=True)
def randaugment(
    images: Tensor, generator: Generator, *, mean: Sequence[float], std: Sequence[float], operations: int = 2
) -> Tensor:
    """MLKD's strong view, drawn for each image: so many operations of STRONG one after the other, then a grey square.

    A magnitude is uniform in its operation's range, as in the released code, whose "10" is not used; the square's side is up to
    half of the image's, its place uniform and clipped. On the images as uint8, by torchvision's operators.
    """
    parts, plain = list(_to_bytes(images, mean, std).split(1)), AutoAugment()
    for _ in range(operations):
        chosen = torch.randint(len(STRONG), (len(images),), generator=generator).tolist()
        shares = torch.rand(len(images), generator=generator).tolist()
        drawn = [_strong_operation(*pair, images.shape[-1]) for pair in zip(chosen, shares, strict=True)]
        parts = _in_groups(parts, drawn, plain)
    pixels = torch.cat(parts)
    height, width = images.shape[-2:]
    sides = 0.5 * torch.rand(len(images), generator=generator, dtype=torch.float64)
    box = _boxes(images, height * sides, width * sides, generator)
    grey = torch.tensor([125, 123, 114], dtype=torch.uint8, device=images.device).view(-1, 1, 1)
    return _from_bytes(torch.where(box, grey, pixels), images, mean, std)


def _strong_operation(chosen: int, share: float, side: int) -> tuple[str, float]:
    """(operation, magnitude): the one of STRONG at this place, so far into its range."""
    name, (low, high) = list(STRONG.items())[chosen]
    return name, (low + (high - low) * share) * (side if name.startswith("Translate") else 1)


def _to_bytes(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    # 1e-3: an 8-bit value that normalisation rounded down must not lose a whole step to the floor
    return ((images * std + mean) * 255 + 1e-3).floor().clamp(0, 255).to(torch.uint8)


def _from_bytes(pixels: Tensor, like: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    mean, std = (like.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (pixels.to(like.dtype) / 255 - mean) / std


def _draws(images: Tensor, draws: str) -> int:
    """How many draws a batch takes. Raises ValueError for a word that is neither "batch" nor "sample"."""
    if draws not in ("batch", "sample"):
        raise ValueError(f"draws is one for the 'batch' or one for each 'sample', not {draws!r}")
    return 1 if draws == "batch" else len(images)


def _operation(entry: tuple, space: dict, uniform: Tensor, sign: Tensor) -> tuple[str, float] | None:
    """(operation, magnitude) of one step (operation, probability, level) of a sub-policy; None where it is left out.

    space: operation -> (magnitude of each level, whether it has a sign); uniform, sign: the draws, each ().
    """
    name, probability, level = entry
    if uniform > probability:  # a tensor: compares in float32, as torchvision does
        return None
    magnitudes, signed = space[name]
    magnitude = 0.0 if level is None else float(magnitudes[level])
    return name, -magnitude if signed and not sign else magnitude


def _in_groups(parts: Sequence[Tensor], operations: list, transform: AutoAugment) -> list[Tensor]:
    """The parts (n, 3, H, W) of a batch, uint8, each after its operation: all that have the same one in one call."""
    groups, done = {}, list(parts)
    for place, operation in enumerate(operations):
        if operation is not None:
            groups.setdefault(operation, []).append(place)
    for (name, magnitude), places in groups.items():
        group = torch.cat([parts[place] for place in places])
        if name == "Equalize":
            group = equalize(group)  # v2's: the same bytes as v1's, which waits for the GPU twice a channel
        else:
            group = _apply_op(group, name, magnitude, transform.interpolation, transform.fill)
        for place, part in zip(places, group.chunk(len(places)), strict=True):
            done[place] = part
    return done


def _seed(generator: Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


def _beta(alpha: float, count: int, generator: Generator) -> Tensor:
    """`count` draws from Beta(alpha, alpha), float64; torch has the distribution only for its global generator."""
    return torch.from_numpy(np.random.default_rng(_seed(generator)).beta(alpha, alpha, size=count))


def _permutation(images: Tensor, generator: Generator) -> Tensor:
    return torch.randperm(len(images), generator=generator).to(images.device, non_blocking=True)


def _boxes(images: Tensor, heights: Tensor, widths: Tensor, generator: Generator) -> Tensor:
    """(n, 1, H, W), true inside n boxes, each around a pixel drawn uniformly and clipped at the edges of the image.

    A side counts by its half, rounded down, to both sides of the pixel, as in the released code: an odd one is cut by one.
    """
    inside = []
    for size, sides in zip(images.shape[-2:], (heights, widths), strict=True):
        half = sides.int()[:, None] // 2
        centre = torch.randint(size, (len(sides), 1), generator=generator)
        pixel = torch.arange(size)
        inside.append((centre - half <= pixel) & (pixel < centre + half))
    rows, columns = inside
    return (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device, non_blocking=True)
