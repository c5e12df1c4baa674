"""Files between processes and power cuts: written whole or not at all, by one process at a time, never trusted blindly."""

import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

_SEAL = b"sha256 "  # how a sealed file begins; a torch file of before begins with PK


def write_atomically(path: Path, content: bytes, lasting: bool = True) -> None:
    """Write a file whole or not at all; it survives a power cut, unless it need not be `lasting`, which saves some milliseconds.

    Raises OSError naming the file, say where the disk is full.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        if lasting:
            _sync(unfinished, os.O_RDWR)
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise OSError(error.errno, f"{error.strerror}; what was written before is kept", str(path)) from None
    if lasting:
        with suppress(OSError):  # not every system opens a folder
            _sync(path.parent, os.O_RDONLY)


def found(roots: Iterable[str | Path], name: str) -> list[Path]:
    """The files of a name under some folders, in the order of these, then of their paths; none twice."""
    return list(dict.fromkeys(path for root in roots for path in sorted(Path(root).rglob(name))))


def write_json(path: Path, value: Any) -> None:
    """Raises ValueError for a number that JSON cannot hold, NaN or infinite."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_table(path: Path, rows: list[dict] | pd.DataFrame, lasting: bool = True) -> None:
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode(), lasting)


def write_torch(path: Path, value: Any, sealed: bool = False) -> str:
    """torch.save through memory: the bytes do not depend on the file's name. Returns their SHA-256.

    sealed: behind a first line that holds the digest, by which `read_sealed` knows a damaged byte.
    """
    import torch  # figures are drawn without it

    buffer = io.BytesIO()
    torch.save(value, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    write_atomically(path, (_SEAL + digest.encode() + b"\n" if sealed else b"") + buffer.getvalue())
    return digest


def read_sealed(path: Path) -> Any:
    """What write_torch sealed, or stored without a seal, as it was done before.

    Raises FileNotFoundError, or ValueError for a file that is not as it was written.
    """
    import torch

    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    content = path.read_bytes()
    if content.startswith(_SEAL):
        seal, _, content = content.partition(b"\n")
        if seal != _SEAL + hashlib.sha256(content).hexdigest().encode():
            raise ValueError(f"{path} does not hold what was written")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises all kinds
        raise ValueError(f"{path} does not hold what was written") from error


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

    The system lets go of the lock of a process that died. Who holds it may take it again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_lock(path), is_singleton=True)
    try:
        lock.acquire(timeout=-1 if wait else 0)
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


def in_turn(left: Callable[[], Mapping[Path, Any]], compute: Callable[[list[Any]], None], wait: bool = True) -> None:
    """Have everything that is `left()`, by a path that stands for it, computed by one process alone.

    First, together, what no other process is at; then, unless without `wait`, what others were at and have not finished. What
    was computed here and is left all the same, as it failed, is not tried again. No lock is held while another is waited for.
    """
    tried: set[Path] = set()
    said: set[Path] = set()
    while waiting := [path for path in left() if path not in tried]:
        with ExitStack() as held:
            free = [path for path in waiting if held.enter_context(alone(path, wait=False))]
            mine = {path: item for path, item in left().items() if path in free}  # who held it may have finished it
            if mine:
                compute(list(mine.values()))
                tried |= mine.keys()
            forget(*set(free) - left().keys())
        if not free and not wait:
            return
        if not free:
            if waiting[0] not in said:
                print(f"waiting for another process, which is at {waiting[0].name}", file=sys.stderr, flush=True)
            said.add(waiting[0])
            with alone(waiting[0]):
                forget(*{waiting[0]} - left().keys())


def forget(*done: Path) -> None:
    """Delete the locks of what is finished, while they are held: whoever waits for one finds nothing left to do."""
    for path in done:
        with suppress(OSError):
            _lock(path).unlink()


def _lock(path: Path) -> Path:
    return path.parent.resolve() / f".{path.name}.lock"


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
