"""Files between processes and power cuts: written whole or not at all, by one process at a time, never trusted blindly."""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; it survives a power cut. Raises OSError naming the file, say where the disk is full."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        _sync(unfinished, os.O_RDWR)
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise OSError(error.errno, f"{error.strerror}; what was written before is kept", str(path)) from None
    with suppress(OSError):  # not every system opens a folder
        _sync(path.parent, os.O_RDONLY)


def write_json(path: Path, value: Any) -> None:
    """Raises ValueError for a number that JSON cannot hold, NaN or infinite."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_table(path: Path, rows: list[dict] | pd.DataFrame) -> None:
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode())


def write_torch(path: Path, value: Any) -> None:
    """torch.save through memory: the bytes do not depend on the file's name."""
    import torch  # figures are drawn without it

    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_atomically(path, buffer.getvalue())


def sha256(path: str | Path) -> str:
    """64 hexadecimal digits of the file. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that it is made anew and nothing is lost; its new place, <name>.damaged or .damaged-2."""
    places = (path.with_name(f"{path.name}.damaged{number}") for number in ("", *(f"-{i}" for i in range(2, 1000))))
    place = next(place for place in places if not place.exists())
    path.rename(place)
    return place


def is_aside(path: Path) -> bool:
    """Whether it has a name that `set_aside` gives."""
    return re.search(r"\.damaged(-\d+)?$", path.name) is not None


@contextmanager
def alone(path: Path, wait: bool = True) -> Iterator[bool]:
    """Whether this process alone holds <folder>/.<name>.lock while the block runs; without `wait`, False where another does.

    The system lets go of the lock of a process that died.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def first_line(error: object) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
