"""Methods of distillation, one entry each: what a student is taught on one view of a batch.

A training minimises `ce_weight` times the cross-entropy of the clean view plus the method's loss, a scalar, of each view.
What a method can ask for, of the view in question:

    student, teacher   logits (B, C)
    target             (B,) the labels, where the view keeps them
    index              (B,) the image of the batch that each of the view's came from
    epoch              the epoch, from 1, a tensor (): a Python number would freeze in a CUDA graph
    view               "clean" or "augmented"; clean: the Answers to the clean view

A method that asks for no teacher has none. Facts of an entry: `pruning_rate`, of the teacher's copy where nothing else is said;
`second_view`, whether it cannot do without an augmented view; `of_pair`, a function (teacher, student), both model names, of the
options that its authors chose by the pair; `learning_rate`, where its authors start lower than others: the smaller of it and the
model's own. All of them hold where nothing else is said.
"""

from typing import Any, Literal, NamedTuple

from torch import Tensor

from . import losses
from .entries import Registry

METHODS = Registry(
    "method",
    gives=("student", "teacher", "target", "index", "epoch", "view", "clean"),
    facts={
        "pruning_rate": 0.0,
        "second_view": False,
        "of_pair": lambda teacher, student: {},
        "learning_rate": float("inf"),
    },
    shared={"ce_weight": 1.0},
)
method = METHODS.entry


class Answers(NamedTuple):
    """What student and teacher say to a view, (B, C) each, and its labels (B,); None where there is none."""

    student: Tensor
    teacher: Tensor | None
    target: Tensor | None


@method("cross-entropy")
def ce(student: Tensor) -> Tensor:
    """The labels alone."""
    return student.new_zeros(())


@method("KD", cite="Hinton, Vinyals & Dean, NIPS workshop 2014")
def kd(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, kd_weight: float = 1.0, standardise: bool = False
) -> Tensor:
    """KL divergence. With the cross-entropy at full weight, so that from R2KD only the distance differs.

    The field's recipe: ce_weight 0.1, kd_weight 0.9. With logit standardisation (Sun et al., CVPR 2024): ce_weight 0.1,
    kd_weight 9, temperature 2, standardise.
    """
    student, teacher = _ready(standardise, student, teacher)
    return kd_weight * losses.kd_loss(student, teacher, temperature)


@method("R2KD", cite="Kim et al., IEEE TKDE 2024", pruning_rate=0.1)
def r2kd(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 4.0,
    value_weight: float = 2.0,
    rank_weight: float = 2.0,
    value: Literal["cosine", "pearson"] = "cosine",
    rank: Literal["hard", "soft"] = "hard",
    rank_regularisation: float = 0.1,
) -> Tensor:
    """Correlation distance by value and by rank; see fidelity.SWITCHES for `value` and `rank`."""
    values = {"cosine": losses.value_loss, "pearson": losses.dist_loss}[value](student, teacher, temperature)
    if rank == "hard":
        ranks = losses.rank_loss(student, teacher, temperature)
    else:
        ranks = losses.soft_rank_loss(student, teacher, temperature, rank_regularisation)
    return value_weight * values + rank_weight * ranks


_BETAS = {("resnet56", "resnet20"): 2.0, ("resnet32x4", "resnet8x4"): 8.0, ("resnet32x4", "ShuffleV2"): 8.0}


def _dkd_of_pair(teacher: str, student: str) -> dict[str, Any]:
    """The released configurations of CIFAR-100."""
    return {"beta": _BETAS.get((teacher, student), 6.0)}


@method("DKD", cite="Zhao et al., CVPR 2022", of_pair=_dkd_of_pair)
def dkd(
    student: Tensor,
    teacher: Tensor,
    *,
    target: Tensor,
    epoch: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    warmup_epochs: float = 20.0,
    standardise: bool = False,
) -> Tensor:
    """Target and other classes apart; its weight grows linearly over the first epochs, as released: 20 of 240."""
    student, teacher = _ready(standardise, student, teacher)
    warm = (epoch / warmup_epochs).clamp(max=1.0)
    return warm * losses.dkd_loss(student, teacher, target, temperature, alpha, beta)


@method("DIST", cite="Huang et al., NeurIPS 2022")
def dist(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, beta: float = 2.0, gamma: float = 2.0
) -> Tensor:
    """Pearson's correlation over a sample's classes and of a class over the batch; weights of the recipe for CIFAR."""
    return losses.dist_loss(student, teacher, temperature, beta, gamma)


@method("MLKD", cite="Jin, Wang & Lin, CVPR 2023", second_view=True, learning_rate=0.025, ce_weight=0.1)
def mlkd(
    student: Tensor,
    teacher: Tensor,
    view: str,
    clean: Answers,
    *,
    target: Tensor,
    temperature: float = 4.0,
    kd_weight: float = 0.9,
    strong_ce_weight: float = 0.1,
    standardise: bool = False,
    mask: Literal["mean", "select"] = "mean",
    strong_temperatures: Literal["mixed", "own"] = "mixed",
    strong_terms: Literal["dropped", "kept"] = "dropped",
) -> Tensor:
    """Samples, classes and batch aligned at five temperatures; see losses.mlkd_terms, and fidelity.SWITCHES for the last three.

    All of it is said of the augmented view, whose samples are those of the clean one. The released recipe: randaugment, and half of
    the usual learning rate, 0.025 (0.01 as usual for MobileNetV2 and ShuffleV2).
    """
    if view == "clean":
        return student.new_zeros(())
    terms = losses.mlkd_terms(
        clean.student,
        clean.teacher,
        student,
        teacher,
        temperature,
        standardise,
        mask,
        strong_temperatures,
        strong_terms,
    )
    return strong_ce_weight * losses.cross_entropy(student, target) + kd_weight * sum(terms.values())


def _ready(standardise: bool, *logits: Tensor) -> tuple[Tensor, ...]:
    return tuple(map(losses.standardise, logits)) if standardise else logits
