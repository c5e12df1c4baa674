"""What makes the same arithmetic cheaper: a folded teacher, memory that is kept, half precision and graphs on a GPU."""

import copy
import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

_WARM_UP = 3  # eager calls before a capture: libraries set themselves up in the first ones
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # glibc's malloc.h


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
    return folded.to(memory_format=layout())


def resolve_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU. Raises ValueError for a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not to be had here: {str(error).splitlines()[0]}") from None
    return torch.device(name)


@cache  # asked at each step
def precision(device: torch.device, plain: bool = False) -> torch.dtype:
    """bfloat16 on a GPU that computes in it; float32 elsewhere, and wherever it is to be `plain`."""
    half = not plain and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if half else torch.float32


def autocast(device: torch.device, plain: bool = False) -> torch.autocast:
    """Convolutions and matrix products in the `precision` of the device."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device, plain) == torch.bfloat16)


def keep_freed_memory() -> bool:
    """Let the C library keep a freed tensor's memory for the next tensor; whether it can (glibc: Linux).

    By default it hands memory back to the system and is given it again page by page, each zeroed: at 64 pixels a third of a
    step. Holds for the process from then on; what it has once needed it keeps.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def layout(plain: bool = False) -> torch.memory_format:
    """Channels-last, in which convolutions run faster on both kinds of device; torch's default where it is to be `plain`."""
    return torch.contiguous_format if plain else torch.channels_last


class Replayed:
    """A function of CUDA tensors, captured in a CUDA graph at its fourth call with the same shapes and replayed from then on.

    A batch of 64 small images leaves a GPU waiting for the launches of kernels; a graph is one launch. The function may
    write in place to tensors that outlive it, which must stay where they are; it must read no value back. What it returns is
    overwritten by the next call. On another device it is the function itself.
    """

    def __init__(self, function: Callable[..., Tensor | None]) -> None:
        self._function = function
        self._calls: dict[tuple, int] = {}
        self._graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor | None]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor | None:
        if not inputs[0].is_cuda:
            return self._function(*inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        self._calls[shapes] = self._calls.get(shapes, 0) + 1
        if self._calls[shapes] <= _WARM_UP:
            return self._beside(inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._capture(inputs)
        graph, held, output = self._graphs[shapes]
        for tensor, given in zip(held, inputs, strict=True):
            tensor.copy_(given)
        graph.replay()
        return output

    def _beside(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """An eager call on a stream of its own, as torch asks for before a capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return output

    def _capture(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor | None]:
        held = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._function(*held)
        return graph, held, output
