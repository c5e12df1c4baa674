"""The notebooks' explorers in a real JupyterLab; screenshots go to $R2KD_SCREENSHOTS, else under pytest's folder."""

import os
from pathlib import Path

import browser
import nbformat
import pytest

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
NOTEBOOKS = sorted((browser.ROOT / "notebooks").glob("*.ipynb"))


def explorers(notebook: Path) -> int:
    """How many a notebook says that it has."""
    widgets = nbformat.read(notebook, as_version=4).metadata.get("widgets", {})
    return sum(len(of["state"]) for of in widgets.values())


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """One browser for all notebooks, on the smoke profile, which share their runs."""
    place = tmp_path_factory.mktemp("jupyterlab")
    settings = {"runs_root": str(place / "runs"), "figures_root": str(place / "figures")}
    for notebook in NOTEBOOKS:
        browser.with_parameters(notebook, place, profile="smoke", settings=settings)
    with browser.jupyterlab(place) as started:
        yield started


@pytest.fixture
def screenshots(tmp_path):
    folder = Path(os.environ.get("R2KD_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("notebook", [path for path in NOTEBOOKS if explorers(path)], ids=lambda path: path.stem)
def test_every_control_changes_the_picture_and_the_last_picture_stays(notebook, lab, screenshots):
    lab.open(notebook.name)
    lab.run_all()
    assert lab.errors() == []
    assert len(lab.cells()) == explorers(notebook)
    for number, cell in enumerate(lab.cells()):
        for name, control in lab.controls(cell).items():
            if lab.enabled(control):
                assert lab.change(cell, control), f"{name} of explorer {number}"
        lab.screenshot(cell, screenshots / f"{notebook.stem}-{number}.png")
    assert lab.errors() == []
    last = [lab.picture(cell) for cell in lab.cells()]
    lab.save()
    lab.stop_kernel()
    lab.open(notebook.name)  # with a kernel that has run nothing
    lab.wait_for("Run this cell in JupyterLab to move its controls.", explorers(notebook))
    assert {picture for cell in lab.cells(of="img") for picture in [lab.picture(cell)]} >= set(last)
    lab.screenshot(lab.cells(of=".widget-label")[0], screenshots / f"{notebook.stem}-reopened.png")


def test_twenty_keys_in_a_second_leave_no_queue(lab):
    from selenium.webdriver.common.keys import Keys

    lab.write("losses.ipynb", "from r2kd import simplex", "simplex.explorer()")
    lab.open("losses.ipynb")
    lab.run_all()
    (cell,) = lab.cells()
    seen = lab.keys(cell, lab.controls(cell)["logit of A"], 20 * [Keys.ARROW_LEFT], 0.05)
    after = [at for at in seen["pictures"] if at > seen["keys"][-1]]
    print(f"{len(seen['pictures'])} pictures, {len(after)} of them after the last of {len(seen['keys'])} keys")
    assert (
        len(seen["keys"]) == 20 and 1 <= len(after) <= 4
    )  # one was being drawn, one waited, and two were the browser's
