"""What is left of a finished run when its weights are gone: a row of figures/<data set>/<study>/records.csv, committed.

A row is found by its address, in whichever study's records it stands; rows of several machines merge. Of a teacher that many
students ask for, the weights may stand beside its row.
"""

import io
import lzma
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch

from . import ROOT, files
from .runs import Run

NAME = "records.csv"
KEPT = ".pt.xz"
_FLOATS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2}]  # four bytes a number
_NUMBERS = ("last_top1", "best_top1", "best_epoch", "last_loss", "weights")  # the last of what was tested


def read(paths: Iterable[Path]) -> dict[str, dict]:
    """The rows of some records by address; of one address with differing numbers the first, which is said on stderr.

    Raises ValueError for a file that is no table of records, or not the whole of one.
    """
    rows: dict[str, dict] = {}
    for path in paths:
        apart = []
        try:
            text = path.read_text(encoding="utf-8")
            table = pd.read_csv(io.StringIO(text), float_precision="round_trip", dtype={"curve": str})
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a table of records: {error}") from None
        if not text.endswith("\n"):
            raise ValueError(f"{path} is cut off in its last line; renamed, it is written anew from the finished runs")
        if "address" not in table:
            raise ValueError(f"{path} is not a table of records: it has no column address")
        for row in table.to_dict("records"):
            known = rows.setdefault(row["address"], row)
            if _apart(known, row):
                apart.append((known, row))
        _say(path, apart, "first")
    return rows


def under(*roots: str | Path) -> dict[str, dict]:
    """The rows of all studies under folders of figures, by address."""
    return read(files.found(roots, NAME))


def committed() -> dict[str, dict]:
    """The rows that the repository holds, by address."""
    return under(ROOT / "figures")


def kept(run: Run) -> tuple[Run, dict] | None:
    """(the record, the weights of the last epoch) of a run whose weights stand in the repository, <address>.pt.xz beside its record.

    Raises ValueError, naming the file, where one of the two is damaged or missing.
    """
    path = next(iter(files.found([ROOT / "figures"], f"{run.address}{KEPT}")), None)
    if path is None:
        return None
    try:
        state = torch.load(io.BytesIO(lzma.decompress(path.read_bytes())), weights_only=True)["model"]
        return Run(run.folder, read([path.parent / NAME])[run.address]), state
    except Exception as error:  # of damaged files torch raises all kinds
        why = files.first_line(error)
        raise ValueError(
            f"{path} does not hold what was written, or has no record beside it ({why}): take it from git"
        ) from None


def keep(run: Run, folder: Path) -> Path:
    """Put the weights of a finished run's last epoch into a folder of records, compressed to what a repository can hold."""
    path = folder / f"{run.address}{KEPT}"
    files.write_atomically(path, lzma.compress(run.weights().read_bytes(), filters=_FLOATS))
    return path


def write(folder: Path, finished: Iterable[tuple[str, Run]]) -> Path:
    """Put the rows of (arm, run) among those in <folder>/records.csv. A run that came out otherwise than recorded is said."""
    path = folder / NAME
    with files.alone(path):
        _add(path, finished)
    return path


def _add(path: Path, finished: Iterable[tuple[str, Run]]) -> None:
    rows = read([path]) if path.exists() else {}
    before, apart = dict(rows), []
    for arm, run in finished:
        row = {"address": run.address, "arm": arm} | {k: v for k, v in run.row.items() if k not in ("state", "arm")}
        known = rows.get(run.address, row)
        if run.source == "run" and _apart(known, row):
            apart.append((known, row))
        elif run.address in rows:
            continue  # the same numbers: the row keeps the time and the commit that it was made at
        rows[run.address] = row
    _say(path, apart, "new")
    if rows != before:
        files.write_table(path, pd.DataFrame(rows.values()))


def merge(paths: list[Path], into: Path) -> int:
    """Write the rows of several records to one file; how many there are.

    Raises as `read`, and ValueError where there is no row, or some are of trainings and some of what they were tested with.
    """
    with files.alone(into):
        rows = read(paths)
        kinds, told = {"last_top1" in row for row in rows.values()}, ", ".join(map(str, paths))
        if len(kinds) != 1:
            wrong = "records of trainings and of tests are mixed" if rows else "no record"
            raise ValueError(f"{wrong} in {told}: {into} is left as it is")
        files.write_table(into, pd.DataFrame(rows.values()))
    return len(rows)


def in_order(rows: dict[str, dict], order: Iterable[str]) -> list[dict]:
    """The rows by address, those that `order` names in its order among themselves, each other where it stands."""
    named = [address for address in order if address in rows]
    following, moved = iter(named), set(named)
    return [rows[next(following) if address in moved else address] for address in rows]


def _apart(row: dict, other: dict) -> bool:
    pairs = [(row.get(name), other.get(name)) for name in _NUMBERS]
    return any(one != two and not (pd.isna(one) and pd.isna(two)) for one, two in pairs)


def _say(path: Path, apart: list[tuple[dict, dict]], kept: str) -> None:
    """In a line on stderr, which runs have other numbers than before: on another kind of machine each has."""
    if not apart:
        return
    first, more = _differing(*apart[0]), ""
    if len(apart) > 1 and "last_top1" in apart[0][0]:
        points = [new["last_top1"] - old["last_top1"] for old, new in apart]
        mean, most = sum(points) / len(points), max(points, key=abs)
        more = f", and {len(apart) - 1} more; {mean:+.2f} points on average, {most:+.2f} at most"
    print(f"{path}: {first}{more}: the {kept} {'ones are' if more else 'one is'} kept", file=sys.stderr)


def _differing(row: dict, other: dict) -> str:
    if "last_top1" not in row:
        return f"{row['address']} was tested with two sets of weights"
    numbers = " and ".join(f"{r['last_top1']:.2f} % ({r.get('device')}, {r.get('commit')})" for r in (row, other))
    return f"{row['address']} is {numbers}"
