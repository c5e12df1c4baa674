"""Figures read without running: their words, figures/README.md, and the report."""

import re
import subprocess
from pathlib import Path

from r2kd import experiments, figures, gallery, report, stats, tables, words

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from scipy.stats import binomtest
from test_run_all import run_all

ROOT = Path(__file__).resolve().parents[1]


def committed() -> list[Path]:
    """The tables of figures that git knows."""
    names = subprocess.run(["git", "ls-files", "figures"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split() if Path(name).suffix == ".csv" and Path(name).stem in figures.FIGURES]


def test_the_readme_of_the_figures_is_that_of_the_committed_tables():
    text = (ROOT / "figures" / "README.md").read_text()
    assert text == gallery.text(ROOT / "figures", committed())
    for path in committed():
        assert f"]({path.relative_to(ROOT / 'figures').with_suffix('.png').as_posix()})" in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / "figures" / link).is_file(), link


def test_each_figure_says_how_it_is_read_and_what_one_sees():
    assert set(words.SEEN) == set(figures.FIGURES)
    assert all(len(figure.__doc__) > 20 for figure in figures.FIGURES.values())
    with pytest.raises(ValueError, match="no words for a figure 'nothing'; known: pruning_accuracy"):
        words.seen("nothing", pd.DataFrame())


def test_of_comparisons_only_what_is_told_apart_is_named():
    rows = [("a", "b", 1.0, 0.5, "higher"), ("a", "c", 3.0, 9.0, "not told apart"), ("a", "d", -1.0, 0.25, "lower")]
    table = pd.DataFrame(rows, columns=["arm", "other", "mean", "half_width", "verdict"])
    said = words.seen("comparisons", table)
    assert said == "a above b (1.00 ± 0.50); a below d (-1.00 ± 0.25); 1 of 3 pairs is not told apart."
    assert words.seen("comparisons", table[1:2]) == "1 of 1 pairs is not told apart."
    young = table.assign(verdict=["too few seeds", "not told apart", "too few seeds"])
    assert words.seen("comparisons", young) == "1 of 3 pairs is not told apart; 2 of 3 pairs are of too few seeds."


def test_the_highest_and_the_lowest_are_those_of_the_table():
    table = pd.DataFrame(
        {"arm": ["a", "b", "c"], "mean": [2.0, 3.0, 1.0], "half_width": [1.0, np.nan, 0.5], "teacher_top1": 9.0}
    )
    said = words.seen("students", table.assign(n=1))
    assert said.startswith("Last epoch: highest b (3.0 %), lowest c (1.0 ± 0.5 %); the teacher has 9.0 %.")
    assert "highest a (2.0 ± 1.0 %)" in words.seen("students", table.assign(n=[3, 1, 5]))  # one seed is no extreme


def test_what_was_not_measured_is_said_to_be():
    table = pd.DataFrame(
        {"arm": ["a", "b"], "mean": [np.nan] * 2, "half_width": [np.nan] * 2, "n": 3, "measure": "loss"}
    )
    assert words.seen("measures", table) == "Negative log-likelihood: not measured."


def test_of_the_abstract_is_supported_what_the_verdict_says():
    def rows(*verdicts):
        pairs = [
            ("R2KD cutmixpick", "KD cutmixpick"),
            ("R2KD, released", "R2KD cutmixpick"),
            ("R2KD, released", "KD cutmixpick"),
        ]
        found = [(*pair, 1.5, 0.5, 7, verdict) for pair, verdict in zip(pairs, verdicts, strict=False)]
        return pd.DataFrame(found, columns=["arm", "other", "mean", "half_width", "n", "verdict"])

    robust = rows("higher", "lower", "not told apart").assign(measure="corrupted", radius=np.nan)
    under = rows("higher", "lower", "lower").assign(measure="attacked", radius=0.5)
    none = pd.DataFrame({"kind": [], "contrast": []})
    said = words.abstract(rows("higher", "lower"), pd.concat([robust, under]), none)
    clean, whole, views, beyond, corrupted = re.split(r"^- ", said, flags=re.M)[1:]
    assert "each at its own weight: +1.50 ± 0.50 points (n = 7), supported\n" in clean
    assert clean.count("too few seeds yet") == 2 and whole.count("too few seeds yet") == 4
    assert "the pruned teacher in the mixture: +1.50 ± 0.50 points (n = 7), contradicted" in whole
    assert "not measured yet" in views
    assert "under corruption: +1.50 ± 0.50 points (n = 7), not told apart from 0\n" in beyond
    assert "under PGD at 0.5/255: +1.50 ± 0.50 points (n = 7), contradicted" in beyond
    assert "each at its own weight: +1.50 ± 0.50 points (n = 7), supported\n" in corrupted
    nothing = words.abstract(rows(), rows().assign(measure=[], radius=[]), none)
    assert nothing.count("too few seeds yet") == 11


def test_the_pairs_of_the_abstract_are_comparisons_of_the_study():
    study, asked = experiments.study("small"), []
    table = pd.DataFrame(
        columns=["arm", "other", "mean", "half_width", "n", "verdict", "measure", "radius", "kind", "contrast"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "_claim", lambda _, *pair: asked.append(pair) or "")
        words.abstract(table, table, table)
    assert len(asked) == 11 and set(asked) <= set(study.comparisons)


def test_each_seed_stands_beside_its_mean():
    table = pd.DataFrame({"arm": list("aaab"), "v": [1.25, np.nan, 3, 4]})
    assert stats.mean_interval(table, ["arm"], "v")["each"].tolist() == ["1.25 3", "4"]


@pytest.mark.parametrize("hits", [0, 1, 437, 999, 1000])
def test_the_interval_of_an_accuracy_is_wilsons(hits):
    low, high = stats.binomial_errors(pd.Series([hits / 10]), pd.Series([1000], dtype="Int64")).ravel()
    expected = binomtest(hits, 1000).proportion_ci(method="wilson")
    assert hits / 10 - low == pytest.approx(100 * expected.low, abs=1e-9)
    assert hits / 10 + high == pytest.approx(100 * expected.high, abs=1e-9)


def test_an_accuracy_that_is_missing_has_no_interval():
    found = stats.binomial_errors(pd.Series([np.nan, 50]), pd.Series([pd.NA, 100], dtype="Int64"))
    assert np.isnan(found[:, 0]).all() and (found[:, 1] > 0).all()


def test_figures_are_drawn_in_every_format_with_the_same_bytes(tmp_path, capsys):
    rows = [{"rate": r, "batchnorm": mode, "top1": 90 - r} for r in (0, 50, 90) for mode in ("running", "batch")]
    figures.save("pruning_accuracy", pd.DataFrame(rows), tmp_path, "made up")
    drawn = []
    for _ in range(2):
        assert run_all.main(["--figures-only", "--figures-root", str(tmp_path), "--format", "png,pdf,svg"]) == 0
        drawn.append({path.name: path.read_bytes() for path in tmp_path.glob("[a-zR]*.*")})
    assert drawn[0] == drawn[1]
    assert {"README.md", *(f"pruning_accuracy.{kind}" for kind in ("csv", "png", "pdf", "svg"))} == set(drawn[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--figures-only", "--format", "png,gif"], "unknown format gif; known: png, pdf, svg"),
        (["--format", "svg"], "--format is of --figures-only"),
    ],
)
def test_a_format_that_cannot_be_drawn_is_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        run_all.main(arguments)
    assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.fixture
def page(tmp_path):
    """The report of two notebooks, one with what a report must not show as it is."""
    figure = new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
    noise = new_output("stream", name="stderr", text="epochs: 100%|####| 20/20\n")
    cells = [
        new_markdown_cell(
            "# 1 · First\n\nLoss $a^2 < b$ and\n\n$$ \\frac{1}{B} \\sum_b x_b $$\n\nSee [the second](02_b.ipynb), [none](09_c.ipynb)."
        ),
        new_markdown_cell("## Results & more"),
        new_code_cell("draw()", outputs=[noise, figure]),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "01_a.ipynb")
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 2 · Second")]), tmp_path / "02_b.ipynb")
    tables.write(
        tmp_path / "best_epoch.csv",
        pd.DataFrame({"arm": ["a"], "mean": [1.0], "half_width": [0.5], "n": 5, "caption": "2 < 3"}),
    )
    return report.write(tmp_path, tmp_path, "r2kd: digits").read_text()


def test_the_report_stands_by_itself(page):
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page
    targets = set(re.findall(r'id="([^"]+)"', page))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= targets
    assert '<a href="#02_b">the second</a>' in page and ", none." in page


def test_the_report_draws_equations_leaves_out_bars_and_names_pictures(page):
    assert page.count("<math") == 2 and 'display="block"' in page and "$" not in page
    assert "20/20" not in page and 'alt="Results &amp; more"' in page.replace(
        'alt="Results & more"', 'alt="Results &amp; more"'
    )


def test_the_report_begins_with_what_was_found(page):
    assert (
        page.index("flatters each student, in points: a (1.00 ± 0.50)")
        < page.index("Contents")
        < page.index("1 · First")
    )
    assert "2 &lt; 3." in page
