"""Devices, and what makes the same arithmetic cheaper on them: half precision, memory that is kept, graphs on a GPU."""

import ctypes
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .emulation import Bfloat16InFloat32

T = TypeVar("T")
AHEAD = 2  # calls that may be under way on a lane while the next one is prepared
WARM_UP = 3  # eager calls before a capture: libraries set themselves up in the first ones
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # glibc's malloc.h


@cache  # asked again and again, and said once
def _lacking(name: str) -> str:
    """Why a device cannot be used, in a line; empty where it can: it has computed something."""
    try:
        torch.ones(2, device=name).add_(1).sum().item()  # where the wheel has no kernels for a GPU, only this fails
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return ""


@cache
def _usable_gpu() -> bool:
    if not torch.cuda.is_available():
        return False
    if why := _lacking("cuda"):
        print(f"the GPU is left alone, it does not compute here ({why}): on the CPU instead", file=sys.stderr)
    return not why


def resolve_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one that computes, else the CPU. A GPU becomes the current one.

    Raises ValueError for a device that is not here, and for one that is neither: on mps, torch's BatchNorm over channels-last
    images, copies that do not wait and float64 go wrong without an error.
    """
    if name == "auto":
        name = "cuda" if _usable_gpu() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: auto, cpu, cuda or cuda:1 are")
    if why := _lacking(name):
        raise ValueError(f"device {name!r} is not to be had here: {why}")
    device = torch.device(name)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_device(device)  # streams, graphs and what asks for no device are made on the current one
    return device


def precision(device: torch.device, asked: str = "auto") -> str:
    """ "float32" or "bfloat16", as asked for; "auto" is bfloat16 on a GPU that computes in it, float32 elsewhere."""
    if asked != "auto":
        return asked
    return "bfloat16" if device.type == "cuda" and native_bfloat16(device) else "float32"


@cache
def native_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; of a CPU that does not tell (no Linux) False."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def emulates(device: torch.device, precision: str) -> bool:
    """Whether this precision is float32's arithmetic here, rounded: on a CPU without instructions for it."""
    return precision == "bfloat16" and device.type == "cpu" and not native_bfloat16(device)


def carried_out(device: torch.device, precision: str) -> str:
    """In words for a record: the precision, and whether it is emulated."""
    return f"{precision} in float32" if emulates(device, precision) else precision


@cache  # once
def say_if_slow(device: torch.device) -> None:
    """Of bfloat16, on stderr."""
    if not native_bfloat16(device):
        how = "rounded to it in float32, and no faster" if emulates(device, "bfloat16") else "it will be slow"
        print(f"this processor has no instructions for bfloat16: {how}", file=sys.stderr)


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Convolutions and matrix products in this precision; what follows them, BatchNorm's statistics apart, in it too."""
    emulation = Bfloat16InFloat32() if emulates(device, precision) else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"), emulation:
        yield


class SideBySide:
    """Calls that run side by side on a CPU, each on a thread of the program that has `threads` of torch's.

    A step of a small network is too little work for two cores: a step on each of them is done sooner than the two, one after the
    other, on both. And what is computed by one thread is the same on any number of cores. Without `threads`, with no more
    than them, and elsewhere than on a CPU calls run one after the other.
    """

    def __init__(self, device: torch.device, threads: int | None = None) -> None:
        allowed = torch.get_num_threads()
        self.threads = min(threads or allowed, allowed) if device.type == "cpu" else allowed
        self._pool = ThreadPoolExecutor(allowed // self.threads, "r2kd") if self.threads < allowed else None
        if self._pool:
            all_there = threading.Barrier(allowed // self.threads)
            self._wait([self._pool.submit(self._take_share, all_there) for _ in range(all_there.parties)])
            torch.set_num_threads(allowed)  # threads that start later take the number that was set last

    def __call__(self, function: Callable[[T], Any], items: Iterable[T]) -> None:
        """The function of each item, all done when it returns. What one raises is raised once the others are done."""
        if self._pool:
            self._wait([self._pool.submit(_once, [partial(function, item)]) for item in items])
        else:
            for item in items:
                function(item)

    def __enter__(self) -> "SideBySide":
        return self

    def __exit__(self, *_) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _take_share(self, all_there: threading.Barrier) -> None:
        torch.get_num_threads()  # the first call on a thread takes the number that was set last, so before
        torch.set_num_threads(self.threads)  # this thread's
        all_there.wait()

    @staticmethod
    def _wait(calls: list[Future]) -> None:
        wait_for(calls)
        try:
            while calls:
                calls.pop(0).result()
        finally:
            calls.clear()  # the error of one leads back to this frame


def _once(call: list[Callable[[], Any]]) -> None:
    """The call, which is gone then: an error that it has kept leads to the frames that it was called from, and they to the item."""
    call.pop()()


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


@contextmanager
def exact() -> Iterator[None]:
    """Convolutions and products that are float32 in earnest, without TF32, and the same at each call."""
    matmul = torch.backends.cuda.matmul
    allowed, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = allowed


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked for: before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@cache  # the same again for the next training: torch keeps a workspace of tens of MiB for each stream that it has seen
def _stream(device: torch.device, name: str | int) -> "torch.cuda.Stream":
    return torch.cuda.Stream(device)


class Lane:
    """A stream of a GPU and the CUDA graphs that are replayed on it, one after the other, in one pool of memory.

    What runs on lanes of different names runs side by side. On another device there is one lane, the program itself.
    """

    def __init__(self, device: torch.device, name: str | int = 0) -> None:
        self.stream = self.pool = None
        self.graphs: list[torch.cuda.CUDAGraph] = []
        if device.type == "cuda":
            self.stream, self.pool = _stream(device, name), torch.cuda.graph_pool_handle()

    def join(self) -> None:
        """What follows waits, on the device, for what was asked for on this lane."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)

    def release(self) -> None:
        """Let the graphs go and their memory with them, once they are done. They go together: torch 2.12 to 2.14 frees with one
        graph a workspace that others use."""
        if self.stream is not None:
            self.stream.synchronize()
        for graph in self.graphs:
            graph.reset()
        self.graphs.clear()


class Replayed:
    """A function of CUDA tensors, captured in a CUDA graph at its fourth call with the same shapes and replayed from then on.

    A batch of 64 small images leaves a GPU waiting for the launches of kernels; a graph is one launch. The function, the same at
    each call, may write in place to tensors that outlive it, which must stay where they are. What it returns is overwritten by
    the next call, and is to be read after `lane.join()`. What cannot be captured, as it reads a value back or memory is short,
    runs call by call. On another device than a GPU it is the function itself.
    """

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self._under_way: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()
        self._calls: dict[tuple, int] = {}
        self._graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor | None] | None] = {}

    def __call__(self, function: Callable[..., Tensor | None], *inputs: Tensor) -> Tensor | None:
        if self.lane.stream is None:
            return function(*inputs)
        self.lane.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.lane.stream):
            output = self._run(function, inputs)
            self._under_way.append((self.lane.stream.record_event(), inputs))
        if len(self._under_way) > AHEAD:
            done, kept = self._under_way.popleft()
            torch.cuda.current_stream().wait_event(done)  # before the memory of `kept` is used again
            del kept
        return output

    def _run(self, function: Callable[..., Tensor | None], inputs: tuple[Tensor, ...]) -> Tensor | None:
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        self._calls[shapes] = self._calls.get(shapes, 0) + 1
        if self._calls[shapes] <= WARM_UP:
            return function(*inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._capture(function, inputs)
        if self._graphs[shapes] is None:
            return function(*inputs)
        graph, held, output = self._graphs[shapes]
        for tensor, given in zip(held, inputs, strict=True):
            tensor.copy_(given)
        graph.replay()
        return output

    def _capture(
        self, function: Callable[..., Tensor | None], inputs: tuple[Tensor, ...]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor | None] | None:
        """The graph, the tensors that it reads and what it returns; None where the function cannot be captured."""
        held = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        self.lane.graphs.append(graph)  # one that fails lives as long as the others, too
        # thread_local: a DataLoader's thread that pins memory meanwhile must not break the capture
        mode = {"pool": self.lane.pool, "stream": self.lane.stream, "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.graph(graph, **mode):
                output = function(*held)
        except RuntimeError as error:
            clear_frames(error)
            # before torch 2.12 the allocator goes on recording into the pool of a capture that broke
            with suppress(Exception):
                torch._C._cuda_endAllocateToPool(self.lane.stream.device_index, self.lane.pool)
            self.lane.pool = torch.cuda.graph_pool_handle()
            why = str(error.__context__ or error).splitlines()[0]
            print(f"no CUDA graph, so slower: {why}", file=sys.stderr)
            return None
        return graph, held, output


def clear_frames(error: BaseException) -> None:
    """Let go of what the functions held that an error came through, and those that called them: activations, on a GPU."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            while frame is not None:
                with suppress(RuntimeError):  # it is still at work
                    frame.clear()
                frame = frame.f_back
        error = error.__context__
