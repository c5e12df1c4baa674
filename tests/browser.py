"""A notebook in a real JupyterLab in a real Chromium: for tests/test_browser.py and benchmarks/explorers.py."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # every cell is there to be looked at
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
PATIENCE = float(os.environ.get("R2KD_BROWSER_PATIENCE", 300))  # seconds; a test waits as long as that before it fails
CONTROLS = ".widget-slider, .widget-dropdown, .widget-toggle-buttons, .widget-checkbox"
# what a reader sees: when each key was pressed and each new picture was there, looked at frame by frame
WATCH = """
const cell = arguments[0], seen = (window.seen = {keys: [], pictures: []});
const now = () => { const all = cell.querySelectorAll('img'); return all.length ? all[all.length - 1] : null; };
let last = now()?.src;
cell.addEventListener('keydown', () => seen.keys.push(performance.now()), true);
const frame = () => {
  const image = now();
  if (image && image.complete && image.src !== last) { last = image.src; seen.pictures.push(performance.now()); }
  if (window.seen === seen) requestAnimationFrame(frame);
};
requestAnimationFrame(frame);
"""


START = """
const done = (window.done ??= {{}}), name = arguments[0];
delete done[name];
{}.then(() => done[name] = 'well', error => done[name] = `${{error}}`);
"""
SESSION = "jupyterapp.shell.currentWidget.sessionContext.session"
KERNEL = {"interrupt": f"{SESSION}.kernel.interrupt()", "shut down": f"{SESSION}.shutdown()"}
RUN_ALL = "notebook:run-all-cells"


def missing() -> str:
    """Why there is no browser to test with, or nothing."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "needs selenium: pip install -e '.[browser]'"
    return "" if CHROMIUM and CHROMEDRIVER else "needs chromium and chromedriver"


def with_parameters(notebook: Path, place: Path, **parameters) -> Path:
    """A copy of a notebook in the folder `place` with other values in its first cell."""
    copied = nbformat.read(notebook, as_version=4)
    cell = next(cell for cell in copied.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source = "\n".join([cell.source, *(f"{name} = {value!r}" for name, value in parameters.items())])
    nbformat.write(copied, place / notebook.name)
    return place / notebook.name


@contextmanager
def jupyterlab(folder: Path) -> Iterator["Lab"]:
    """Serves `folder`, with settings and state of its own in it."""
    from selenium import webdriver

    own = folder / ".jupyter"
    for plugin, settings in SETTINGS.items():
        path = own / "settings" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"JUPYTERLAB_SETTINGS_DIR": own / "settings", "JUPYTERLAB_WORKSPACES_DIR": own / "workspaces"}
    places |= {"JUPYTER_CONFIG_DIR": own / "config", "JUPYTER_RUNTIME_DIR": own / "runtime", "PYTHONPATH": ROOT}
    environment = {name: value for name, value in os.environ.items() if name != "R2KD_PROGRESS"}
    flags = (
        f"--no-browser --allow-root --port={port} --port-retries=0 --expose-app-in-browser --IdentityProvider.token="
    )
    command = [sys.executable, "-m", "jupyterlab", *flags.split(), f"--ServerApp.root_dir={folder}"]
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{flag}")
    with open(folder / "jupyterlab.log", "w") as log:
        server = subprocess.Popen(
            command, env=environment | {name: str(place) for name, place in places.items()}, stdout=log, stderr=log
        )
        try:
            driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
            driver.set_page_load_timeout(PATIENCE)
            driver.set_script_timeout(PATIENCE)
            try:
                _wait_for(port, server)
                yield Lab(driver, f"http://127.0.0.1:{port}", folder)
            finally:
                driver.quit()
        finally:
            server.terminate()
            server.wait()


def _wait_for(port: int, server: subprocess.Popen) -> None:
    for _ in range(int(10 * PATIENCE)):
        assert server.poll() is None, "JupyterLab ended"
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("JupyterLab does not answer")


class Lab:
    """One page with one notebook of a folder."""

    def __init__(self, driver, address: str, folder: Path) -> None:
        self.driver, self.address, self.folder = driver, address, folder

    def write(self, name: str, *cells: str) -> None:
        """A notebook of these cells."""
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel)
        nbformat.write(made, self.folder / name)

    def open(self, name: str) -> None:
        self.driver.get(f"{self.address}/lab/tree/{name}?reset")
        self.wait("return !!window.jupyterapp?.shell?.currentWidget?.sessionContext")
        self.wait("return jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'")

    def wait(self, script: str, *given):
        """What the script returns once it is true. Raises selenium's TimeoutException."""
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE, 0.1).until(lambda driver: driver.execute_script(script, *given))

    def start(self, name: str) -> None:
        """A command of JupyterLab's, or what KERNEL calls so."""
        self.driver.execute_script(START.format(KERNEL.get(name, "jupyterapp.commands.execute(name)")), name)

    def command(self, name: str) -> None:
        """One that has been done when it returns: asked again and again, as the driver waits for no answer of minutes."""
        self.start(name)
        said = self.wait("return window.done[arguments[0]]", name)
        assert said == "well", f"{name}: {said}"

    def run_all(self) -> None:
        """Every cell, until what each has to show is there."""
        self.command(RUN_ALL)
        self.wait(
            "return ![...document.querySelectorAll('.jp-OutputArea-output')].some(o => /^Loading widget/.test(o.textContent))"
        )

    def save(self) -> None:
        self.command("docmanager:save")

    def outputs(self) -> list[list[dict]]:
        """Of each cell, as the file would have them."""
        return self.driver.execute_script(
            "return jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model.outputs?.toJSON() ?? [])"
        )

    def errors(self) -> list[str]:
        outputs = [output for of in self.outputs() for output in of]
        return [f"{said['ename']}: {said['evalue']}" for said in outputs if said["output_type"] == "error"]

    def wait_for(self, words: str, times: int) -> None:
        """Until so many outputs have these words for a reader."""
        script = "return [...document.querySelectorAll('.jp-OutputArea-output')].filter(o => o.textContent.includes(arguments[0])).length"
        self.wait(f"{script} === arguments[1]", words, times)

    def text(self, of: str) -> str:
        """As it is read, of all elements of a selector."""
        return "\n".join(element.text for element in self.driver.find_elements("css selector", of))

    def cells(self, of: str = CONTROLS) -> list:
        """The cells that have elements of these selectors: controls."""
        found = self.driver.find_elements("css selector", ".jp-Notebook .jp-Cell")
        return [cell for cell in found if cell.find_elements("css selector", of)]

    def source(self, cell) -> str:
        """Of a cell's last picture."""
        return self.driver.execute_script("return [...arguments[0].querySelectorAll('img')].at(-1).src", cell)

    def picture(self, cell) -> bytes:
        """The PNG of a cell's last picture."""
        return b64decode(self.source(cell).split(",", 1)[1])

    def controls(self, cell) -> dict:
        """By their labels."""
        found = cell.find_elements("css selector", CONTROLS)
        return {control.find_element("css selector", "label").text: control for control in found}

    def focus(self, control):
        """What takes the keys of a control."""
        from selenium.webdriver.common.by import By

        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", control)
        target = control.find_element(By.CSS_SELECTOR, ".noUi-handle, select, input, button")
        self.driver.execute_script("arguments[0].focus()", target)
        return target

    def move(self, control, to: str | None = None) -> None:
        """To another value: a key, a click on the last button, or what a menu calls so."""
        from selenium.webdriver.common.keys import Keys
        from selenium.webdriver.support.select import Select

        target = self.focus(control)
        buttons = control.find_elements("css selector", "button")
        if buttons:
            buttons[-1].click()
        elif target.tag_name == "select":
            chosen = Select(target)
            names = [option.text for option in chosen.options]
            at = names.index(chosen.first_selected_option.text)
            chosen.select_by_visible_text(to or names[(at + 1) % len(names)])
        elif target.tag_name == "input":
            target.click()
        else:
            target.send_keys(Keys.ARROW_LEFT if at_the_end(target) else Keys.ARROW_RIGHT)

    def enabled(self, control) -> bool:
        return not control.find_elements("css selector", "[disabled]")

    def change(self, cell, control, to: str | None = None) -> bool:
        """Moves a control: whether the picture became another."""
        before = self.source(cell)
        self.move(control, to)
        script = "return [...arguments[0].querySelectorAll('img')].at(-1)?.src !== arguments[1]"
        return bool(self.wait(script, cell, before))

    def screenshot(self, cell, path: Path) -> None:
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", cell)
        self.driver.save_screenshot(str(path))

    def keys(self, cell, control, keys: list[str], seconds_apart: float) -> dict[str, list[float]]:
        """Presses keys in a row: the milliseconds at which each key and each new picture was there."""
        from selenium.webdriver.common.action_chains import ActionChains

        self.focus(control)
        self.driver.execute_script(WATCH, cell)
        chain = ActionChains(self.driver, duration=0)
        for key in keys:
            chain.send_keys(key).pause(seconds_apart)
        chain.perform()
        self.settled()
        return self.driver.execute_script("const seen = window.seen; window.seen = null; return seen")

    def settled(self) -> None:
        """Waits until a key has a picture and the kernel nothing to do, for half a second."""
        script = """
        const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
        const {keys, pictures} = window.seen, last = pictures[pictures.length - 1];
        return keys.length && last > keys[keys.length - 1] && performance.now() > last + 500 && kernel.status === 'idle'"""
        self.wait(script)


def at_the_end(handle) -> bool:
    return handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
