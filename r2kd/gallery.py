"""figures/README.md: every figure under a folder with how to read it, what one sees, and what its numbers rest on."""

from itertools import groupby, takewhile
from pathlib import Path

import pandas as pd

from . import fidelity, figures, files, tables, words

IN_FULL = ("students", "comparisons", "switch_effects")  # the tables that stand in the text, too
HEAD = """# Figures

Written by `python run_all.py --figures-only` from the tables beside the figures, and held to them by a test. Below each figure: how it is
read, and *what one sees*, computed from its table. Error bars are 95 % *t*-intervals over seeds unless a figure says otherwise; "told apart",
"above" and "below" are Holm-adjusted over a family: the figure, or, where its panels are of different measures, each measure; of a grid, its cells and its means. Other sentences only
put means in their order, of three seeds or more where there are such; means in an order may be the same.

A CSV is read by `pandas.read_csv`, and one figure is drawn again by `r2kd.figures.redraw(path, ("pdf",))`. A row of `records.csv` is a
training; its `seconds` are of all that were trained together. A row of `robustness_records.csv` is what one was tested with, a cell a list of
`level:value`: `r2kd.robustness.unpacked(row)` has a row a test.

The losses, between the softened answers $p = \\mathrm{softmax}(z / T)$ of student and teacher, for $B$ images and $C$ classes:

$$\\mathcal L_{\\mathrm{KD}} = \\frac{T^2}{B} \\sum_b \\mathrm{KL}\\big(p^t_b \\,\\|\\, p^s_b\\big) \\qquad
\\mathcal L_{\\mathrm{rank}} = 1 - \\frac1B \\sum_b \\rho_{\\text{Spearman}}\\big(p^s_b, p^t_b\\big)$$

$$\\mathcal L_{\\mathrm{value}} = T^2 \\Big[ \\big(1 - \\tfrac1B \\textstyle\\sum_b |\\cos(p^s_{b\\cdot}, p^t_{b\\cdot})|\\big)
+ \\big(1 - \\tfrac1C \\textstyle\\sum_c |\\cos(p^s_{\\cdot c}, p^t_{\\cdot c})|\\big) \\Big]$$
"""


DIFFERENCES = f"""## Released and intended

Where the released code and the method part: as its title and abstract describe it, and the papers of its components. Notebook 04 shows and
measures each switch.

{fidelity.table()}
"""


def write(root: Path, paths: list[Path]) -> Path:
    """<root>/README.md of these tables of figures. Raises OSError, or ValueError for a damaged table."""
    target = root / "README.md"
    files.write_atomically(target, text(root, paths).encode())
    return target


def text(root: Path, paths: list[Path]) -> str:
    order = list(figures.FIGURES)
    known = sorted((path for path in paths if path.stem in order), key=lambda p: (p.parent, order.index(p.stem)))
    parts = [HEAD, DIFFERENCES]
    for folder, of in groupby(known, key=lambda path: path.parent):
        found = {path: tables.read(path) for path in of}
        shared = _shared([table["caption"].iloc[0] for table in found.values()])
        parts.append(f"## {folder.relative_to(root).as_posix()}\n\n{shared}.\n")
        parts += [_section(path.relative_to(root), table, shared) for path, table in found.items()]
    return "\n".join(parts)


def _shared(captions: list[str]) -> str:
    """The parts that all of them begin with."""
    same = takewhile(
        lambda parts: len(set(parts)) == 1, zip(*(caption.split("; ") for caption in captions), strict=False)
    )
    return "; ".join(parts[0] for parts in same)


def _section(path: Path, table: pd.DataFrame, shared: str) -> str:
    """A figure: its picture, how it is read, what one sees, its table, and what its caption says beyond the `shared` one."""
    title = words.title(path.stem)
    said = table["caption"].iloc[0].removeprefix(shared).removeprefix("; ")
    parts = [
        f"### {title}",
        f"![{title}]({path.with_suffix('.png').as_posix()})",
        f"{figures.FIGURES[path.stem].__doc__} *{words.seen(path.stem, table)}*",
        *([_markdown(table)] if path.stem in IN_FULL else []),
        f"[{path.name}]({path.as_posix()}){': ' * bool(said)}{said}.",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(table: pd.DataFrame) -> str:
    """Names, means with their intervals, n and what else is told of each row."""
    shown = pd.DataFrame({name: table[name].fillna("") for name in ("arm", "other") if name in table})
    shown["mean"] = [words.value(row, "", 2) for _, row in table.iterrows()]
    for name in ("n", "p_holm", "verdict"):
        if name in table:
            shown[name] = table[name].map("{:.3g}".format) if name == "p_holm" else table[name].fillna("")
    rows = [list(shown), ["---"] * len(shown.columns), *shown.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
