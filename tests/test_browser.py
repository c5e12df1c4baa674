"""The notebooks, an interrupt and the report in a real JupyterLab and browser; screenshots go to $R2KD_SCREENSHOTS, else under pytest's folder."""

import os
import time
from base64 import b64decode
from pathlib import Path

import browser
import nbformat
import pytest

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
TRAIN = """from r2kd.notebook import *
scale = {{"epochs": 6, "train_images": 1024, "image_size": 32, "corruptions": "none", "attacks": "none"}}
study = experiments.study("smoke", arms="ce", student="resnet20", seeds=1, runs_root="{}", **scale)
(student,) = experiments.run_students(study, study.open_data())
student.run.metrics.to_csv(index=False)"""
LIVE = """from r2kd.notebook import *
study = experiments.study("smoke", runs_root="live")
student_explorers.live(study, [], epochs=200)"""
# which epochs of six the bars say, looked at ten times a second
EPOCHS = r"""
window.epochs = [];
window.looking ??= setInterval(() => {
  for (const [, epoch] of document.body.textContent.matchAll(/epoch.(\d)\/6/g)) if (!epochs.includes(epoch)) epochs.push(epoch);
}, 100);
"""
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
        browser.with_parameters(notebook, place, profile="smoke", settings=settings | {"epochs": 2})
    with browser.jupyterlab(place) as started:
        yield started


@pytest.fixture
def screenshots(tmp_path):
    folder = Path(os.environ.get("R2KD_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_control_changes_the_picture_and_the_last_picture_stays(notebook, lab, screenshots):
    lab.open(notebook.name)
    lab.run_all()
    assert lab.errors() == []
    assert len(lab.cells()) == explorers(notebook)
    for number, cell in enumerate(lab.cells()):
        controls = lab.controls(cell)
        for name, control in sorted(controls.items(), key=lambda item: not lab.enabled(item[1])):
            if not lab.enabled(control):
                assert lab.change(cell, controls["kind"], "view: cutmix"), "enables others"
            assert lab.change(cell, control), f"{name} of explorer {number}"
        lab.screenshot(cell, screenshots / f"{notebook.stem}-{number}.png")
    assert lab.errors() == []
    last = [lab.picture(cell) for cell in lab.cells()]
    lab.save()
    lab.command("shut down")
    lab.open(notebook.name)  # with a kernel that has run nothing
    lab.wait_for("Run this cell in JupyterLab to move its controls.", explorers(notebook))
    assert {picture for cell in lab.cells(of="img") for picture in [lab.picture(cell)]} >= set(last)
    assert "model not found" not in lab.text(".jp-OutputArea-output")  # of a bar
    for cell in [*lab.cells(of=".widget-label"), *lab.cells(of="img")][:1]:
        lab.screenshot(cell, screenshots / f"{notebook.stem}-reopened.png")


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


def test_a_student_is_trained_while_one_looks_on_and_stopped(lab, screenshots):
    lab.write("live.ipynb", LIVE)
    lab.open("live.ipynb")
    lab.run_all()
    (cell,) = lab.cells()
    button, seen = cell.find_element("css selector", ".widget-toggle-button"), {lab.source(cell)}
    button.click()
    started = time.monotonic()
    while len(seen) < 4:  # a point an epoch
        assert time.monotonic() < started + browser.PATIENCE
        seen.add(lab.source(cell))
    lab.screenshot(cell, screenshots / "live.png")
    button.click()
    (trained,) = (lab.folder / "live").glob("distill-*/metrics.csv")
    at = 0
    while at != (at := len(trained.read_text().splitlines()) - 1):  # epochs; the one that it was in is finished
        time.sleep(2)
    assert 3 <= at < 200


def test_an_interrupt_is_two_lines_and_the_cell_run_again_goes_on_with_the_same_numbers(lab, screenshots):
    lab.write("undisturbed.ipynb", TRAIN.format("undisturbed"))
    lab.open("undisturbed.ipynb")
    lab.run_all()
    undisturbed = lab.outputs()
    lab.write("interrupted.ipynb", TRAIN.format("interrupted"))
    lab.open("interrupted.ipynb")
    lab.driver.execute_script(EPOCHS)
    lab.start(browser.RUN_ALL)
    lab.wait("return epochs.includes('3')")
    lab.command("interrupt")
    lab.wait_for("run the cell again to go on", 1)
    lab.driver.save_screenshot(str(screenshots / "interrupted.png"))
    said = [line for line in lab.text(".jp-OutputArea-output").splitlines() if line]
    assert len(said) == 3 and "students" in said[0] and "in epoch 3 of 6" in said[1] and "run the cell" in said[2], said
    lab.driver.execute_script(EPOCHS)
    lab.run_all()
    assert lab.driver.execute_script("return epochs")[0] == "3"
    assert lab.outputs()[0][-1]["data"] == undisturbed[0][-1]["data"]


def test_the_report_opens_from_disk_without_a_network_whole(smoke, lab, screenshots):
    (report,) = smoke[1].rglob("report.html")
    lab.driver.set_network_conditions(offline=True, latency=0, throughput=0)
    try:
        lab.driver.get(report.as_uri())
        equations, pictures, links, loaded = lab.driver.execute_script("""
            const all = selector => [...document.querySelectorAll(selector)];
            return [
              all('math').map(e => Math.min(e.getBoundingClientRect().width, e.getBoundingClientRect().height)),
              all('img').map(e => e.naturalWidth), all('a[href]').map(e => e.getAttribute('href')),
              performance.getEntriesByType('resource').map(e => e.name)]""")
        whole = lab.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]
    finally:
        lab.driver.delete_network_conditions()
    (screenshots / "report.png").write_bytes(b64decode(whole))
    text = report.read_text(encoding="utf-8")
    assert len(equations) > 10 and min(equations) > 4
    assert len(pictures) > 10 and min(pictures) > 100
    assert not [url for url in loaded if not url.startswith("data:")]
    assert not [link for link in links if link.startswith("#") and f'id="{link[1:]}"' not in text]
    assert not [link for link in links if not link.startswith(("#", "https://"))]
    assert "%|" not in text and "stderr" not in text.split("</style>")[1]
