"""No number in the README that a committed table does not hold."""

import re
from pathlib import Path

from r2kd import __main__, experiments, fidelity, published, words

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
FIGURES = ROOT / "figures" / "digits" / "quick-res20_res8"
STUDY = ROOT / "figures" / "cifar100" / "small-res20_res8"


def found_section() -> str:
    return README[README.index("## What was found") : README.index("## Two commands")]


def test_what_is_said_of_the_abstract_is_what_the_tables_of_the_study_allow():
    tables = (pd.read_csv(STUDY / f"{name}.csv") for name in ("comparisons", "robust_comparisons", "grid"))
    assert f"\n\n{words.abstract(*tables)}\n\n" in found_section()


def test_how_far_the_study_is_and_its_scale_are_those_of_its_records():
    study = experiments.study("small")
    kept = pd.read_csv(STUDY / "records.csv")
    students = kept[kept["model"] == study.first.model.name]
    wanted = sum(len(study.students(seed)) for seed in study.seeds)
    section = " ".join(found_section().split())
    assert f"{len(students)} of its {wanted} students" in section
    emulated = (students["precision"] == "bfloat16 in float32").sum()
    assert not emulated or f"({emulated} of them by a processor that rounds to bfloat16 in float32)" in section
    (teacher,) = kept.loc[kept["arm"] == "teacher", "last_top1"]
    assert f"resnet20 ({teacher:.1f} %, trained on all 50,000 images)" in section
    caption = pd.read_csv(STUDY / "comparisons.csv")["caption"][0]
    assert "2,500 training, 1,000 validation and 10,000 test images of 32 px; 120 epochs; " in caption
    assert "2,500 of them, 120 epochs" in section
    hours = students.drop_duplicates("started")["seconds"].sum() / 3600
    assert students["address"].is_unique and hours > 0


def test_the_row_of_the_readmes_command_is_in_the_records():
    (command,) = re.findall(r"python -m (r2kd distill -d cifar100 --pair res20_res8 .*?)\n```", README, re.S)
    options = __main__.parser().parse_args(command.replace("\\\n", " ").split()[1:])
    config = __main__.distill_config(options)
    rows = pd.read_csv(STUDY / "records.csv")
    (row,) = rows[(rows["arm"] == "R2KD, released") & (rows["seed"] == 0)].to_dict("records")
    named = (
        "epochs",
        "train_images",
        "validation_images",
        "precision",
        "tested_from",
        "learning_rate",
        "method",
        "view",
    )
    named += ("pruning_rate", "teacher", "teacher.train_images", "teacher.validation_images", "teacher.epochs")
    for name in named:
        asked = config.precision if name == "precision" else config.settings()[name]
        assert row[name] == asked, name


def test_the_switches_of_notebook_04_are_those_of_the_code():
    assert "fidelity.table()" in (ROOT / "notebooks" / "04_fidelity.ipynb").read_text()
    assert all(f"| `{switch.name}` |" in fidelity.table() for switch in fidelity.SWITCHES)
    of = {method: len(fidelity.of(method)) for method in ("R2KD", "MLKD")}
    assert of == {"R2KD": 6, "MLKD": 3} and "six places of R2KD and three of MLKD" in " ".join(README.split())


def test_the_published_students_of_the_readme_are_those_of_their_tables():
    folder = ROOT / "figures" / "tiny_imagenet" / "published"
    table = pd.read_csv(folder / "published.csv")
    evaluated = table[table["status"] == "evaluated"].set_index(["augmentation", "pair"])
    assert f"[{len(evaluated)} of {len(table)}](figures/tiny_imagenet/published/published.csv)" in README
    cutout = evaluated.loc[("cutout", "res56_res20")]
    assert f"with cutout {cutout['top1']:.2f} % top-1, {cutout['top5']:.2f} % top-5" in " ".join(README.split())
    tests, protocol = published.tests_table(folder)
    clean = tests[tests["test"] == "clean"].set_index(["arm", "seed"])["top1"]
    assert len(clean) == len(evaluated)
    for key, top1 in evaluated["top1"].items():
        assert clean[key] == pytest.approx(top1, abs=1e-3)
    assert " ".join(published.robustness_words(published.robustness_summary(tests)).split()) in " ".join(README.split())
    assert protocol in pd.read_csv(folder / "published_robustness.csv")["caption"][0]


def test_the_speed_of_the_readme_is_that_of_the_benchmark():
    step = pd.read_csv(ROOT / "benchmarks" / "step.csv")
    ours = step[(step["loop"] == "ours") & (step["pruned_batchnorm"] == "running") & (step["students"] == 8)]
    ratios = ours.set_index(["pair", "precision"])["ratio"].loc["res56_res20"]
    text = " ".join(README.split())
    assert f"with eight students is {ratios['float32']:.2f} times as fast as a plain float32 loop" in text
    assert f"and {ratios['bfloat16']:.2f} times in bfloat16" in text


def test_how_far_students_came_out_from_their_records_elsewhere_is_that_of_the_benchmark():
    again = pd.read_csv(ROOT / "benchmarks" / "again.csv").set_index("student").loc["all"]
    said = f"{again['n']} students came out [{again['difference']:+.2f} ± {again['half_width']:.2f} points]"
    assert said in " ".join(README.split()) and "bfloat16 in float32" in again["here_how"]


@pytest.mark.parametrize("path", sorted({part.split(")")[0].split("#")[0] for part in README.split("](")[1:]}))
def test_every_link_of_the_readme_leads_somewhere(path):
    assert path.startswith("https://") or (ROOT / path).exists()


def test_the_records_of_quick_are_what_its_table_is_made_of():
    records = pd.read_csv(FIGURES / "records.csv")
    students = pd.read_csv(FIGURES / "students.csv").set_index("arm")
    kept = records[records["arm"].isin(students.index) & (records["model"] == "resnet8")]
    means = kept.groupby("arm")["last_top1"].agg(["mean", "count"])
    assert set(means.index) == set(students.index)
    means = means.loc[students.index]
    assert (means["count"] == students["n"]).all()
    assert ((means["mean"] - students["mean"]).abs() < 1e-3).all()
    (teacher,) = records.loc[records["arm"] == "teacher", "last_top1"]
    assert teacher == pytest.approx(students["teacher_top1"].iloc[0], abs=1e-3)
    assert (
        records["address"].is_unique and not records.astype(str).apply(lambda c: c.str.contains("/")).to_numpy().any()
    )
