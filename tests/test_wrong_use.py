"""What a hostile command line, a closed stream or a signal does to `python -m r2kd`: one line and an exit code."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from r2kd import __main__, data, runs, terminal, training
from r2kd.config import DistillConfig, TeacherConfig

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
DIGITS = "-d digits --train-images 64 --test-images 50 --device cpu"
TEACHER = f"teacher {DIGITS} -m resnet8"
DISTILL = f"distill {DIGITS} --pair res20_res8"
EVALUATE = "evaluate -d digits -m resnet8 -c"

HOSTILE = [  # arguments, what the one line says, exit code
    (f"{DISTILL} --method kd --rank soft", "rank is of r2kd, and the method is kd", 1),
    (f"{DISTILL} --method kd --set rank=soft", "rank is of r2kd, and the method is kd", 1),
    (f"{DISTILL} --mask select", "mask is of mlkd, and the method is r2kd", 1),
    (f"{DISTILL} --pick after", "pick is of cutmixpick, and the view is none", 1),
    (
        f"{DISTILL} --pruning-rate 0 --pruned-batchnorm running",
        "pruned_batchnorm acts on nothing: pruning_rate is 0",
        1,
    ),
    (f"{DISTILL} --method kd --dense-weight 0.5", "dense_weight acts on nothing: pruning_rate is 0", 1),
    (f"{DISTILL} --method ce --pruning-rate 0.1", "pruning_rate acts on nothing: the method ce has no teacher", 1),
    (f"{DISTILL} --method ce --set teacher.epochs=3", "teacher.epochs acts on nothing: the method ce has no", 1),
    (f"{DISTILL} --method ce --teacher-checkpoint nowhere", "teacher.checkpoint acts on nothing: the method ce", 1),
    (f"{DISTILL} --teacher-checkpoint nowhere", "no checkpoint at nowhere", 1),
    (f"{DISTILL} --teacher-checkpoint w --set teacher.epochs=3", "teacher.epochs acts on nothing: the weights are", 1),
    (f"{TEACHER} --checkpoint w --epochs 3", "epochs acts on nothing: the weights are given", 1),
    (f"{TEACHER} --test-images 0", "test_images must be above 0, not 0", 1),
    (f"{TEACHER} --image-size -3", "image_size must be at least 8, not -3", 1),
    (f"{TEACHER} --image-size 100000", "image_size must be at most 1024, not 100000", 1),
    (f"{EVALUATE} w --image-size 100000", "image_size must be at most 1024, not 100000", 1),
    (f"{TEACHER} --device meta", "device 'meta' is not supported", 1),
    (f"{EVALUATE} w --device meta", "device 'meta' is not supported", 1),
    (f"{TEACHER} --epochs 0", "epochs must be above 0, not 0", 1),
    (f"{TEACHER} --seed -1", "seed must be at least 0, not -1", 1),
    (f"{TEACHER} --seed 1.5", "argument --seed: invalid int value: '1.5'", 2),
    (f"{TEACHER} --set seed=3", "unknown setting 'seed'", 1),
    (f"{DISTILL} --set seed=3", "unknown setting 'seed'", 1),
    (f"{TEACHER} --batch-size 1", "batch_size must be at least 2, not 1", 1),
    (f"{TEACHER} --train-images 1", "train_images must be at least 2, not 1: BatchNorm", 1),
    (f"{DISTILL} --set teacher.train_images=1", "train_images must be at least 2, not 1: BatchNorm", 1),
    (f"{TEACHER} --learning-rate nan", "learning_rate of recipe is of type float, not 'nan'", 1),
    (f"{TEACHER} --learning-rate 1e999", "learning_rate of recipe is a finite number, not inf", 1),
    (f"{TEACHER} --weight-decay=-1e999", "weight_decay of recipe is a finite number, not -inf", 1),
    (f"{DISTILL} --method r2kd:temperature=1e999", "temperature of method 'r2kd' is a finite number, not inf", 1),
    (f"{TEACHER} --milestones (1e999,)", "milestones of recipe is a finite number, not (inf,)", 1),
    (f"{TEACHER} --milestones \"(1,'x')\"", "milestones are epochs, whole numbers such as (150, 180, 210)", 1),
    (f"{TEACHER} --runs-root ''", "--runs-root is empty", 2),
    (f"{TEACHER} --data-root ''", "--data-root is empty", 2),
    (f"{TEACHER} --set runs_root=", "runs_root of machine is empty", 1),
    (f"{TEACHER} --checkpoint ''", "--checkpoint is empty", 2),
    (f"{EVALUATE} ''", "--checkpoint is empty", 2),
    (f"{DISTILL} --rank ''", "--rank is empty", 2),
    ("runs --runs-root ''", "--runs-root is empty", 2),
    (f"{TEACHER} --load foreign.csv", "foreign.csv is no Python file", 1),
    (f"{TEACHER} --epoch 3", "unknown option --epoch: --epochs is meant?", 2),  # no option by its beginning
    (f"{DISTILL} --metod kd", "unknown option --metod: --method is meant?", 2),
    ("runs --cvs", "unknown option --cvs: --csv is meant?", 2),
    ("distil", "invalid choice: 'distil' (choose from 'teacher', 'distill'", 2),
    ("", "the following arguments are required: command", 2),
    (f"{DISTILL} --pair res20_res9", "unknown pair 'res20_res9'; known: wrn402_wrn162", 1),
    (f"{TEACHER} -d digit", "unknown data set 'digit': neither one of digits, cifar100", 1),
    (f"{TEACHER} -m resnet9", "unknown model 'resnet9'; known: resnet8", 1),
    (f"{EVALUATE} w -m resnet9", "unknown model 'resnet9'; known: resnet8", 1),
    (f"{DISTILL} -a cutmx", "unknown view 'cutmx'; known: none, identity, mixup", 1),
    (f"{DISTILL} --fidelity relased", "unknown fidelity 'relased'; known: released, intended", 1),
    (f"{TEACHER} --precision half", "precision is auto or float32 or bfloat16, not 'half'", 1),
    ("runs --merge missing.csv", "--merge takes two tables at least", 1),
    ("runs --merge missing.csv new.csv", "missing.csv", 1),
    ("runs --merge foreign.csv new.csv", "foreign.csv is not a table of records: it has no column address", 1),
    ("runs --merge header.csv foreign.csv", "foreign.csv is not a table of records", 1),
    ("runs --merge tests.csv runs.csv", "records of trainings and of tests are mixed in runs.csv, tests.csv", 1),
    ("runs --merge binary.csv new.csv", "binary.csv is not a table of records", 1),
    ("runs --merge header.csv new.csv", "no record in header.csv: new.csv is left as it is", 1),
    ("doctor --device meta", "", 1),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with tables that are none of records, and a checkpoint `w`."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "foreign.csv").write_text("a,b\n1,2\n")
    (folder / "header.csv").write_text("address,last_top1\n")
    (folder / "runs.csv").write_text("address,last_top1\nz,50.0\n")
    (folder / "tests.csv").write_text("address,protocol\nx,y\n")
    (folder / "binary.csv").write_bytes(bytes(range(256)) * 9)
    torch.save(__main__.models.create("resnet8", 10).state_dict(), folder / "w")
    return folder


@pytest.mark.parametrize(("line", "said", "code"), HOSTILE, ids=[line.replace(DIGITS, "-d") for line, *_ in HOSTILE])
def test_a_hostile_command_line_is_one_line_and_an_exit_code(line, said, code, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("R2KD_RUNS", str(place / "runs"))
    monkeypatch.setattr(terminal, "STOPS", ())  # the tests' own Ctrl-C stays
    before = {path: path.read_bytes() for path in place.glob("*.csv")}
    assert terminal.run(lambda: __main__.main(shlex.split(line))) == code
    told = [text for text in capsys.readouterr().err.split("}\n")[-1].splitlines() if text]  # behind the settings
    assert len(told) == (1 if said else 0) and said in "".join(told)
    assert {path: path.read_bytes() for path in place.glob("*.csv")} == before


def test_one_training_image_that_is_left_is_said_and_no_smaller_learning_rate_advised(capsys, monkeypatch, tmp_path):
    arguments = f"{TEACHER} --epochs 1 --validation-images 999 --runs-root {tmp_path}"
    assert __main__.main(shlex.split(arguments)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "two images" in said and "to train on" in said and "learning rate" not in said
    with pytest.raises(ValueError, match="two images in a batch at least, and there is 1 to train on"):
        data.batch_indices(1, 64, torch.Generator())


def test_more_than_memory_holds_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(__main__.training, "train_teacher", lambda config: torch.empty(2**50))
    assert __main__.main(shlex.split(TEACHER)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("r2kd: not enough memory") and "smaller --image-size or --batch-size" in said


def test_an_error_that_is_nobodys_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(__main__.training, "train_teacher", lambda config: {}["lost"])
    with pytest.raises(KeyError, match="lost"):
        __main__.main(shlex.split(TEACHER))


class Unusual(ValueError):
    def __init__(self, code: int, *, where: str) -> None:
        super().__init__(f"{code} at {where}")


@pytest.mark.parametrize(
    ("failures", "kind", "said"),
    [
        ([Unusual(3, where="the end"), KeyError("k")], ValueError, "^3 at the end; 'k'$"),
        (
            [UnicodeDecodeError("ascii", b"\xff", 0, 1, "no"), OSError(28, "full")],
            ValueError,
            "'ascii' codec.*; .*full",
        ),
        ([AssertionError(), FloatingPointError("nan")], Exception, "^AssertionError; nan$"),
        ([FloatingPointError("a"), FloatingPointError("b")], FloatingPointError, "^a; b$"),
    ],
    ids=["a user's own", "UnicodeDecodeError", "no text", "the usual"],
)
def test_two_arms_failing_with_exceptions_of_unusual_signatures(failures, kind, said, monkeypatch, tmp_path):
    settings = {"train_images": 64, "test_images": 50, "epochs": 1, "device": "cpu", "runs_root": str(tmp_path)}
    taught = TeacherConfig.of("resnet8", **settings)

    def failing(student, teacher, *, which=0):
        raise failures[which]  # not the next one: the arms are trained side by side, in either order

    arms = [DistillConfig.of("resnet8", teacher=taught, method=failing, which=i, **settings) for i in (0, 1)]
    with pytest.raises(kind, match=said) as raised:
        training.distill_all(arms, progress=False)
    assert type(raised.value) is kind and raised.value.__cause__ is failures[0]


# ---- in a process of its own

MODULE = [sys.executable, "-m", "r2kd"]
PIPES = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
TELLING = "import sys; from r2kd import terminal; terminal.prepare(); sys.exit(terminal.tell('r\xe9sultat', 0))"


def test_what_ascii_lacks_is_printed_all_the_same():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    told = subprocess.run([sys.executable, "-c", TELLING], stdout=subprocess.PIPE, env=environment, **PIPES)
    assert (told.returncode, told.stdout, told.stderr) == (0, "r\\xe9sultat\n", "")


def test_a_pipe_that_has_seen_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    told = subprocess.run([sys.executable, "-c", TELLING], stdout=writer, **PIPES)
    os.close(writer)
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_result_that_cannot_be_written_is_an_error():
    with open("/dev/full", "w") as full:
        told = subprocess.run([sys.executable, "-c", TELLING], stdout=full, **PIPES)
    assert told.returncode == 1 and told.stderr.startswith("what it says cannot be written: ")
    assert told.stderr.count("\n") == 1


def test_with_stderr_closed_a_training_ends_and_stdout_holds_the_result_alone(tmp_path):
    line = f"{shlex.join(MODULE)} {TEACHER} --epochs 1 --runs-root {tmp_path} 2>&-"
    done = subprocess.run(["sh", "-c", line], stdout=subprocess.PIPE, **PIPES)
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and done.stdout.startswith('{"run": ')


@pytest.mark.parametrize("closed", ["<&- 2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_no_files_place(closed, tmp_path):
    code = "import sys; from r2kd import terminal; terminal.prepare(); f = open(sys.argv[1], 'w'); print(f.fileno(), file=f)"
    code += "; print('lost', file=sys.stderr); sys.exit(terminal.tell('result', 0))"
    line = f"{shlex.join([sys.executable, '-c', code, str(tmp_path / 'file')])} {closed}"
    done = subprocess.run(["sh", "-c", line], stdout=subprocess.PIPE, **PIPES)
    assert done.returncode == 0 and int((tmp_path / "file").read_text()) > 2
    assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else "result\n")


@pytest.mark.parametrize("number", terminal.STOPS)
def test_ctrl_c_and_sigterm_while_torch_is_imported_are_one_line_and_130(number, tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen([*MODULE, "runs"], env=environment, stdout=subprocess.PIPE, **PIPES)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=100)
    assert (process.returncode, said) == (130, "\ninterrupted\n")


def test_sigterm_is_as_good_as_ctrl_c_the_state_is_kept(tmp_path):
    long = f"{TEACHER} --epochs 400 --seed 1"
    arguments = [*shlex.split(long), "--runs-root", str(tmp_path)]
    process = subprocess.Popen([*MODULE, *arguments], stdout=subprocess.DEVNULL, **PIPES)
    ended = time.monotonic() + 200  # of a machine that is busy
    while not list(tmp_path.glob("*/timing.csv")) and time.monotonic() < ended:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == "interrupted; the same command goes on at the last whole epoch"
    (folder,) = tmp_path.glob("teacher-*")
    run = runs.Run(folder)
    assert run.load_epoch()["epoch"] >= 1 and not run.finished
