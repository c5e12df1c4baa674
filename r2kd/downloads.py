"""Downloads that go on where they broke off, and archives: whole and as expected, or one line that says what is not."""

import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torchvision.datasets.utils import calculate_md5

from .files import alone, first_line, set_aside
from .progress import tqdm

TIMEOUT = 30  # seconds without a byte
WAITS = 1, 3, 9  # seconds before each further try
PASSING = 408, 425, 429, 500, 502, 503, 504  # answers that another try may not meet
T = TypeVar("T")


def fetch(url: str, path: Path, at_least: int = 1, at_most: int | None = None, md5: str | None = None) -> None:
    """Download `url` to `path`, whole or not at all, by one process at a time; a file of another MD5 that was there is set aside.

    Several tries, each from where the one before broke off; what came stays in .<name>.part for the next call.
    Raises ConnectionError where the server cannot be reached, OSError where it has no such file, it breaks off each time or
    the disk is full, ValueError where the file is not between `at_least` and `at_most` bytes or has another MD5.
    """
    with alone(path.parent / "download"):
        if not (md5 and path.is_file() and calculate_md5(path) == md5):  # else another process was quicker
            _fetch(url, path, at_least, at_most, md5)


def _fetch(url: str, path: Path, at_least: int, at_most: int | None, md5: str | None) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        for begun in [True, False] if part.exists() else [False]:
            _try_and_go_on(url, part, at_least, at_most)
            if not md5 or (found := calculate_md5(part)) == md5:
                break
            part.unlink()
            if not begun:  # else what was left was of another file
                raise ValueError(f"what came has the MD5 {found}, not {md5}")
    except ValueError:
        part.unlink(missing_ok=True)
        raise
    if path.exists():
        set_aside(path)
    part.replace(path)


def _try_and_go_on(url: str, part: Path, at_least: int, at_most: int | None) -> None:
    for wait in (*WAITS, None):
        try:
            return _go_on(url, part, at_least, at_most)
        except urllib.error.HTTPError as error:
            if wait is None or error.code not in PASSING:
                raise OSError(f"the server answers {error.code} {first_line(error.reason)}") from None
        except urllib.error.URLError as error:
            if wait is None:
                raise ConnectionError(f"{url}: {first_line(error.reason)}") from None
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if wait is None:
                kept = f"{part.stat().st_size:,} bytes are kept in {part}" if part.exists() else "nothing came"
                raise OSError(f"it broke off {len(WAITS) + 1} times ({first_line(error)}); {kept}") from None
        time.sleep(wait)


def _go_on(url: str, part: Path, at_least: int, at_most: int | None) -> None:
    """One try, from where `part` ends. Raises what another try may mend, and ValueError for a file of another size."""
    have = part.stat().st_size if part.exists() else 0
    if have and have == at_least == at_most:
        return
    if at_most and have >= at_most:
        have = 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink()  # it is as long as the file, or longer, and not the file
        raise http.client.HTTPException("the server has no more of it") from None
    with answer:
        start = have if answer.status == 206 else 0  # a server need not know of ranges
        if start and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise http.client.HTTPException("the server sends another part than it was asked for")
        promised = None if answer.length is None else start + answer.length
        if promised is not None:
            _check_size(promised, at_least, at_most)
        size = _write(answer, part, start, promised, at_most)
    if promised is not None and size < promised:
        raise http.client.IncompleteRead(b"", promised - size)
    _check_size(size, at_least, at_most)


def _write(answer: http.client.HTTPResponse, part: Path, start: int, promised: int | None, at_most: int | None) -> int:
    """Append what comes to the first `start` bytes of `part`; its size. Raises ValueError as soon as that is too much."""
    bar = tqdm(initial=start, total=promised, desc=part.name, unit="B", unit_scale=True, leave=False, delay=1)
    with open(part, "ab" if start else "wb") as file, bar:
        while came := answer.read(2**18):
            if at_most and file.tell() + len(came) > at_most:
                raise ValueError(f"it has more than {at_most:,} bytes")
            try:
                file.write(came)
                file.flush()
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(part)) from None
            bar.update(len(came))
        os.fsync(file.fileno())  # else the name may outlive a power cut, and the bytes not
        return file.tell()


def _check_size(size: int, at_least: int, at_most: int | None) -> None:
    if size < at_least or (at_most and size > at_most):
        expected = f"at least {at_least:,}" if not at_most else f"{at_least:,} to {at_most:,}"
        raise ValueError(f"it has {size:,} bytes, not {f'{at_least:,}' if at_least == at_most else expected}")


def find_or_download(
    find: Callable[[], T | None], home: Path, archive: Path, url: str, size: int, md5: str, instead: str
) -> T:
    """What `find` finds, if need be after unpacking the folder `home` from its archive, and that after downloading it.

    By one process, while the others wait. A folder or an archive that is there and is not what it should be is set aside.
    Raises FileNotFoundError that says what failed and what to do: to put the archive there, or what `instead` names.
    """
    if (found := find()) is not None:
        return found
    why = f"{home} is not whole" if home.exists() else f"there is no {home}"
    try:
        with alone(home):
            if (found := find()) is not None:  # another process was quicker
                return found
            other = calculate_md5(archive) if archive.is_file() else None
            if other != md5:
                why += f", {archive} has the MD5 {other}, not {md5}" if other else ""
                fetch(url, archive, size, size, md5)
            _unpack(archive, home)
            if (found := find()) is not None:
                return found
            raise ValueError(f"{archive} does not hold it")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{why}, and downloading or unpacking {url} ({size / 1e6:.0f} MB) failed ({error}); "
            f"put {archive.name}, or {instead}, into {home.parent}"
        ) from None


def _unpack(archive: Path, home: Path) -> None:
    """The folder `home` out of an archive whose MD5 is known, whole or not at all. Raises OSError, as on a full disk."""
    unfinished = home.with_name(f".{home.name}.unpacking")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        shutil.unpack_archive(archive, unfinished)
        if home.exists():
            set_aside(home)
        (unfinished / home.name).rename(home)
    except Exception as error:
        raise OSError(f"{archive} cannot be unpacked: {first_line(error)}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def zip_member(archive: Path, name: str, at_most: int) -> bytes:
    """A file of a zip that nobody vouches for. Raises ValueError where it is not there, longer or cannot be read."""
    try:
        with zipfile.ZipFile(archive) as opened:
            about = opened.getinfo(name)
            if about.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
                raise ValueError(f"compression {about.compress_type} is not known here")
            _check_size(about.file_size, 1, at_most)
            return opened.read(about)  # no more than file_size, and by its CRC-32
    except Exception as error:  # what zipfile raises of a damaged or encrypted file is of ten kinds
        raise ValueError(
            f"{name} in {archive} cannot be had: {first_line(error)}; moved away, the zip is downloaded again"
        ) from None
