"""A pruned copy of a teacher, its sparsity, and the mixture of the dense and the pruned teacher."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

BATCHNORM_MODES = ("running", "batch")


def prune_l1(model: nn.Module, rate: float) -> nn.Module:
    """A deep copy of `model` whose Conv2d and Linear weights lost, layer by layer, the share `rate` of smallest magnitude.

    Biases and BatchNorm stay whole; the zeros are permanent. `model` is left as it is.
    Released code: torch.nn.utils.prune.l1_unstructured per layer, rate 0.1. Raises ValueError unless 0 <= rate < 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the pruning rate is a share of the weights, 0 <= rate < 1, not {rate}")
    pruned = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # torch prunes no channels-last weight
    for _, layer in prunable_layers(pruned):
        prune.l1_unstructured(layer, "weight", amount=float(rate))
        prune.remove(layer, "weight")
    return pruned


def prunable_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, layer) of each layer that prune_l1 prunes."""
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def sparsity_table(model: nn.Module) -> list[dict]:
    """A row a prunable layer: layer, kind, weights, zeros, sparsity (share of zeros), and `threshold`, its smallest |weight| left."""
    rows = []
    for name, layer in prunable_layers(model):
        weight = layer.weight.detach()
        zeros = int((weight == 0).sum())
        left = weight[weight != 0].abs()
        rows.append(
            {
                "layer": name,
                "kind": type(layer).__name__,
                "weights": weight.numel(),
                "zeros": zeros,
                "sparsity": zeros / weight.numel(),
                "threshold": float(left.min()) if len(left) else 0.0,
            }
        )
    return rows


class MixedTeacher(nn.Module):
    """images (B, 3, H, W) -> logits (B, C): `dense_weight` times the dense teacher's plus the rest of the pruned one's.

    `pruned_batchnorm`: "running", the pruned teacher is in eval mode; "batch", as released, its BatchNorm normalises with
    the batch's own statistics (an image's logits depend on its neighbours) and its running statistics drift with each
    forward. The dense teacher is always in eval mode, whatever `train()` is told. Weights get no gradient.
    Raises ValueError for another mode, or a weight outside [0, 1].
    """

    def __init__(self, dense: nn.Module, pruned: nn.Module, dense_weight: float, pruned_batchnorm: str) -> None:
        super().__init__()
        if pruned_batchnorm not in BATCHNORM_MODES:
            raise ValueError(f"pruned_batchnorm is one of {', '.join(BATCHNORM_MODES)}, not {pruned_batchnorm!r}")
        if not 0 <= dense_weight <= 1:
            raise ValueError(f"dense_weight is a share, 0 <= dense_weight <= 1, not {dense_weight}")
        self.dense, self.pruned = dense, pruned
        self.dense_weight = dense_weight
        self.pruned_batchnorm = pruned_batchnorm
        self.train(False)

    def train(self, mode: bool = True) -> "MixedTeacher":
        """Teachers do not train: the modes of the two are fixed by `pruned_batchnorm`."""
        super().train(False)
        self.pruned.train(self.pruned_batchnorm == "batch")
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.mix(self.dense(images), self.pruned(images))

    def mix(self, dense_logits: Tensor, pruned_logits: Tensor) -> Tensor:
        """The mixture (B, C) of what the two answered."""
        return self.dense_weight * dense_logits + (1 - self.dense_weight) * pruned_logits
