import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from r2kd import __main__, fidelity, models


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = __main__.main(list(arguments))
    printed = capsys.readouterr()
    return code, printed.out.strip(), printed.err


SMALL = ["-d", "digits", "--epochs", "1", "--train-images", "64", "--test-images", "50"]


def test_a_teacher_a_student_and_its_evaluation(capsys, tmp_path):
    where = ["--runs-root", str(tmp_path), "--device", "cpu"]
    code, out, err = call(capsys, "teacher", *SMALL, "-m", "resnet20", *where)
    assert code == 0 and json.loads(out)["epochs"] == 1
    assert '"learning_rate": 0.05' in err
    teacher = json.loads(out)["run"]
    code, out, _ = call(capsys, "distill", *SMALL, "--pair", "res20_res8", "-a", "mixup", "--seed", "3", *where)
    student = json.loads(out)
    assert code == 0 and {"last_top1", "best_top1", "best_epoch", "run"} <= set(student)
    assert {path.name for path in tmp_path.iterdir()} == {teacher.split("/")[-1], student["run"].split("/")[-1]}
    code, out, _ = call(capsys, "evaluate", "-d", "digits", "-m", "resnet8", "-c", student["run"] + "/last.pt")
    assert code == 0 and json.loads(out.splitlines()[-1]).keys() == {"top1", "top5", "n"}
    assert json.loads(out)["n"] == 797


def test_the_switches_are_options_and_the_report_follows_them(capsys, tmp_path):
    where = ["--runs-root", str(tmp_path), "--device", "cpu", "--pair", "res20_res8", "-a", "cutmixpick"]
    small = [*SMALL[:2], "--epochs", "3", *SMALL[4:]]
    code, out, _ = call(capsys, "distill", *small, *where, "--fidelity", "intended", "--value", "cosine")
    result = json.loads(out)
    config = json.loads((Path(result["run"]) / "config.json").read_text())
    assert code == 0 and result["top1"] == result["last_top1"]
    intended = fidelity.preset("intended") | {"value": "cosine"}
    assert {name: config[name] for name in fidelity.NAMES} == intended and config["fidelity"] == "intended"
    switched = [f"--{name.replace('_', '-')}={value}" for name, value in intended.items() if name != "reported"]
    code, out, _ = call(capsys, "distill", *small, *where, *switched)
    assert code == 0 and json.loads(out)["run"] == result["run"] and json.loads(out)["top1"] == result["best_top1"]


def test_errors_are_one_line_and_an_exit_code(capsys, tmp_path):
    for arguments, said in (
        (("evaluate", "-d", "digits", "-m", "resnet8", "-c", "nowhere"), "no checkpoint at nowhere"),
        (("teacher", "-d", "nosuch", "-m", "resnet8"), "unknown data set 'nosuch'"),
        (("teacher", *SMALL[:2], "-m", "resnet8", "--device", "cuda:9"), "'cuda:9' is not to be had here"),
        (("teacher", *SMALL[:2], "-m", "resnet8", "--epochs", "0"), "epochs must be above 0"),
    ):
        code, out, err = call(capsys, *arguments, *(["--runs-root", str(tmp_path)] if "teacher" in arguments else []))
        assert (code, out) == (1, "")
        assert err.splitlines()[-1].startswith("r2kd: ") and said in err.splitlines()[-1]


def test_a_checkpoint_of_another_number_of_classes_is_refused(capsys, tmp_path):
    torch.save(models.create("resnet8", 7).state_dict(), tmp_path / "seven")
    code, _, err = call(capsys, "evaluate", "-d", "digits", "-m", "resnet8", "-c", str(tmp_path / "seven"))
    assert code == 1 and "seven has 7 classes, digits has 10" in err


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("r2kd.training.train_teacher", interrupted)
    code, _, err = call(capsys, "teacher", *SMALL, "-m", "resnet8", "--runs-root", str(tmp_path))
    assert code == 130 and "the same command goes on at the last whole epoch" in err


def test_importing_r2kd_needs_no_jupyter():
    rooms = "models, losses, pruning, augmentation, data, evaluation, robustness, runs, training, experiments, figures"
    blocked = "sys.modules |= dict.fromkeys(('IPython', 'ipywidgets', 'papermill', 'jupyterlab', 'nbformat'))"
    code = f"import sys; {blocked}; from r2kd import {rooms}, __main__"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_published_student_scores_what_it_scored(shared, tiny_imagenet):
    checkpoint = shared / "checkpoints" / "cutout_res56_res20_student_best"
    command = [sys.executable, "-m", "r2kd", "evaluate", "-d", "tiny_imagenet", "-m", "resnet20", "-c", str(checkpoint)]
    done = subprocess.run([*command, "--data-root", str(tiny_imagenet)], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"top1": 56.22, "top5": pytest.approx(80.29), "n": 10000}
