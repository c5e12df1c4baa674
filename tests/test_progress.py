"""Bars in a notebook: lines of text, which stay or go."""

import nbformat
import pytest
from nbclient import NotebookClient

LOOPS = """from r2kd.progress import tqdm
for _ in tqdm(range(2), desc="outer"):
    for _ in range(3):
        for _ in tqdm(range(5), desc="inner", leave=False):
            pass"""
NOTHING = {"text/html": "", "text/plain": ""}


@pytest.fixture
def outputs(monkeypatch):
    """What the cells of a notebook leave."""
    monkeypatch.delenv("R2KD_PROGRESS", raising=False)

    def run(*cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
        return [cell.outputs for cell in notebook.cells]

    return run


def test_a_bar_leaves_its_last_line_and_inner_bars_share_one_output_that_is_empty(outputs):
    first, second = outputs(LOOPS, LOOPS)
    for outer, inner in (first, second):  # one of a cell is not one of the next
        assert outer["data"]["text/plain"].startswith("outer: 100%|") and "| 2/2 [" in outer["data"]["text/plain"]
        assert inner["data"] == NOTHING


def test_what_a_bar_that_fails_leaves_is_not_in_the_way_of_the_error(outputs):
    (cell,) = outputs(LOOPS.replace("pass", "1 / 0"))
    assert [output.get("ename") for output in cell] == [None, None, "ZeroDivisionError"]
    assert "outer:   0%|" in cell[0]["data"]["text/plain"] and cell[1]["data"] == NOTHING
