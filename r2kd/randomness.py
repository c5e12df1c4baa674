"""Every random draw comes from a generator seeded from (seed, what it is for)."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose: other purposes, other seeds and the global generator do not touch it."""
    return torch.Generator().manual_seed(_mix(seed, purpose))


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """The global CPU generator seeded for one purpose, put back afterwards: for code that takes no generator (layers)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_mix(seed, purpose))
        yield


def _mix(seed: int, purpose: tuple) -> int:
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
