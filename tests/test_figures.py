"""What stays of a figure, its PNG and its CSV, whatever happens to the files."""

import multiprocessing
import shutil
import subprocess

from r2kd import figures, tables

import pandas as pd
import pytest
from test_run_all import ROOT, disk_that_takes, run_all

NAME = "pruning_accuracy"
ROWS = [{"rate": r, "batchnorm": mode, "top1": 90 - r} for r in (0, 50, 90) for mode in ("running", "batch")]


@pytest.fixture
def saved(tmp_path):
    """Folder of one figure."""
    figures.save(NAME, pd.DataFrame(ROWS), tmp_path, "made up")
    return tmp_path


def redraw(folder, capsys):
    """Exit code, and the lines on stderr, of --figures-only."""
    code = run_all.main(["--figures-only", "--figures-root", str(folder)])
    return code, capsys.readouterr().err.splitlines()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("damage", ["a row less", "half a row less", "a digit changed"])
def test_figures_only_names_a_table_that_was_cut_or_changed_and_keeps_its_figure(damage, saved, capsys):
    csv, before = saved / f"{NAME}.csv", contents(saved)
    text = csv.read_text()
    cut = {
        "a row less": text[: text.rindex("90,")],
        "half a row less": text[:-4],
        "a digit changed": text.replace("running,40", "running,49"),
    }
    assert cut[damage] != text and len(pd.read_csv(csv)) == len(ROWS)
    csv.write_text(cut[damage])
    code, said = redraw(saved, capsys)
    assert code == 1 and len(said) == 1 and f"{csv} is not as it was saved" in said[0]
    assert contents(saved)[f"{NAME}.png"] == before[f"{NAME}.png"]


def test_a_change_that_is_meant_is_drawn_once_sha256sum_says_so(saved, capsys):
    csv = saved / f"{NAME}.csv"
    csv.write_text(csv.read_text().replace("made up", "made up otherwise"))
    assert redraw(saved, capsys)[0] == 1
    subprocess.run(f"sha256sum {NAME}.csv >> {tables.SUMS}", shell=True, cwd=saved, check=True)
    assert redraw(saved, capsys) == (0, [])


def test_a_table_without_a_digest_is_drawn_and_that_is_said(saved, capsys):
    (saved / tables.SUMS).unlink()
    code, said = redraw(saved, capsys)
    assert code == 0 and len(said) == 1 and said[0].endswith(f"drawn unchecked, no digest in SHA256SUMS: {NAME}.csv")


def test_a_table_that_is_listed_and_missing_is_named(saved, capsys):
    (saved / f"{NAME}.csv").unlink()
    code, said = redraw(saved, capsys)
    assert code == 1 and len(said) == 1 and f"{NAME}.csv is no file, though SHA256SUMS lists it" in said[0]


def test_digests_that_two_branches_added_are_merged_by_git_as_lines(saved):
    """Each side's line stands, as .gitattributes asks for; of one table both, until it is saved again."""
    ours = (saved / tables.SUMS).read_text()
    (saved / tables.SUMS).write_text(
        f"<<<<<<<\n{'0' * 64}  {NAME}.csv\n=======\n{ours}>>>>>>>\n{'1' * 64}  students.csv\n"
    )
    assert len(tables.read(saved / f"{NAME}.csv")) == len(ROWS)
    figures.save(NAME, pd.DataFrame(ROWS), saved, "made up")
    lines = (saved / tables.SUMS).read_text().splitlines()
    assert ours.strip() in lines and [line[66:] for line in lines if NAME in line] == [f"{NAME}.csv"]
    assert f"{'1' * 64}  students.csv" in lines
    asked = ["git", "check-attr", "text", "merge", "--", f"figures/x/{tables.SUMS}", "figures/x/students.csv"]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout
    assert said.count("text: unset") == 2 and "SHA256SUMS: merge: union" in said


def test_the_committed_tables_are_as_they_were_saved():
    committed = [path for path in tables.under(ROOT / "figures") if path.stem in figures.FIGURES]
    assert len(committed) > 30
    for path in committed:
        assert len(tables.read(path)) and (tables.listed(path) or "smoke" in str(path)), path


DAMAGED = {
    "empty": b"",
    "foreign": b"a,b\n1,2\n",
    "header-only": b"epoch,arm,mean,half_width,n,caption\n",
    "empty-caption": b"epoch,arm,mean,half_width,n,caption\n1,kd,50,1,3,\n",
    "ragged": b"epoch,arm\n1,kd\n1,kd,50,1,3,made up\n",
    "binary": b"\x89PNG\0\xff",
    "caption-alone": b"caption\nmade up\n",
    "words": b"epoch,arm,mean,half_width,n,caption\na,b,c,d,e,made up\n",
    "open-quote": b'"epoch,arm',
    "folder": None,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_one_damaged_table_is_one_line_and_the_others_are_drawn(content, saved, capsys):
    shutil.copytree(saved, saved / "later")
    damaged, drawn = saved / "training_curves.csv", saved / "later" / f"{NAME}.png"
    damaged.mkdir() if content is None else damaged.write_bytes(content)
    drawn.unlink()
    code, said = redraw(saved, capsys)
    assert code == 1 and drawn.exists()
    assert len(said) == 1 and said[0].startswith(f"run_all: {damaged} is no"), said


@pytest.mark.parametrize("size", [100, 2000], ids=["the table", "the drawing"])
def test_on_a_full_disk_a_figure_in_place_stays_and_the_file_is_named(size, saved, capsys):
    before = contents(saved)
    with disk_that_takes(size), pytest.raises(OSError, match=rf"kept: '.*{NAME if size > 200 else ''}.*'"):
        figures.save(NAME, pd.DataFrame(ROWS * 9), saved, "made up otherwise")
    if size < 200:
        assert contents(saved) == before
    assert contents(saved)[f"{NAME}.png"] == before[f"{NAME}.png"]
    assert not list(saved.glob(".*.tmp")) and len(tables.read(saved / f"{NAME}.csv")) >= len(ROWS)
    with disk_that_takes(size):
        code, said = redraw(saved, capsys)
    assert code == 1 and len(said) == 1 and f"{NAME}.png" in said[0]


def test_killed_at_any_write_of_a_figure_its_table_is_whole_and_saved_again_it_is_as_undisturbed(saved, monkeypatch):
    """The old table or the new one, which --figures-only takes either way."""
    undisturbed = saved / "undisturbed"
    figures.save(NAME, pd.DataFrame(ROWS[:4]), undisturbed, "other")
    write = figures.files.write_atomically
    for killed_at in range(4):
        figures.save(NAME, pd.DataFrame(ROWS), saved, "made up")
        writes = iter(range(9))

        def killed(path, content, writes=writes, killed_at=killed_at):
            if next(writes) == killed_at:
                raise KeyboardInterrupt
            write(path, content)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(figures.files, "write_atomically", killed)
            figures.save(NAME, pd.DataFrame(ROWS[:4]), saved, "other")
        assert len(tables.read(saved / f"{NAME}.csv")) == (len(ROWS) if killed_at < 2 else 4)
        figures.save(NAME, pd.DataFrame(ROWS[:4]), saved, "other")
        assert contents(saved) == contents(undisturbed)


def save_often(folder, rows, caption):
    for _ in range(2):
        figures.save(NAME, pd.DataFrame(rows), folder, caption)


def test_two_processes_at_once_leave_whole_files_and_a_figure_of_its_table(saved):
    (saved / f"{NAME}.png").unlink()
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=save_often, args=(saved, ROWS[: 2 + n], f"number {n}")) for n in (2, 4)]
    for process in both:
        process.start()
    while any(process.is_alive() for process in both):
        tables.read(saved / f"{NAME}.csv")
        if (saved / f"{NAME}.png").exists():
            assert (saved / f"{NAME}.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert [process.exitcode for process in both] == [0, 0]
    left = (saved / f"{NAME}.png").read_bytes()
    figures.redraw(saved / f"{NAME}.csv")
    assert (saved / f"{NAME}.png").read_bytes() == left and len((saved / tables.SUMS).read_text().splitlines()) == 1
