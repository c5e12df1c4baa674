"""Every random draw comes from a generator seeded from (seed, what it is for)."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose: other purposes, other seeds and the global generator do not touch it."""
    return torch.Generator().manual_seed(_mix(seed, purpose))


@contextmanager
def seeded(seed: int, *purpose: str | int, device: torch.device | None = None) -> Iterator[None]:
    """The global CPU generator, and that of a GPU if it is the `device`, seeded for one purpose, put back afterwards: for code that
    takes no generator (layers)."""
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(_mix(seed, purpose))
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(_mix(seed, purpose))
        yield


def _mix(seed: int, purpose: tuple) -> int:
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
