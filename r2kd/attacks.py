"""A model under attack: adversarial images within a radius of the originals, in pixels from 0 to 1.

One entry an attack; its facts are the norm that the radius is in, the radii that are measured and their unit. An entry
gets `model`, pixels (B, 3, H, W) float32 in [0, 1] -> logits (B, C), `images` float32 in [0, 1], their `labels` (B,),
`epsilon`, the radius in pixels, and a CPU `generator`; it returns images in [0, 1] no farther than epsilon from these.

Ours, not foolbox's: foolbox 3.3.4 draws from the global generator, and follows a cross-entropy that is flat in float32
where a model is sure.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from . import acceleration, evaluation
from .data import ImageData, Split
from .entries import Choice, Registry
from .progress import tqdm
from .randomness import generator

ATTACKS = Registry(
    "attack",
    gives=("model", "images", "labels", "epsilon", "generator"),
    facts={"norm": "Linf", "epsilons": (0, 0.5, 1, 2, 4, 8), "unit": 1 / 255},  # 8/255: RobustBench's for CIFAR
)
attack = ATTACKS.entry
SLACK = 1.0  # percent by which an accuracy may rise by chance in masking_check

Model = Callable[[Tensor], Tensor]


@attack("FGSM", cite="Goodfellow et al., ICLR 2015")
def fgsm(model: Model, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """One step of epsilon along the gradient's signs."""
    return (images + epsilon * _gradient(model, images, labels).sign()).clamp(0, 1)


@attack("PGD", cite="Madry et al., ICLR 2018")
def pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    generator: Generator,
    *,
    steps: int = 20,
    relative_step: float = 0.25,
) -> Tensor:
    """Steps along the gradient's signs, from anywhere in the cube, each put back into it. `relative_step`: in epsilons.

    0.25 is the usual 2/255 of 8/255. 2/255 at any radius would jump from corner to corner of a small cube, and not
    cross a large one in 20 steps: both leave more accuracy.
    """
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    start = 2 * torch.rand(images.shape, generator=generator).to(images.device) - 1
    attacked = (images + epsilon * start).clamp(0, 1)
    for _ in range(steps):
        attacked = (attacked + epsilon * relative_step * _gradient(model, attacked, labels).sign()).clamp(low, high)
    return attacked


# As long as the cubes' radii on 32 pixels: 1/255 there is 0.22, 8/255 is 1.74. 0.5: RobustBench's for CIFAR.
@attack("PGD in L2", cite="Madry et al., ICLR 2018", norm="L2", epsilons=(0, 0.125, 0.25, 0.5, 1, 2), unit=1)
def pgd_l2(
    model: Model,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    generator: Generator,
    *,
    steps: int = 20,
    relative_step: float = 0.25,
) -> Tensor:
    """Steps along the gradient, from anywhere in the ball, each put back into it. `relative_step`: in epsilons.

    0.25 as in pgd. By 2.5 / steps a start at right angles to the gradient, as all are in so many dimensions, is not
    quite left: 2 % less of a linear model's margin would fall.
    """
    normal = torch.randn(len(images), images[0].numel() + 2, generator=generator).to(images.device)
    start = F.normalize(normal)[:, 2:].reshape(images.shape)  # of a sphere, less two coordinates: uniform in the ball
    attacked = (images + epsilon * start).clamp(0, 1)
    for _ in range(steps):
        along = F.normalize(_gradient(model, attacked, labels).flatten(1)).view(images.shape)
        moved = attacked - images + epsilon * relative_step * along
        attacked = (images + moved.renorm(2, 0, epsilon)).clamp(0, 1)
    return attacked


@attack("random signs")
def noise(images: Tensor, epsilon: float, generator: Generator) -> Tensor:
    """The control: every pixel moved by epsilon, up or down by chance."""
    signs = 2 * torch.randint(2, images.shape, generator=generator) - 1
    return (images + epsilon * signs.to(images.device)).clamp(0, 1)


@torch.inference_mode(False)  # gradients can be had from here on, whatever the caller has switched off
@acceleration.exact()
def attacked_logits(
    model: nn.Module, split: Split, data: ImageData, attack: str | Choice, epsilon: float, seed: int = 0
) -> Tensor:
    """The model's logits (N, C), float32, for the attacked images of a split, the same draws for every model.

    `epsilon`: in the attack's own unit, 8 is 8/255 for fgsm; at 0 they are evaluation.predict's. The model's own mode
    holds, and its parameters get no gradient. Raises ValueError for an unknown attack or a negative epsilon.
    """
    chosen = ATTACKS.choose(attack)
    if epsilon < 0:
        raise ValueError(f"epsilon is a radius, not {epsilon}")
    if epsilon == 0:
        return evaluation.predict(model, split, data)
    answer = in_pixels(model, data)
    draws = generator(seed, chosen.name, str(float(epsilon)))
    indices = torch.arange(len(split)).split(evaluation.BATCH_SIZES[split.labels.device.type])
    bar = {"total": len(indices), "desc": chosen.name, "unit": "batch", "leave": False, "delay": 1}
    logits = []
    for images, labels in tqdm(split.batches(indices), **bar):
        about = {"images": images.float().div_(255), "labels": labels, "epsilon": epsilon * chosen.entry.unit}
        attacked = chosen(model=answer, generator=draws, **about)
        with torch.no_grad():
            logits.append(answer(attacked))
    return torch.cat(logits)


def masking_check(model: nn.Module, split: Split, data: ImageData, seed: int = 0) -> list[dict]:
    """Whether the attacks can be believed of a model: a row for each sign that its gradients are not masked.

    A row: check, in words; top1, in percent, by what was measured; held. 106 gradients an image: a subset will do.
    Athalye et al., ICML 2018, section 3.1; Carlini et al., 2019, arXiv 1902.06705.
    """

    def top1(attack: str, radius: int) -> float:
        return evaluation.accuracy(attacked_logits(model, split, data, attack, radius, seed), split.labels)

    steps = {count: top1(f"pgd:steps={count}", 8) for count in (5, 10, 20, 50)}
    clean, near, far = top1("pgd", 0), steps[20], top1("pgd", 64)
    near_by_chance, far_by_chance = top1("noise", 8), top1("noise", 64)
    single = top1("fgsm", 8)
    radii = {"clean": clean, "pgd 8/255": near, "pgd 64/255": far}
    signs = {"noise 8/255": near_by_chance, "pgd 8/255": near, "noise 64/255": far_by_chance, "pgd 64/255": far}
    checks = (
        ("a larger radius leaves less, 64/255 below 1 %", radii, _falls(clean, near, far) and far < 1),
        ("random signs hurt less than pgd", signs, near < near_by_chance and far < far_by_chance),
        ("more steps hurt no less", {f"{count} steps": left for count, left in steps.items()}, _falls(*steps.values())),
        ("twenty steps hurt no less than one", {"fgsm 8/255": single, "pgd 8/255": near}, _falls(single, near)),
    )
    return [{"check": check, "top1": measured, "held": held} for check, measured, held in checks]


def in_pixels(model: nn.Module, data: ImageData) -> Model:
    """The model of pixels (B, 3, H, W) float32 in [0, 1]: first normalised, as data.normalize does with bytes."""
    statistics = torch.tensor((data.mean, data.std)).view(2, -1, 1, 1)

    def answer(pixels: Tensor) -> Tensor:
        mean, std = statistics.to(pixels.device, non_blocking=True)
        return model(pixels.sub(mean).div(std).contiguous(memory_format=torch.channels_last)).float()

    return answer


def _falls(*top1: float) -> bool:
    return all(later <= earlier + SLACK for earlier, later in pairwise(top1))


def _gradient(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """Of each image's log odds against its label: cross-entropy's over 1 - p, which rounds to 0 in a sure model."""
    images, label = images.detach().requires_grad_(), labels[:, None]
    logits = model(images)
    against = logits.scatter(1, label, -torch.inf).logsumexp(1, keepdim=True) - logits.gather(1, label)
    return torch.autograd.grad(against.sum(), images)[0]
