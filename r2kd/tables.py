"""The tables that figures are drawn from: CSVs, each with its SHA-256 in the SHA256SUMS beside it, so that a cut one is noticed.

`sha256sum --check SHA256SUMS`, in their folder, checks them too. A table has as many lines there as versions that are whole.
"""

import hashlib
import io
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd

from . import files

SUMS = "SHA256SUMS"


def alone(folder: Path) -> AbstractContextManager[bool]:
    """One process at a time writes a table of this folder, with its digest and its figure."""
    return files.alone(folder / SUMS)


def write(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV and its digest, each whole or not at all. Raises OSError naming the file, say where the disk is full."""
    content = table.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()
    line = f"{hashlib.sha256(content).hexdigest()}  {path.name}"
    known = _lines(path.parent)
    others = [other for other in known if _name(other) != path.name]
    _list(path.parent, [*known, line])  # a kill leaves the old table or the new one: here both are whole
    files.write_atomically(path, content)
    _list(path.parent, [*others, line])


def read(path: str | Path) -> pd.DataFrame:
    """A table with its caption. Raises FileNotFoundError, or ValueError for one that is damaged, changed or of something else."""
    path = Path(path)
    if not path.is_file():
        listing = f", though {SUMS} lists it: run its notebook again, or drop the line" if listed(path) else ""
        raise FileNotFoundError(f"{path} is no file{listing}")
    content = path.read_bytes()
    if listed(path) and f"{hashlib.sha256(content).hexdigest()}  {path.name}" not in _lines(path.parent):
        raise ValueError(
            f"{path} is not as it was saved, by its digest in {SUMS}: take it from git or run its notebook again; "
            f"if the change is meant, sha256sum {path.name} >> {SUMS} says so"
        )
    try:
        table = pd.read_csv(io.BytesIO(content))
    except ValueError as error:  # of the parser, or of what is no text
        raise ValueError(f"{path} is not the table of a figure: {str(error).strip()}") from None
    captions = table.get("caption", pd.Series(dtype=object))
    if not len(captions) or not isinstance(captions.iloc[0], str):
        raise ValueError(f"{path} is not the table of a figure: in its first row, there is no caption")
    return table


def listed(path: Path) -> bool:
    """Whether there is a digest to compare the table with."""
    return path.name in map(_name, _lines(path.parent))


def under(root: Path) -> list[Path]:
    """The CSVs under a folder, and those that are missing there though they are listed."""
    missing = {sums.parent / _name(line) for sums in root.rglob(SUMS) for line in _lines(sums.parent) if _name(line)}
    return sorted({*root.rglob("*.csv"), *missing})


def _lines(folder: Path) -> list[str]:
    sums = folder / SUMS
    return sums.read_text(errors="replace").splitlines() if sums.exists() else []


def _name(line: str) -> str:
    """Of the table that a line is of, <64 hexadecimal digits> <blank or *><name>; none of what git leaves at a conflict."""
    return line[66:]


def _list(folder: Path, lines: list[str]) -> None:
    """Write the lines where they differ, in the order of the names."""
    if set(lines) != set(_lines(folder)):
        content = "".join(f"{line}\n" for line in sorted(set(lines), key=_name))
        files.write_atomically(folder / SUMS, content.encode())
