import io
import json
import subprocess
import sys
from pathlib import Path

from r2kd import __main__, fidelity, models, records, runs

import pandas as pd
import pytest
import torch


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = __main__.main(list(arguments))
    printed = capsys.readouterr()
    return code, printed.out.strip(), printed.err


SMALL = ["-d", "digits", "--epochs", "1", "--train-images", "64", "--test-images", "50"]
TAUGHT = [*SMALL, "--set", "teacher.epochs=1"]


def test_a_teacher_a_student_and_its_evaluation(capsys, tmp_path):
    where = ["--runs-root", str(tmp_path), "--device", "cpu"]
    code, out, err = call(capsys, "teacher", *SMALL, "-m", "resnet20", *where)
    assert code == 0 and json.loads(out)["epochs"] == 1
    assert '"learning_rate": 0.05' in err
    teacher = json.loads(out)["run"]
    code, out, _ = call(capsys, "distill", *TAUGHT, "--pair", "res20_res8", "-a", "mixup", "--seed", "3", *where)
    student = json.loads(out)
    assert code == 0 and {"last_top1", "best_top1", "best_epoch", "run"} <= set(student)
    assert student["teacher"]["run"] == teacher and student["teacher"]["top1"] >= 0
    assert {path.name for path in tmp_path.glob("[!.]*")} == {teacher.split("/")[-1], student["run"].split("/")[-1]}
    code, out, _ = call(capsys, "evaluate", "-d", "digits", "-m", "resnet8", "-c", student["run"] + "/last.pt")
    assert code == 0 and json.loads(out.splitlines()[-1]).keys() == {"top1", "top5", "n"}
    assert json.loads(out)["n"] == 797


def test_what_is_recorded_of_a_run_stands_beside_what_came_out(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "ROOT", tmp_path)
    asked = ["distill", *SMALL, "--method", "kd", "--pair", "res20_res8", "--set", "teacher.epochs=1", "--runs-root"]
    assert "record" not in json.loads(call(capsys, *asked, str(tmp_path / "runs"))[1])
    (run,) = (runs.Run(folder) for folder in (tmp_path / "runs").glob("distill-*"))
    recorded = run.row | {"last_top1": run.result["last_top1"] + 1.5, "commit": "abc"}
    (tmp_path / "figures" / "digits").mkdir(parents=True)
    pd.DataFrame([recorded]).to_csv(tmp_path / "figures" / "digits" / "records.csv", index=False)
    record = json.loads(call(capsys, *asked, str(tmp_path / "runs"))[1])["record"]
    assert record["top1"] == recorded["last_top1"] and record["here"] == "-1.50 points" and record["commit"] == "abc"


def test_the_switches_are_options_and_the_report_follows_them(capsys, tmp_path):
    where = ["--runs-root", str(tmp_path), "--device", "cpu", "--pair", "res20_res8", "-a", "cutmixpick"]
    small = [*SMALL[:2], "--epochs", "3", *SMALL[4:], "--set", "teacher.epochs=3"]
    code, out, _ = call(capsys, "distill", *small, *where, "--fidelity", "intended", "--value", "cosine")
    result = json.loads(out)
    config = json.loads((Path(result["run"]) / "config.json").read_text())
    assert code == 0 and result["top1"] == result["last_top1"]
    own = [s for s in fidelity.SWITCHES if s.of == "R2KD"]
    intended = {s.name: s.intended for s in own} | {"value": "cosine"}
    flat = {s.name: s.key if s.part in ("method", "view") else s.name for s in own}
    assert {name: config[key] for name, key in flat.items()} == intended
    switched = [f"--{name.replace('_', '-')}={value}" for name, value in intended.items() if name != "reported"]
    code, out, _ = call(capsys, "distill", *small, *where, *switched)
    assert code == 0 and json.loads(out)["run"] == result["run"] and json.loads(out)["top1"] == result["best_top1"]


def test_the_switches_of_mlkd_are_options_too(capsys, tmp_path):
    where = ["--runs-root", str(tmp_path), "--device", "cpu", "--teacher", "resnet8", "--student", "resnet8"]
    mlkd = [*TAUGHT, *where, "--method", "mlkd", "-a", "randaugment"]
    code, out, _ = call(capsys, "distill", *mlkd, "--fidelity", "intended", "--mask", "mean")
    run = json.loads(out)["run"]
    config = json.loads((Path(run) / "config.json").read_text())
    intended = {s.name: s.intended for s in fidelity.SWITCHES if s.of == "MLKD"} | {"mask": "mean"}
    assert code == 0 and {name: config[f"method.{name}"] for name in intended} == intended
    switched = [f"--{name.replace('_', '-')}={value}" for name, value in intended.items()]
    code, out, _ = call(capsys, "distill", *mlkd, *switched)
    assert code == 0 and json.loads(out)["run"] == run
    code, _, err = call(capsys, "distill", *TAUGHT, *where, "--mask", "select")
    assert code == 1 and "mask is of mlkd, and the method is r2kd" in err


def test_errors_are_one_line_and_an_exit_code(capsys, tmp_path):
    for arguments, said in (
        (("evaluate", "-d", "digits", "-m", "resnet8", "-c", "nowhere"), "no checkpoint at nowhere"),
        (("teacher", "-d", "nosuch", "-m", "resnet8"), "unknown data set 'nosuch'"),
        (("teacher", *SMALL[:2], "-m", "resnet8", "--device", "cuda:9"), "'cuda:9' is not to be had here"),
        (("teacher", *SMALL[:2], "-m", "resnet8", "--epochs", "0"), "epochs must be above 0"),
        (("teacher", *SMALL[:2], "-m", "resnet9"), "unknown model 'resnet9'; known: resnet8"),
        (("teacher", *SMALL[:2], "-m", "resnet8", "--train-images=-5"), "train_images must be above 0, not -5"),
        (("teacher", *SMALL[:2], "-m", "resnet8", "--image-size", "0"), "image_size must be at least 8, not 0"),
        (("teacher", *SMALL[:2], "-m", "resnet8", "--set", "temperature=2"), "unknown setting 'temperature'"),
        (("teacher", *SMALL[:2], "-m", "resnet8", "--set", "epochs"), "--set takes key=value, not 'epochs'"),
        (("teacher", *SMALL[:2], "-m", "resnet8", "--load", "nowhere.py"), "no file of entries at"),
        (("distill", *SMALL[:2], "--teacher", "resnet8"), "name a --pair, or a --teacher and a --student"),
        (("distill", *SMALL[:2], "--pair", "res20_res8", "--method", "kx"), "unknown method 'kx'; known: ce, kd"),
    ):
        code, out, err = call(
            capsys, *arguments, *(["--runs-root", str(tmp_path)] if "evaluate" not in arguments else [])
        )
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
    rooms = "models, losses, methods, pruning, augmentation, data, evaluation, robustness, runs, training, experiments, figures"
    blocked = "sys.modules |= dict.fromkeys(('IPython', 'ipywidgets', 'papermill', 'jupyterlab', 'nbformat'))"
    code = f"import sys; {blocked}; from r2kd import {rooms}, __main__"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_published_student_scores_what_it_scored(shared, tiny_imagenet):
    checkpoint = shared / "checkpoints" / "cutout_res56_res20_student_best"
    command = [sys.executable, "-m", "r2kd", "evaluate", "-d", "tiny_imagenet", "-m", "resnet20", "-c", str(checkpoint)]
    done = subprocess.run([*command, "--data-root", str(tiny_imagenet)], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"top1": 56.22, "top5": pytest.approx(80.29), "n": 10000}


def test_all_runs_are_one_table_that_says_and_clears_what_is_unfinished(capsys, tmp_path):
    where = ["--runs-root", str(tmp_path)]
    assert call(capsys, "runs", *where)[1] == f"no run under {tmp_path}"
    for epochs in ("1", "2"):
        call(capsys, "teacher", *SMALL[:2], "--epochs", epochs, *SMALL[4:], "-m", "resnet8", "--device", "cpu", *where)
    call(capsys, "distill", *TAUGHT, "--pair", "res20_res8", "--set", "temperature=2", "--device", "cpu", *where)
    begun = next(tmp_path.glob("distill-*"))
    (begun / "result.json").unlink()
    code, out, _ = call(capsys, "runs", *where)
    assert code == 0 and out.splitlines()[-1] == "4 runs, 1 unfinished (--delete-unfinished clears them)"
    assert "unfinished, 1 epochs" in out and "epochs" in out.splitlines()[0] and "weight_decay" not in out
    _, out, _ = call(capsys, "runs", "--csv", *where)
    table = pd.read_csv(io.StringIO(out)).set_index("address")
    assert table.loc[begun.name, "method.temperature"] == 2 and table.loc[begun.name, "teacher"] == "resnet20"
    assert {"last_top1", "seconds", "device", "precision", "commit", "weight_decay"} <= set(table)
    assert (table["precision"] == "float32").all() and (table["device"] == "cpu").all()
    assert runs.table(tmp_path)["address"].tolist() == list(table.index)
    _, out, _ = call(capsys, "runs", "--delete-unfinished", *where)
    assert out.splitlines() == [begun.name, "1 unfinished runs deleted"] and not begun.exists()
    assert len(list(tmp_path.glob("[!.]*"))) == 3


def test_a_teacher_whose_weights_are_given_is_named_with_its_accuracy(capsys, tmp_path):
    where = ["--runs-root", str(tmp_path / "runs"), "--device", "cpu"]
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in models.create("resnet20", 10).state_dict().items()}},
        tmp_path / "w",
    )
    given = ["--teacher-checkpoint", str(tmp_path / "w"), "--pair", "res20_res8"]
    code, out, err = call(capsys, "distill", *SMALL, *given, *where)
    teacher = json.loads(out)["teacher"]
    assert code == 0 and Path(teacher["run"]).name.startswith("teacher-digits-resnet20-given-") and teacher["top1"] > 0
    assert f'"teacher.checkpoint": "{tmp_path / "w"}"' in err
    assert sum(path.name.startswith("teacher") for path in (tmp_path / "runs").iterdir()) == 1
