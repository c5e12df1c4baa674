"""Table in, figure out: a figure is saved as a PNG beside the CSV that it is drawn from, and from it alone."""

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from . import files, tables
from .drawings import FIGURES, STYLE

FORMATS = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}  # metadata without a date


def draw(name: str, table: pd.DataFrame) -> Figure:
    """The figure of this name from its table. Raises ValueError for an unknown name."""
    if name not in FIGURES:
        raise ValueError(f"unknown figure {name!r}; known: {', '.join(FIGURES)}")
    with rc_context(STYLE):
        return FIGURES[name](table)


def save(name: str, table: pd.DataFrame, folder: str | Path, caption: str) -> Figure | None:
    """Write <folder>/<name>.csv and draw <name>.png from it, in place of what was there; None of a table without rows.

    Raises OSError naming the file that could not be written; what was there before is kept.
    """
    if table.empty:
        print(f"{name}: nothing was measured, nothing is drawn")
        return None
    path = Path(folder) / f"{name}.csv"
    captions = [caption] + [""] * (len(table) - 1)
    with tables.alone(path.parent):
        tables.write(path, table.assign(caption=captions))
        figure = draw(name, tables.read(path))
        files.write_atomically(path.with_suffix(".png"), _content(figure))
    return figure


def redraw(path: str | Path, formats: Sequence[str] = ("png",)) -> Figure:
    """Draw what lies beside a CSV again, in each of FORMATS that is asked for.

    Raises FileNotFoundError, or ValueError for a CSV that is damaged or of no figure of ours; OSError as `save` does.
    """
    path = Path(path)
    with tables.alone(path.parent):
        table = tables.read(path)
        try:
            figure = draw(path.stem, table)
            contents = {kind: _content(figure, kind) for kind in formats}
        except Exception as error:  # whatever the table of something else leads to
            said = f"{type(error).__name__}: {files.first_line(error)}"
            raise ValueError(f"{path} is not the table of this figure: {said}") from error
        for kind, content in contents.items():
            files.write_atomically(path.with_suffix(f".{kind}"), content)
    return figure


def redraw_all(root: str | Path, formats: Sequence[str] = ("png",)) -> tuple[list[Path], list[Exception]]:
    """Draw every figure under `root` again from its CSV: the CSVs of those that were drawn, and why others could not be."""
    drawn, failed = [], []
    for path in tables.under(Path(root)):
        if path.stem in FIGURES:
            try:
                redraw(path, formats)
                drawn.append(path)
            except (OSError, ValueError) as error:
                failed.append(error)
    return drawn, failed


def _content(figure: Figure, kind: str = "png") -> bytes:
    """The same bytes for the same figure."""
    content = io.BytesIO()
    with rc_context(STYLE | {"svg.hashsalt": "r2kd"}):
        figure.savefig(content, format=kind, metadata=FORMATS[kind])
    return content.getvalue()
