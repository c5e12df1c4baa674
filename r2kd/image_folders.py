"""Folders of images: what lies in them, and what is kept beside them for the next start, their digest and the decoded images."""

import hashlib
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from .files import alone, sha256
from .image_files import decode
from .progress import tqdm

CACHE = ".r2kd-cache"
BESIDE = "_boxes.txt"  # what Tiny ImageNet has in every class: nothing to say of it


def class_images(folder: Path, read: dict[str, str]) -> dict[str, list[str]]:
    """The paths of the images of each class, train/<class>/ at any depth, in torchvision's order.

    `read`: the real path of each folder that was read so far, and the path that led there; those of this one are added.
    Files of other types are counted on stderr. Raises ValueError for a link to a folder that was read or holds this one, for
    one that cannot be read, and an empty class.
    """
    home = Path(os.path.realpath(folder))
    read |= {str(holds): str(holds) for holds in (home, *home.parents)}
    images: dict[str, list[str]] = {}
    left: Counter[str] = Counter()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_dir():
            left["in no class"] += not entry.name.startswith(".")
            continue
        paths = [os.path.join(place, name) for place, names in _walk(entry.path, read) for name in names]
        images[entry.name] = [path for path in paths if has_file_allowed_extension(path, IMG_EXTENSIONS)]
        others = set(paths).difference(images[entry.name])
        left.update(Path(path).suffix.lower() or "without suffix" for path in others if _meant(os.path.basename(path)))
    listed = f"images are {', '.join(IMG_EXTENSIONS)}"
    if empty := [name for name, paths in images.items() if not paths]:
        raise ValueError(f"{folder}: no image in the classes {', '.join(empty)}; {listed}")
    if not images:
        raise ValueError(f"{folder}: no folder of a class")
    if left := +left:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left.most_common(5))
        print(f"{folder}: {left.total()} files are not read ({kinds}); {listed}", file=sys.stderr)
    return images


def _meant(name: str) -> bool:
    """Whether a file that is no image may have been meant as one."""
    return not name.startswith(".") and BESIDE not in name


def _walk(top: str, read: dict[str, str]) -> list[tuple[str, list[str]]]:
    """(folder, the names of its files) of `top` and what is below. Raises ValueError for a folder that is in `read`."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}")

    found = []
    for place, _, names in os.walk(top, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in read:  # a loop, or images that would count twice
            raise ValueError(f"{place} and {read[real]} are one folder, which is read once: remove the link")
        read[real] = place
        found.append((place, sorted(names)))
    return sorted(found)


def listing(folder: Path, paths: list[str]) -> list[tuple[str, int, int, int]]:
    """(path within `folder`, bytes, mtime in ns, ctime in ns) of each file. A program can set mtime, but not ctime.

    Raises ValueError for a file that is not there, or is none that can be read to its end, as a pipe.
    """
    rows, within = (
        [],
        cache(lambda place: os.path.relpath(place, folder)),
    )  # once for a folder: it takes longer than stat
    for path in paths:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} cannot be read: it is no regular file")
        place, name = os.path.split(path)
        parts = (name,) if within(place) == os.curdir else (within(place).replace(os.sep, "/"), name)
        rows.append(("/".join(parts), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return rows


def contents_of(folder: Path, split: str, paths: list[str], listed: list[tuple[str, int, int, int]]) -> str:
    """The digest of one split's paths and files, kept beside them: while the listing is the same, none is read again.

    Raises ValueError for a file that cannot be read.
    """
    place = folder / CACHE / f"{split}-{digest(listed)[:16]}.digest"

    def read() -> str:
        kept, check = place.read_text().split()
        if check != digest((place.name, kept)):
            raise ValueError("a digit is another")
        return kept

    with _by_one_process(folder, split):
        found = _kept(place, read)
        if found is None:
            found = digest([(row[0], file) for row, file in zip(listed, hash_files(paths), strict=True)])
            written = f"{found} {digest((place.name, found))}".encode()
            _keep(place, split, "digests", lambda file: file.write(written))
    return found


def decoded(folder: Path, split: str, paths: list[str], contents: str, size: int, resize: bool) -> Tensor:
    """(N, 3, S, S) uint8 of one split, from the cache beside it if that is whole and of these files, else decoded and cached.

    The cache is a zip: all that is read of it is held against a CRC-32. Raises as `decode` does.
    """
    key = digest((contents, size, resize))
    place = folder / CACHE / f"{split}-{key[:16]}.npz"

    def read() -> Tensor:
        with np.load(place) as kept:
            images = kept[key]
        if images.dtype != np.uint8 or images.shape != (len(paths), 3, size, size):
            raise ValueError(f"{images.dtype} {images.shape}")
        return torch.from_numpy(images)

    with _by_one_process(folder, split):
        images = _kept(place, read)
        if images is None:
            images = decode_images(paths, size, resize)
            _keep(place, split, "decoded images", lambda file: np.savez(file, **{key: images.numpy()}))
    return images


@contextmanager
def _by_one_process(folder: Path, split: str) -> Iterator[None]:
    """One hashes and decodes, the others wait and find it done."""
    with ExitStack() as held:
        with suppress(OSError, NotImplementedError):  # where nothing can be kept, or locked, each works for itself
            held.enter_context(alone(folder / CACHE / split))
        yield


def _kept(place: Path, read: Callable[[], Any]) -> Any:
    """What `read` finds in a file of the cache; None where there is none, or where it is damaged, which is said."""
    if not place.is_file():
        return None
    try:
        return read()
    except Exception:  # whatever is wrong with it
        print(f"{place} is damaged: it is made again from the images", file=sys.stderr)
        return None


def _keep(place: Path, split: str, what: str, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file of the cache, whole or not at all, in place of the split's old one."""
    unfinished = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    try:
        place.parent.mkdir(exist_ok=True)
        for old in place.parent.glob(f"{split}-*{place.suffix}*"):
            old.unlink()
        with open(unfinished, "wb") as file:
            write(file)
        unfinished.replace(place)
    except OSError as error:  # a read-only folder or a full disk costs time at the next start, nothing else
        with suppress(OSError):  # what cannot be written to may not let go of a file either
            unfinished.unlink()
        print(f"the {what} are not kept for the next start: {error}", file=sys.stderr)


def digest(value: Any) -> str:
    """64 hexadecimal digits, of what `value` is written as."""
    return hashlib.sha256(ascii(value).encode()).hexdigest()


def decode_images(paths: list[str], size: int, resize: bool) -> Tensor:
    """(N, 3, S, S) uint8. Raises as `decode` does."""
    images = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)

    def fill(i: int) -> None:
        images[i] = decode(paths[i], size, resize)

    _in_threads(fill, range(len(paths)), "decoding")
    return images


def hash_files(paths: list[str]) -> list[str]:
    """The SHA-256 of each file. Raises ValueError for one that cannot be read."""

    def hashed(path: str) -> str:
        try:
            return sha256(path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None

    return _in_threads(hashed, paths, "hashing")


def _in_threads(work: Callable, items: Sequence, what: str) -> list:
    """`work` of each item, in their order, under a progress bar. Raises what `work` does."""
    with ThreadPoolExecutor() as pool:
        # by the thousand: a future takes 2 KB, and ImageNet has a million images
        results = chain.from_iterable(pool.map(work, items[i : i + 1000]) for i in range(0, len(items), 1000))
        try:
            return list(tqdm(results, total=len(items), desc=what, unit="img", leave=False, delay=1))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
