"""A model that only answers, made cheaper: BatchNorm folded into convolutions and, in bfloat16 on a CPU, what follows them too."""

import copy
import operator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from . import acceleration
from .emulation import rounded

_RELUS, _ADDITIONS = {F.relu, torch.relu}, {operator.add, operator.iadd, torch.add}


def frozen(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of `model` for inference: eval mode, no gradient, channels-last, BatchNorm folded into the convolution before it.

    Equal to the model in eval mode up to rounding. `dtype` is of the convolutions and linear layers. A model that torch cannot
    trace, as a user's may be, is copied as it is.
    """
    try:
        folded = fuse(model.eval())  # torch copies what it folds
    except Exception:  # whatever a user's forward does with what is not a tensor
        folded = copy.deepcopy(model)
    folded.requires_grad_(False)
    for layer in folded.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(dtype)
    folded.to(memory_format=acceleration.layout())
    on_cpu = all(parameter.device.type == "cpu" for parameter in folded.parameters())
    if dtype == torch.bfloat16 and on_cpu and isinstance(folded, fx.GraphModule):
        _join_relus(folded)
    return folded


class _ConvolutionReLU(nn.Module):
    """relu(convolution + other), `other` being optional, as one operation of oneDNN: torch's own ReLU in bfloat16 takes a fifth
    of the time of the convolution before it."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        layer = self.convolution
        if acceleration.emulates(images.device, "bfloat16"):
            return self._in_float32(images, other)
        images = images.to(layer.weight.dtype).contiguous(memory_format=torch.channels_last)  # else it adds nothing
        about = (layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups)
        joined = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return joined(images, *about, "relu", [], "")
        if other.shape != self._shape(images):  # oneDNN adds nothing that would have to be repeated
            return F.relu(layer(images) + other)
        return joined.binary(images, other.to(images.dtype), *about, "add", 1.0, "relu", [], "")

    def _in_float32(self, images: Tensor, other: Tensor | None) -> Tensor:
        """Rounded to bfloat16 where that one operation is: what it is given, and what comes out."""
        layer = self.convolution
        with torch.autocast(images.device.type, enabled=False):
            sums = layer._conv_forward(*map(rounded, (images, layer.weight, layer.bias)))
            return F.relu(sums if other is None else sums + rounded(other)).to(layer.weight.dtype)

    def _shape(self, images: Tensor) -> tuple[int, ...]:
        layer = self.convolution
        kept = zip(images.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
        sides = (
            (side + 2 * pad - dilation * (kernel - 1) - 1) // step + 1 for side, pad, dilation, kernel, step in kept
        )
        return (len(images), layer.out_channels, *sides)


def _join_relus(model: fx.GraphModule) -> None:
    """Put one operation in the place of each convolution whose only reader is a ReLU, or an addition that a ReLU reads."""
    if not _can_join():
        return
    modules = dict(model.named_modules())
    for relu in list(model.graph.nodes):
        if not _is_relu(relu, modules):
            continue
        before, other = relu.args[0], None
        if before.target in _ADDITIONS and len(before.args) == 2 and len(before.users) == 1:
            read = [given for given in before.args if isinstance(given, fx.Node)]
            convolution = next((node for node in read if _is_convolution(node, modules)), None)
            if len(read) < 2 or convolution is None:
                continue
            before, other = convolution, next(node for node in read if node is not convolution)
        elif not _is_convolution(before, modules):
            continue
        name = f"{before.target.replace('.', '_')}_relu"
        model.add_submodule(name, _ConvolutionReLU(modules[before.target]))
        with model.graph.inserting_before(relu):
            joined = model.graph.call_module(name, (before.args[0],) if other is None else (before.args[0], other))
        relu.replace_all_uses_with(joined)
    model.graph.eliminate_dead_code()
    model.delete_all_unused_submodules()
    model.recompile()


@cache
def _can_join() -> bool:
    """Whether this torch has the operations, which are not of its public interface."""
    image = torch.ones(1, 2, 2, 2, dtype=torch.bfloat16)
    layer = _ConvolutionReLU(nn.Conv2d(2, 2, 1).to(torch.bfloat16))
    try:
        with torch.no_grad():
            layer(image), layer(image, image)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return node.target in _RELUS or (node.op == "call_module" and type(modules[node.target]) is nn.ReLU)


def _is_convolution(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """A plain convolution that nothing else reads and whose padding is numbers of zeros."""
    layer = modules.get(node.target) if node.op == "call_module" else None
    if type(layer) is not nn.Conv2d or len(node.users) > 1:
        return False
    full = layer.groups == 1 < layer.in_channels  # to others torch adds nothing in bfloat16
    return full and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
