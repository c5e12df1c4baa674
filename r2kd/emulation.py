"""bfloat16 on a CPU without instructions for it: its rounding, in float32's arithmetic."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}


class Bfloat16InFloat32(TorchFunctionMode):
    """Under autocast a convolution computes in float32, of operands rounded to bfloat16, and its result is rounded to it.

    Products of two bfloat16 are exact in float32, and instructions for bfloat16 add them up in float32, too: the order of
    these sums is all that differs, forward and backward. Torch's own convolution takes ten times as long without them.
    """

    def __torch_function__(
        self, function: Callable, types: tuple[type, ...], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in _CONVOLUTIONS or not torch.is_autocast_enabled("cpu"):
            return function(*args, **kwargs)
        args, kwargs = [rounded(value) for value in args], {name: rounded(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs).bfloat16()


def rounded(value: Any) -> Any:
    """A tensor, and in the backward pass its gradient, rounded to bfloat16 and held in float32; what is no tensor as it is."""
    return value.bfloat16().float() if isinstance(value, Tensor) else value
