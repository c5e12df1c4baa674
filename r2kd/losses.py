"""Distillation losses: scalar = loss(student_logits, teacher_logits[, target]); logits are (B, C).

Each loss computes in float32 at least, whatever autocast hands it, and is finite for peaked, equal and constant logits.
Gradients flow to both arguments; a training step computes the teacher's logits without gradient.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = [
    "cross_entropy",
    "dist_loss",
    "dkd_loss",
    "kd_loss",
    "mlkd_loss",
    "mlkd_terms",
    "rank_loss",
    "soft_rank_loss",
]
__all__ += ["standardise", "value_loss"]

_EPS = 1e-8
_FLAT = 1e-8  # squared; the soft ranks of a sample whose classes differ clearly have norm 1


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """KL divergence of the softened outputs, times T^2, mean over samples. Unweighted.

    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", NIPS workshop 2014, section 2.
    """
    student, teacher = _at_least_float32(student_logits, teacher_logits)
    log_p_student = F.log_softmax(student / temperature, dim=1)
    log_p_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p_student, log_p_teacher, reduction="batchmean", log_target=True)


def value_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """R2KD's value-based correlation distance as released: one minus the mean absolute cosine, times T^2. Unweighted.

    With p = softmax(logits / T): the distance between the rows of p (a sample's classes) plus that between its columns
    (a class over the batch); in [0, 2 T^2]. Not centred: Eisen's cosine, no Pearson correlation (see dist_loss). A class
    that nobody gives weight to counts as distance 1, even from itself. Kim et al., TKDE 2024; released code.
    """
    p_student, p_teacher = _soften(student_logits, teacher_logits, temperature)
    over_samples = 1 - _cosine(p_student, p_teacher).abs().mean()
    over_classes = 1 - _cosine(p_student.T, p_teacher.T).abs().mean()
    return temperature**2 * (over_samples + over_classes)


def rank_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """R2KD's rank-based correlation distance as released: one minus the mean Spearman correlation, in [0, 2]. Unweighted.

    The ranks come from argsort, so this term has a value but no gradient: it never moves the student.
    Kim et al., TKDE 2024; released code.
    """
    p_student, p_teacher = _soften(student_logits, teacher_logits, temperature)
    return 1 - _cosine(_centred_ranks(p_student), _centred_ranks(p_teacher)).mean()


def soft_rank_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0, regularisation: float = 0.1
) -> Tensor:
    """A rank distance that teaches: one minus the mean Spearman correlation of soft ranks, in [0, 2]. Unweighted.

    The soft rank of class i is 1/2 + sum_j sigmoid((z_i - z_j) / (regularisation T)): the hard rank as `regularisation`
    goes to 0, where the loss is rank_loss (up to 1e-6); where it is large against the spread of the logits the ranks are
    linear in them, and the loss is one minus their Pearson correlation. Both sides are ranked alike: equal logits are at
    distance 0, unless they differ by less than about 1e-4 of a temperature.
    Memory is O(B C^2): 10 MB for 64 samples of 200 classes, 256 MB of 1,000. Raises ValueError unless regularisation > 0.
    Pairwise sigmoid ranks: Qin, Liu & Li, "A general approximation framework for direct optimization of information
    retrieval measures", Information Retrieval 2010.
    """
    if not regularisation > 0:
        raise ValueError(f"the regularisation of the soft ranks must be above 0, not {regularisation}")
    student, teacher = _at_least_float32(student_logits, teacher_logits)
    a, b = (_centred_soft_ranks(logits / (regularisation * temperature)) for logits in (student, teacher))
    # not _cosine: its epsilon would let the gradient of a sample whose logits are all alike grow to 1e8
    norms = (a.square().sum(dim=1) + _FLAT) * (b.square().sum(dim=1) + _FLAT)
    return 1 - ((a * b).sum(dim=1) * norms.rsqrt()).mean()


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """DIST: one minus the mean Pearson correlation of the softened outputs, times T^2, in [0, 2 T^2 (beta + gamma)].

    `beta` weights the correlation over a sample's classes, `gamma` that of a class over the batch. With both 1 it is
    value_loss, centred and with its sign. Huang et al., "Knowledge distillation from a stronger teacher", NeurIPS 2022.
    """
    p_student, p_teacher = _soften(student_logits, teacher_logits, temperature)
    over_samples = 1 - _cosine(_centred(p_student), _centred(p_teacher)).mean()
    over_classes = 1 - _cosine(_centred(p_student.T), _centred(p_teacher.T)).mean()
    return temperature**2 * (beta * over_samples + gamma * over_classes)


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """DKD: `alpha` times the KL divergence of (target, any other class), `beta` times that among the other classes. Times T^2.

    `target` (B,) int64. Means over samples; needs two classes that are not the target to say anything with `beta`.
    Zhao et al., "Decoupled knowledge distillation", CVPR 2022, equation 7; released code.
    """
    student, teacher = _at_least_float32(student_logits / temperature, teacher_logits / temperature)
    others = torch.arange(student.shape[1], device=target.device) != target[:, None]
    split = [_target_and_others(logits, others) for logits in (student, teacher)]
    (student_target, student_others), (teacher_target, teacher_others) = split
    target_kl = F.kl_div(student_target, teacher_target, reduction="batchmean", log_target=True)
    apart = (teacher_others - student_others).masked_fill(~others, 0)  # of the target itself it is inf - inf
    others_kl = (teacher_others.exp() * apart).sum(dim=1).mean()
    return temperature**2 * (alpha * target_kl + beta * others_kl)


def standardise(logits: Tensor) -> Tensor:
    """Logit standardisation: each row minus its mean, divided by its standard deviation (of C - 1). KD and others take it as logits.

    Sun et al., "Logit standardization in knowledge distillation", CVPR 2024, algorithm 1; released code.
    """
    (values,) = _at_least_float32(logits)
    return _centred(values) / (values.std(dim=1, keepdim=True) + 1e-7)


def mlkd_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_strong: Tensor,
    teacher_strong: Tensor,
    temperature: float = 4.0,
    standardised: bool = False,
    mask: Literal["mean", "select"] = "mean",
    strong_temperatures: Literal["mixed", "own"] = "mixed",
    strong_terms: Literal["dropped", "kept"] = "dropped",
) -> dict[str, Tensor]:
    """What MLKD aligns of a weak and a strong view of a batch, each summed over the temperatures `temperature`, 3, 5, 2 and 6.

    kd: KL divergence (of `standardised` logits, if so); cc: squared distance of the classes' products p^T p, over C; bc: that of
    the samples' products p p^T, over B. Unweighted. The weak view's kd and bc count the half of the samples that the teacher is
    least sure of, its cc the half of the classes that it gives least weight to. As released each is a switch:

    mask: "mean" scales the whole term by the share of the mask, and selects nothing; "select" leaves the other half out.
    strong_temperatures: "mixed" gives the last two temperatures of the strong view the weak view's logits; "own" its own.
    strong_terms: cc and bc of the strong view are "dropped", or "kept".

    Jin, Wang & Lin, "Multi-level logit distillation", CVPR 2023; released code, KD_ours.py.
    """
    weak, strong = (student_logits, teacher_logits), (student_strong, teacher_strong)
    certain = teacher_logits.softmax(dim=1)
    samples, classes = _lower_half(certain.amax(dim=1)), _lower_half(certain.sum(dim=0))
    ready = standardise if standardised else lambda logits: logits

    def kl(view: tuple[Tensor, Tensor], t: float) -> Tensor:
        student, teacher = (F.log_softmax(logits / t, dim=1) for logits in _at_least_float32(*map(ready, view)))
        return t**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)

    def products(view: tuple[Tensor, Tensor], t: float, over_classes: bool) -> Tensor:
        student, teacher = (p.T if over_classes else p for p in _soften(*view, t))
        return (teacher @ teacher.T - student @ student.T).square().sum(dim=1)

    def masked(rows: Tensor, of: Tensor) -> Tensor:
        return (rows * of).mean() if mask == "select" else rows.mean() * of.mean()

    terms = dict.fromkeys(("kd", "cc", "bc"), student_logits.new_zeros(()))
    for place, t in enumerate((temperature, 3.0, 5.0, 2.0, 6.0)):
        view = weak if strong_temperatures == "mixed" and place > 2 else strong
        terms["kd"] = terms["kd"] + masked(kl(weak, t), samples) + kl(view, t).mean()
        terms["cc"] = terms["cc"] + masked(products(weak, t, True), classes)
        terms["bc"] = terms["bc"] + masked(products(weak, t, False), samples)
        if strong_terms == "kept":
            terms["cc"] = terms["cc"] + products(view, t, True).mean()
            terms["bc"] = terms["bc"] + masked(products(strong, t, False), samples)
    return terms


def mlkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    student_strong: Tensor,
    teacher_strong: Tensor,
    ce_weight: float = 0.1,
    kd_weight: float = 0.9,
    **switches,
) -> Tensor:
    """MLKD: `ce_weight` times the cross-entropy of both views plus `kd_weight` times the sum of mlkd_terms(**switches)."""
    ce = cross_entropy(student_logits, target) + cross_entropy(student_strong, target)
    terms = mlkd_terms(student_logits, teacher_logits, student_strong, teacher_strong, **switches)
    return ce_weight * ce + kd_weight * sum(terms.values())


def _lower_half(values: Tensor) -> Tensor:
    """1 where a value is at most the median (of an even count the mean of the middle two), else 0; of the values' type."""
    values = values.detach()
    return (values <= values.quantile(0.5)).to(values.dtype)


def _target_and_others(logits: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, not target), (B, 2), and of the classes given that it is not the target, (B, C)."""
    log_p = logits.log_softmax(dim=1)
    log_target = log_p.masked_fill(others, -torch.inf).logsumexp(dim=1)
    log_rest = log_p.masked_fill(~others, -torch.inf).logsumexp(dim=1)
    return torch.stack((log_target, log_rest), dim=1), logits.masked_fill(~others, -torch.inf).log_softmax(dim=1)


def _at_least_float32(*logits: Tensor) -> tuple[Tensor, ...]:
    return tuple(values.to(torch.promote_types(values.dtype, torch.float32)) for values in logits)


def _soften(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student, teacher = _at_least_float32(student_logits, teacher_logits)
    return (student / temperature).softmax(dim=1), (teacher / temperature).softmax(dim=1)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of each row of `a` with the same row of `b`; 0 where a row is 0.

    The released code adds its epsilon to the product of the norms where F.cosine_similarity bounds each norm from below:
    for a class that no sample gives weight to, the two differ.
    """
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + _EPS)


def _centred_ranks(values: Tensor) -> Tensor:
    """Ranks within each row, 1 for the smallest, as a share of their sum, minus the row's mean."""
    classes = values.shape[1]
    ranks = values.argsort(dim=1).argsort(dim=1).to(values.dtype) + 1
    ranks = ranks / (classes * (classes + 1) / 2)
    return _centred(ranks)


def _centred_soft_ranks(values: Tensor) -> Tensor:
    """Soft ranks within each row, minus their mean, in units of the norm that the hard ones have. O(B C^2)."""
    classes = values.shape[1]
    ranks = (values[:, :, None] - values[:, None, :]).sigmoid().sum(dim=2)
    return _centred(ranks) / max(classes * (classes**2 - 1) / 12, 1) ** 0.5


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(dim=1, keepdim=True)
