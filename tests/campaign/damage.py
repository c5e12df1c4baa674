"""What can happen to a file."""

from collections.abc import Callable
from pathlib import Path
from random import Random


def _flip(path: Path, draws: Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, draws: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draws.randrange(len(content) + 1)])


def _folder(path: Path, draws: Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, Random], object]] = {
    "a flipped bit": _flip,
    "cut short": _cut,
    "empty": lambda path, draws: path.write_bytes(b""),
    "zeros": lambda path, draws: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path, draws: path.write_bytes(draws.randbytes(200)),
    "another kind": lambda path, draws: path.write_bytes(b"[1, 2, 3]\n"),
    "a folder in its place": _folder,
    "gone": lambda path, draws: path.unlink(),
}
