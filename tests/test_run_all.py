import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from r2kd import figures, notebook, runs

import nbformat
import pandas as pd
import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
AUTHORS = {"published", "published_robustness"}  # figures that need the authors' files
STUDY = {"distance_weights"}  # and that need the study's arms
DRAWN = set(figures.FIGURES) - AUTHORS - STUDY
SPEC = importlib.util.spec_from_file_location("run_all", ROOT / "run_all.py")
run_all = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run_all)


@contextmanager
def disk_that_takes(size):
    """Every file that is written ends at `size` bytes with an error, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_smoke_executes_all_notebooks_and_ends_with_the_table(smoke):
    done, folder, drawn = smoke
    assert done.returncode == 0, done.stderr[-3000:]
    for path in run_all.NOTEBOOKS:
        executed = nbformat.read(folder / "notebooks" / "digits" / "smoke-res20_res8" / path.name, as_version=4)
        code = [cell for cell in executed.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
        assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
        assert len([output for cell in code for output in cell.outputs if output.output_type == "stream"]) <= 2
        assert f"commit {runs.commit()}, {ROOT / 'r2kd'}" in str(code)
    for arm in ("cross-entropy", "KD cutmix", "R2KD autoaug, pruned", "pruned_batchnorm: running", "intended"):
        assert f"{arm} " in done.stdout
    assert f"{len(DRAWN)} figures, each with its CSV: {drawn}" in done.stdout
    text = (folder / "notebooks" / "digits" / "smoke-res20_res8" / "05_published_results.ipynb").read_text()
    assert "0 of 34 published files" in text and text.count("not present") >= 34


def test_of_progress_bars_the_last_line_stays_and_of_the_rest_everything():
    def stream(*texts, name="stderr"):
        return [nbformat.v4.new_output("stream", name=name, text=text) for text in texts]

    nested = stream(
        "runs:   0%|  | 0/2", "\n", "one: 50%|# | 1/2\x1b[A", "a warning\n", "\n    \x1b[A\rruns: 100%|##| 2/2\n"
    )
    cells = [
        nbformat.v4.new_code_cell("", outputs=[*stream("printed\r\n", name="stdout"), *nested]),
        nbformat.v4.new_code_cell("", outputs=stream("one:  0%|  |", "\r     \r")),
        nbformat.v4.new_code_cell("", outputs=stream("no bar\n", "at all\n")),
    ]
    run_all.tidy(nbformat.v4.new_notebook(cells=cells))
    texts = [[output.text for output in cell.outputs] for cell in cells]
    assert texts == [["printed\r\n", "a warning\nruns: 100%|##| 2/2\n"], [], ["no bar\n", "at all\n"]]


def test_every_figure_is_drawn_beside_its_table(smoke):
    _, _, drawn = smoke
    assert {path.stem for path in drawn.glob("*.png")} == DRAWN
    for path in (drawn / f"{name}.csv" for name in DRAWN):
        assert path.with_suffix(".png").stat().st_size > 5_000
        caption = pd.read_csv(path)["caption"].iloc[0]
        kept = ", 64 validation" if path.stem == "search" else ""
        said = f"digits, 128 training{kept} and 200 test images of 16 px; 1 epoch; resnet20 teaches resnet8"
        assert caption.startswith(said)


def test_started_again_it_returns_the_finished_runs(smoke, monkeypatch, capfd):
    _, folder, drawn = smoke
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    # the teacher, 15 students of 2 seeds, 6 more of the ablation, 3 of one's own; label noise of a teacher and 3 students;
    # the search, 9 students of a teacher that has other images, and what confirms its choice
    confirmed = pd.read_csv(drawn.with_name(f"{drawn.name}-confirmation") / "records.csv")
    assert len(before) == 47 + 3 + 7 + 10 + len(confirmed)
    where = ["--runs-root", str(folder), "--figures-root", str(drawn.parents[1]), "--device", "cpu"]
    assert run_all.main(["--profile", "smoke", "--only", "02", *where]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")} == before


def test_figures_only_draws_every_figure_from_its_table_alone(smoke, tmp_path, capsys):
    _, _, drawn = smoke
    for path in drawn.glob("*.csv"):
        shutil.copy(path, tmp_path / path.name)
    assert run_all.main(["--figures-only", "--figures-root", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(DRAWN) + 1  # README.md, which shows them
    for name in DRAWN:
        assert (tmp_path / f"{name}.png").read_bytes() == (drawn / f"{name}.png").read_bytes()


def test_figures_only_without_a_table_is_an_error(tmp_path, capsys):
    assert run_all.main(["--figures-only", "--figures-root", str(tmp_path)]) == 1
    assert "no table of a figure" in capsys.readouterr().err


def test_a_csv_of_something_else_is_named(tmp_path, capsys):
    (tmp_path / "students.csv").write_text("a,b\n1,2\n")
    assert run_all.main(["--figures-only", "--figures-root", str(tmp_path)]) == 1
    assert "students.csv is not the table of a figure" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--figures-only", "--figures-root", "nowhere"], ["--help"]])
def test_figures_only_and_help_do_not_wait_for_torch(arguments, capsys):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import run_all"
    code += f"\ntry: run_all.main({arguments!r})\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and (done.stdout + done.stderr), done.stderr


@pytest.fixture
def one_notebook(tmp_path, monkeypatch):
    """Run one notebook of these cells, on a kernel: (exit code, the executed notebook's path)."""

    def run(*sources, kernel="python3"):
        cells = [nbformat.v4.new_code_cell(source) for source in ("profile = settings = None", *sources)]
        cells[0].metadata["tags"] = ["parameters"]
        spec = {"kernelspec": {"name": kernel, "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), tmp_path / "01_made.ipynb")
        monkeypatch.setattr(run_all, "NOTEBOOKS", [tmp_path / "01_made.ipynb"])
        where = ["--runs-root", str(tmp_path / "runs"), "--figures-root", str(tmp_path / "figures")]
        code = run_all.main(["--profile", "smoke", *where])
        return code, tmp_path / "runs" / "notebooks" / "digits" / "smoke-res20_res8" / "01_made.ipynb"

    return run


def test_a_notebook_that_fails_shows_the_cell_and_is_kept(one_notebook, capfd):
    code, kept = one_notebook("before = 6 * 7\nbefore", "raise OSError('no such image')", "print('never reached')")
    said = capfd.readouterr().err
    assert code == 1 and "raise OSError('no such image')" in said and "OSError: no such image" in said
    assert str(kept) in said
    assert "42" in json.dumps(nbformat.read(kept, as_version=4)) and "never reached" in kept.read_text()


def test_what_the_package_refuses_is_one_line_without_the_cell(one_notebook, capfd):
    code, kept = one_notebook("from r2kd import entries\nentries.load('nowhere.py')")
    said = capfd.readouterr().err
    assert code == 1 and "entries.load(" not in said and "Error" not in said
    assert said.strip().splitlines()[0].startswith("run_all: 01_made: no file of entries at ")
    assert f"up to there: {kept}" in said


def test_on_a_full_disk_the_executed_notebook_in_place_stays_and_is_named(one_notebook, capfd):
    code, executed = one_notebook("print('first')")
    before = executed.read_bytes()
    capfd.readouterr()
    with disk_that_takes(50_000):
        code, _ = one_notebook("print('second ' * 20_000)")
    said = capfd.readouterr().err.strip()
    assert (
        code == 1 and said.startswith("run_all: ") and said.endswith(f"what was written before is kept: '{executed}'")
    )
    assert len(said.splitlines()) == 1 and "File too large" in said
    assert executed.read_bytes() == before and not list(executed.parent.glob(".*"))


def test_a_kernel_that_dies_at_start_is_one_line(one_notebook, tmp_path, monkeypatch, capfd):
    spec = tmp_path / "kernels" / "dies" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": [sys.executable, "-c", "raise SystemExit(3)"], "display_name": "dies"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for kernel in ("dies", "absent"):
        code, _ = one_notebook("1", kernel=kernel)
        said = capfd.readouterr().err
        assert code == 1 and "run_all: 01_made: its kernel does not start: " in said and "Traceback" not in said, said


@pytest.mark.parametrize(
    "arguments", [["--prof", "smoke"], ["--fig"], ["--runs-root", ""], ["--only", ""], ["--load="]]
)
def test_option_prefixes_and_empty_strings_are_refused_in_a_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_all.main(arguments)
    said = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and ("unknown option" in said or "is empty" in said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "09"], "no notebook '09'; there are 01_teacher_pruning"),
        (["--pair", "res1_res2"], "unknown pair 'res1_res2'"),
        (["--profile", "huge"], "unknown profile 'huge'; known: smoke, quick"),
        (["--set", "temprature=2"], "unknown setting 'temprature'; known: pair"),
        (["--set", "temperature"], "--set takes key=value, not 'temperature'"),
        (["--arms", "kd; kx"], "unknown method 'kx'"),
        (["--train-images=-5"], "train_images must be above 0, not -5"),
        (["--image-size", "0"], "image_size must be at least 8, not 0"),
        (["--load", "nowhere.py"], "no file of entries at"),
        (["--teacher-checkpoint", "nowhere"], "no checkpoint at"),
        (["--set", "runs_root= "], "runs_root is empty"),
        (["--set", "dataset="], "dataset is empty"),
        (["--published-root", "nowhere"], "of published files: mistyped"),
    ],
)
def test_what_is_not_there_is_said(arguments, said, capsys):
    assert run_all.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run_all: ") and said in line


def test_quick_stays_quick_and_says_what_it_left(monkeypatch, tmp_path, capsys):
    executed = []
    monkeypatch.setattr(run_all, "execute", lambda notebook, *_: executed.append(notebook.stem) or True)
    where = ["--runs-root", str(tmp_path), "--figures-root", str(tmp_path)]
    assert run_all.main(where) == 0 and [name[:2] for name in executed] == ["01", "02", "03"]
    assert "04_fidelity, 05_published_results, 06_beyond (--only 04,05,06" in capsys.readouterr().out
    executed.clear()
    assert run_all.main(["--profile", "small", *where]) == 0 and len(executed) == len(run_all.NOTEBOOKS)
    assert "not run" not in capsys.readouterr().out


def test_notebooks_are_committed_clean_with_their_parameters_tagged():
    names = ["01_teacher_pruning", "02_distillation", "03_robustness", "04_fidelity", "05_published_results"]
    names += ["06_beyond"]
    assert [path.stem for path in run_all.NOTEBOOKS] == names
    for path in run_all.NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
        assert [cell.metadata.get("tags") for cell in cells].count(["parameters"]) == 1


def test_what_a_notebook_imports_hides_none_of_its_parameters():
    for path in run_all.NOTEBOOKS:
        (cell,) = (c for c in nbformat.read(path, as_version=4).cells if c.metadata.get("tags") == ["parameters"])
        parameters = re.findall(r"^(\w+) =", cell.source, re.M)
        assert len(parameters) > 1 and not set(parameters) & set(notebook.__all__)


def test_the_committed_figures_have_their_tables():
    committed = sorted((ROOT / "figures").rglob("*.png"))
    assert committed and all(path.with_suffix(".csv").exists() for path in committed)
    for path in (ROOT / "figures").rglob("*.csv"):
        if path.stem in figures.FIGURES:
            assert isinstance(figures.draw(path.stem, pd.read_csv(path)), Figure)


def test_of_what_lies_in_the_folder_only_what_was_made_now_is_told(tmp_path, capsys):
    (tmp_path / "students.csv").write_text("arm,mean\nan older run's,99\n")
    (tmp_path / "students.png").write_bytes(b"")
    os.utime(tmp_path / "students.png", (1, 1))
    (tmp_path / "pruning_layers.png").write_bytes(b"")
    run_all.summarise(tmp_path, tmp_path / "executed", begun=2)
    told = capsys.readouterr().out
    assert told.startswith("1 figures, each with its CSV") and "older" not in told
