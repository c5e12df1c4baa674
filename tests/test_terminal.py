"""run_all as a program: its exit codes, and what the terminal sees, whatever it is started with and stopped by."""

import os
import shutil
import signal
import subprocess
import sys
import time

from r2kd import figures

import nbformat
import pandas as pd
import pytest
from test_run_all import ROOT

RUN_ALL = [sys.executable, str(ROOT / "run_all.py")]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of one figure, with a name that ASCII cannot say."""
    folder = tmp_path_factory.mktemp("figures é")
    table = pd.DataFrame({"rate": [0, 50], "batchnorm": "running", "top1": [90, 40]})
    figures.save("pruning_accuracy", table, folder, "made up")
    return folder


@pytest.mark.parametrize(
    ("closed", "environment", "code"),
    [
        ("", {"PYTHONIOENCODING": "ascii"}, 0),
        (">&- 2>&- <&-", {}, 0),
        (">/dev/full", {}, 1),
    ],
    ids=["ASCII", "closed", "full"],
)
def test_stdout_in_ascii_or_closed_is_no_failure_and_a_full_one_is(closed, environment, code, drawn):
    png = drawn / "pruning_accuracy.png"
    before = png.read_bytes()
    png.unlink()
    command = f"exec {sys.executable} {ROOT}/run_all.py --figures-only --figures-root '{drawn}' {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == code and "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
    assert png.read_bytes() == before
    if environment:
        assert "figures \\xe9" in done.stdout
    assert len(done.stderr.splitlines()) == code


@pytest.mark.parametrize(("module", "stop"), [("seaborn", signal.SIGTERM), ("torch", signal.SIGINT)])
def test_ctrl_c_and_sigterm_during_imports_are_130_without_a_traceback(module, stop, tmp_path):
    """Of an interrupt, an extension makes an ImportError."""
    slow = "import time\nprint('importing', flush=True)\ntry:\n    time.sleep(60)\n"
    (tmp_path / f"{module}.py").write_text(slow + "except BaseException:\n    raise ImportError('no extension')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    started = subprocess.Popen(RUN_ALL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert started.stdout.readline() == "importing\n"
    started.send_signal(stop)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130 and said == "\ninterrupted\n"


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not os.path.exists("/proc") or "(zombie)" not in open(f"/proc/{pid}/status").read()


def test_sigterm_in_a_notebook_is_as_good_as_ctrl_c_and_leaves_no_kernel_also_where_paths_have_braces(tmp_path):
    home = tmp_path / "{x} and {"
    (home / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "run_all.py", home)
    cells = [
        "profile = settings = None",
        "'before'",
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))",
    ]
    cells = [nbformat.v4.new_code_cell(source) for source in [*cells, "time.sleep(300)"]]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), home / "notebooks" / "01_sleeps.ipynb")
    command = [sys.executable, "run_all.py", "--runs-root", "runs", "--figures-root", "figures", "--profile", "smoke"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)
    started.terminate()
    _, said = started.communicate(timeout=120)
    assert started.returncode == 130 and said.strip() == "interrupted; the same command goes on from the finished runs"
    assert not running(int((tmp_path / "pid").read_text()))
    executed = nbformat.read(
        home / "runs" / "notebooks" / "digits" / "smoke-res20_res8" / "01_sleeps.ipynb", as_version=4
    )
    assert "before" in str(executed)
