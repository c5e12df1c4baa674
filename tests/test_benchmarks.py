import dataclasses
import sys
from types import SimpleNamespace

from benchmarks import again, agreement, corruptions, explorers, gpu, loops, operators, precision, pulls, report, step
from r2kd import experiments, profiles

import pandas as pd
import pytest
import torch

CPU = torch.device("cpu")
PAIR = profiles.pair_models("res20_res8")


def test_the_readme_shows_the_tables_beside_it_and_no_other_number():
    assert (report.FOLDER / "README.md").read_text() == report.render()


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_both_loops_train_on_the_same_images_at_the_same_first_loss(mode):
    images = dataclasses.replace(step.benchmark_images(16), flip=False)
    firsts = []
    for loop in (loops.plain_loop, loops.our_loop):
        endless = loop(PAIR, images, mode, CPU)
        steps = [next(endless) for _ in range(4)]
        endless.close()
        assert all(0 < taken.data_seconds < taken.seconds for taken in steps)
        firsts.append(steps[0].loss)
    assert firsts[0] == pytest.approx(firsts[1], rel=0.05)  # the weights are the same, the first batches are not


def test_the_flops_are_those_of_four_answers_and_two_lessons_a_student():
    teacher, student = 0.2507e9, 0.0816e9  # multiply-adds of both counted twice, resnet56 and resnet20 at 32 pixels
    lesson = 3 * student - 2 * 16 * 3 * 9 * 32 * 32  # the first layer's input needs no gradient
    for arms in (1, 8):
        expected = loops.BATCH * (4 * teacher + 2 * arms * lesson)
        assert step.step_flops("res56_res20", arms) == pytest.approx(expected, rel=0.01)


def test_from_the_same_weights_the_fast_path_has_the_loss_of_the_plain_one(monkeypatch):
    monkeypatch.setitem(profiles.PAIRS, "res20_res8", PAIR)
    differences = report.largest_differences(agreement.losses("res20_res8", 16, 4, CPU))
    assert float(differences.set_index("path").loc["fast, from the plain weights"].iloc[0]) < 1e-4


def test_on_a_gpu_the_kernels_are_counted_and_not_the_operators_that_launched_them_too():
    def event(key, device, cpu, gpu):
        kind = SimpleNamespace(name=device)
        return SimpleNamespace(key=key, device_type=kind, self_cpu_time_total=cpu, self_device_time_total=gpu)

    events = [event("aten::conv", "CPU", 7.0, 5.0), event("implicit_gemm", "CUDA", 0.0, 5.0)]
    assert operators.own_times(events, torch.device("cuda")).to_dict() == {"implicit_gemm": 5.0}
    assert operators.own_times(events, CPU).to_dict() == {"aten::conv": 7.0}


def test_a_processor_without_bfloat16_keeps_to_float32(monkeypatch):
    for native, count in ((True, 8), (False, 5)):
        monkeypatch.setattr(step.acceleration, "native_bfloat16", lambda device, native=native: native)
        assert len(step.loops(CPU)) == count


def test_the_comparison_of_precisions_is_paired_by_seed_of_one_teacher_in_float32(tmp_path):
    study = precision.study(5, data_root=str(tmp_path))
    assert {config.teacher for config in study.arms.values()} == {study.teacher} and len(study.seeds) == 5
    assert study.teacher.precision == "float32" and study.teacher.recipe == study.first.recipe
    assert (study.first["epochs"], study.first["train_images"], study.first["validation_images"]) == (30, 10_000, 0)
    assert study.teacher.data == study.first.data
    assert [config.precision for config in study.arms.values()] == ["float32", "bfloat16"]
    points = {"float32": (40.0, 42.0), "bfloat16": (40.5, 42.3)}
    rows = [
        {"arm": arm, "seed": seed, "last_top1": points[config.precision][seed]}
        for arm, config in study.arms.items()
        for seed in (0, 1)
    ]
    table = precision.compared(pd.DataFrame(rows))
    assert list(table["student"]) == ["R2KD cutmix, pruned"] and list(table["seeds"]) == [2]
    assert table["difference"][0] == pytest.approx(0.4) and table["half_width"][0] == pytest.approx(1.2706, rel=1e-3)


def test_students_trained_again_are_held_to_their_records_one_by_one(tmp_path):
    rows = pd.DataFrame({"student": ["KD", "KD", "DKD", "DKD"], "seed": [0, 1, 0, 1]})
    rows = rows.assign(recorded=[20.0, 22.0, 30.0, 31.0], here=[20.5, 22.0, 30.0, 31.0])
    rows = rows.assign(recorded_how="in bfloat16", here_how=["in float32", "in bfloat16"] * 2)
    table = again.compared(rows).set_index("student")
    assert list(table.index) == ["KD", "DKD", "all"] and list(table["n"]) == [2, 2, 4]
    assert list(table["difference"]) == [0.25, 0.0, 0.125] and list(table["same"]) == [1, 2, 3]
    assert table.loc["KD", "half_width"] == pytest.approx(12.7062 * 0.25, rel=1e-4)
    assert table.loc["all", "standard_deviation"] == pytest.approx(0.25)
    assert table.loc["all", "each"] == "0.5 0 0 0" and table.loc["all", "here_how"] == "in float32 or in bfloat16"


def test_only_what_has_a_record_is_trained_again(tmp_path):
    study = experiments.study("smoke", runs_root=tmp_path / "runs", figures_root=tmp_path, arms="ce; kd")
    images = study.open_data()
    run = study.students(1)["cross-entropy"].run(images)
    record = {"last_top1": 12.5, "precision": "float32", "threads": 1, "torch": "2.14.1"}
    (row,) = again.trained(study, images, 1, {run.address: record})
    assert row["student"] == "cross-entropy" and row["recorded"] == 12.5 and row["here"] == run.result["last_top1"]
    assert row["recorded_how"] == "in float32, threads 1, torch 2.14.1"
    assert again.trained(study, images, 0, {run.address: record}) == []


def test_a_distance_pulls_in_proportion_to_its_weight_and_not_at_all_at_the_teacher():
    study = experiments.study("smoke", arms="kd cutmix; r2kd cutmix pruning_rate=0")
    kd, r2kd = study.arms.values()
    student, teacher = (torch.randn(64, 10, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    usual = pulls.norms(student, teacher, kd, r2kd)
    louder = pulls.norms(student, teacher, kd.with_settings({"kd_weight": 3}), r2kd.with_settings({"value_weight": 1}))
    assert louder["kl"] == pytest.approx(3 * usual["kl"]) and louder["value"] == pytest.approx(usual["value"] / 2)
    assert max(pulls.norms(teacher, teacher, kd, r2kd).values()) < 1e-5 < min(usual.values())
    images = study.open_data()
    student, teacher = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10)) for _ in range(2))
    student(images.test.images[:2].float()), teacher(images.test.images[:2].float())
    rows = pulls.measured(student, teacher.eval(), images, (kd, r2kd))
    assert [row["view"] for row in rows] == ["clean", "cutmixpick"] and min(row["kl"] for row in rows) > 0


def test_what_a_gpu_has_to_show_is_kept_when_time_is_up_and_not_done_again(tmp_path):
    def rows(device):
        yield {"number": 1}
        while True:
            pass

    gpu.write_rows(tmp_path / "rows.csv", rows, CPU, 0.2)
    kept = pd.read_csv(tmp_path / "rows.csv")
    assert kept["number"].tolist() == [1] and kept["machine"][0] == report.machine(CPU)
    gpu.write_rows(tmp_path / "rows.csv", lambda device: pytest.fail("done again"), CPU, 0.2)


def test_every_test_of_the_gpu_is_listed_and_a_failure_is_a_row(monkeypatch, tmp_path):
    listed = list(gpu.tests(CPU))
    assert len(listed) > 10 and {row["outcome"] for row in listed} == {"not run: no GPU"}
    (tmp_path / "failing.py").write_text("def test_one(): assert 1 == 2, 'no'\ndef test_two(): pass\n")
    monkeypatch.setattr(gpu, "CUDA_TESTS", tmp_path / "failing.py")
    failed, passed = gpu.tests(torch.device("cuda"))
    assert (failed["outcome"], passed["outcome"]) == ("failed", "passed")
    assert failed["message"] == "AssertionError: no (test_one:1)"
    (tmp_path / "failing.py").write_text("import os\ndef test_one(): pass\ndef test_two(): os._exit(1)\n")
    passed, ended = gpu.tests(torch.device("cuda"))
    assert (passed["outcome"], ended["outcome"]) == ("passed", "failed")


REFERENCE = """
def get_corruption_names(subset):
    return ["fog", "contrast", "rain"]

def corrupt(image, severity, corruption_name):
    assert image.shape == (32, 32, 3) and severity == 3
    print("ValueError, Exception handling")
    if corruption_name == "contrast":
        raise AttributeError("must be at least 33 pixels")
"""


def test_corruptions_are_timed_beside_those_of_another_interpreter(tmp_path, monkeypatch):
    (tmp_path / "imagecorruptions.py").write_text(REFERENCE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(corruptions, "CORRUPTIONS", ("fog", "contrast", "brightness"))
    split, source = corruptions.test_images(12, str(tmp_path))
    assert split.images.shape == (12, 3, 32, 32) and source == "random smooth images"
    table = corruptions.measured(split, sys.executable).set_index("corruption")
    assert list(table.index) == ["fog", "contrast", "brightness", "all"] and (table["seconds"] > 0).all()
    assert table["seconds"]["all"] == pytest.approx(table["seconds"][:3].sum())
    assert table["reference_seconds"].isna().tolist() == table["ratio"].isna().tolist() == [False, True, True, False]
    fog = table.loc["fog"]
    assert fog["ratio"] == pytest.approx(fog["reference_seconds"] / fog["seconds"]) == table["ratio"]["all"]
    assert corruptions.measured(split)["ratio"].isna().all()


def test_the_corruptions_join_the_readme_with_their_table(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    assert report._corruptions_section() == ""
    rows = {"corruption": ["fog", "frost", "all"], "seconds": [1.25, 2, 3.25], "reference_seconds": [125, None, 125]}
    table = pd.DataFrame(rows | {"ratio": [100, None, 100]}).assign(
        images=10_000, source="CIFAR-100's", reference_images=50
    )
    report.save({"corruptions": table}, CPU)
    section = report._corruptions_section()
    assert "2 corruptions at five severities, 10,000 images of 32 pixels (CIFAR-100's)" in section
    assert "| fog | 1.2 | 125.0 | 100.0 |\n| frost | 2.0 |  |  |\n" in section and "timed on 50 of" in section
    report.save({"corruptions": table.assign(reference_seconds=None, ratio=None)}, CPU)
    assert "imagecorruptions" not in report._corruptions_section()


def test_every_explorer_is_timed_and_joins_the_readme(tmp_path, monkeypatch):
    monkeypatch.setattr(explorers, "KEYS", 2)
    times = explorers.in_process()
    assert list(times) == list(explorers.MOVED) and all(len(of) == 2 and min(of) > 0 for of in times.values())
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    assert report._explorers_section() == ""
    table = pd.concat(
        [explorers.summary("process", {"losses": [4.0, 1.0, 2.0]}), explorers.summary("browser", {"losses": [30.0]})]
    )
    report.save({"explorers": table}, CPU)
    section = report._explorers_section()
    assert "| losses | temperature | 2 (4) | 30 (30) |" in section and "moved 3 times" in section
