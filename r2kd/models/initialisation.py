"""The weights that a model starts from."""

from torch import nn


def kaiming_(model: nn.Module, linear_std: float | None = None) -> None:
    """Fill the convolutions as the field's small-image networks do: normal with variance 2 / fan-out, biases zero.

    `linear_std`: also fill the Linear weights, normal with this standard deviation; else they keep torch's default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
            nn.init.zeros_(module.bias)
