"""No number in the README that a committed table does not hold."""

import re
from pathlib import Path

from r2kd import experiments, fidelity, published, records, robustness, stats

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
FIGURES = ROOT / "figures" / "digits" / "quick-res20_res8"


def rows_under(header: str) -> list[list[str]]:
    lines = README[README.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def under_corruption() -> pd.DataFrame:
    table = pd.read_csv(FIGURES / "robustness_students.csv")
    return table[table["measure"] == "corrupted"].reset_index(drop=True)


def test_the_students_of_the_readme_are_those_of_the_tables():
    students, best = (pd.read_csv(FIGURES / f"{name}.csv") for name in ("students", "best_epoch"))
    corrupted = under_corruption()
    shown = rows_under("| student |")
    assert len(shown) == len(students) == len(experiments.study("quick").students(0))
    for i, (arm, last, worse, added) in enumerate(shown):
        assert arm == students["arm"][i] == corrupted["arm"][i] == best["arm"][i]
        assert last == f"{students['mean'][i]:.2f} ± {students['half_width'][i]:.2f}"
        assert worse == f"{corrupted['mean'][i]:.1f} ± {corrupted['half_width'][i]:.1f}"
        assert added == f"{best['mean'][i]:.2f}"
    assert f"({students['teacher_top1'][0]:.2f} %)" in README


def by_seed() -> pd.DataFrame:
    """arm, seed, last_top1 and corrupted of the students of quick, from the two records."""
    runs = pd.read_csv(FIGURES / "records.csv").set_index("address")
    rows = []
    for address, record in records.read([FIGURES / robustness.NAME]).items():
        run = runs.loc[address.rpartition("@")[0].partition("+")[0]]
        about = {"arm": record["arm"], "seed": run["seed"], "last_top1": run["last_top1"]}
        levels = pd.DataFrame(robustness.unpacked(record)).query("test == 'corruption' and level > 0")
        rows.append(about | {"corrupted": levels["top1"].mean()})
    table = pd.DataFrame(rows)
    return table[table["arm"].isin(experiments.study("quick").arms)]


def test_what_the_readme_says_of_the_students_holds_in_the_tables():
    for table in (pd.read_csv(FIGURES / "students.csv"), under_corruption()):
        means = table.set_index("arm")["mean"]
        assert (means.drop("cross-entropy") > means["cross-entropy"]).all()
    seen = {}
    for value in ("last_top1", "corrupted"):
        gaps = stats.paired_differences(by_seed(), "KD", value).set_index("arm").drop("cross-entropy")
        assert len(gaps) == 13 and gaps["n"].eq(3).all()
        seen[value] = gaps[gaps["mean"].abs() > gaps["half_width"]]["mean"]
    assert f"{len(seen['last_top1'])} of the other 13" in README and f"and {len(seen['corrupted'])} under" in README
    assert list(seen["last_top1"].index) == ["R2KD autoaug, pruned"] and (seen["last_top1"] < 0).all()
    said = ["R2KD", "R2KD cutout, pruned", "R2KD cutmixpick, pruned"]
    assert list(seen["corrupted"].index) == said and (seen["corrupted"] > 0).all() and "; ".join(said) in README
    gain = pd.read_csv(FIGURES / "pruning_gain.csv")
    assert (gain["mean"].abs() < gain["half_width"]).all()


def test_the_switches_of_the_readme_and_of_notebook_04_are_those_of_the_code():
    assert fidelity.table() in README and all(f"| `{switch.name}` |" in README for switch in fidelity.SWITCHES)
    assert "fidelity.table()" in (ROOT / "notebooks" / "04_fidelity.ipynb").read_text()


def test_the_ablation_of_the_readme_is_that_of_its_tables():
    folder = ROOT / "figures" / "cifar100" / "small-res20_res8"
    arms, effects = (pd.read_csv(folder / f"{name}.csv") for name in ("ablation", "switch_effects"))
    assert f"{arms['n'][0]} seeds; teacher {arms['teacher_top1'][0]:.2f} %" in README
    assert arms["caption"][0].removeprefix("cifar100, ") in README
    top1, spearman = (arms[arms["measure"] == name].set_index("arm") for name in ("top1", "spearman"))
    effects = effects[effects["measure"] == "top1"].set_index("arm")
    shown = rows_under("| student | last epoch, test (%) | rank")
    assert {row[0] for row in shown} == {*top1.index, *effects.index}
    for arm, last, correlation, effect, verdict in shown:
        if arm in top1.index:
            assert last == f"{top1['mean'][arm]:.2f} ± {top1['half_width'][arm]:.2f}"
            assert correlation == f"{spearman['mean'][arm]:.3f} ± {spearman['half_width'][arm]:.3f}"
        if arm in effects.index:
            assert effect == f"{effects['mean'][arm]:+.2f} ± {effects['half_width'][arm]:.2f}"
            assert verdict == effects["verdict"][arm]
            assert verdict == stats.verdict(effects["mean"][arm], effects["half_width"][arm]) or "same" in verdict


def test_what_the_readme_says_of_the_switches_holds_in_the_tables():
    seen = "no difference we can see at this scale"
    for folder in ("cifar100/small-res20_res8", "digits/quick-res20_res8"):
        effects = pd.read_csv(ROOT / "figures" / folder / "switch_effects.csv")
        effects = effects[effects["measure"] == "top1"].set_index("arm")
        trained = effects.drop(["cross-entropy", "reported: last"])["verdict"]
        assert set(trained) == {seen}
    assert effects.index[0] == "cross-entropy"
    small = pd.read_csv(ROOT / "figures" / "cifar100" / "small-res20_res8" / "switch_effects.csv")
    small = small[small["measure"] == "top1"].set_index("arm")
    assert small.loc["cross-entropy", "verdict"] == "hurts" and small.loc["cross-entropy", "mean"] < -10
    closest = (small["mean"] / small["half_width"]).drop("cross-entropy").nlargest(2)
    assert set(closest.index) == {"pick: after", "draws: sample"}


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


def test_the_costs_of_the_readme_are_those_of_the_benchmark():
    costs = pd.read_csv(ROOT / "benchmarks" / "cost.csv")
    shown = rows_under("| study |")
    assert len(shown) == len(costs)
    for cells, (_, row) in zip(shown, costs.iterrows(), strict=True):
        assert cells[:4] == [row["profile"], row["dataset"], row["pair"], str(row["students"])]
        assert [float(cell) for cell in cells[4:]] == [row["teacher_hours"], row["students_hours"]]


def test_the_speed_of_the_readme_is_that_of_the_benchmark():
    step = pd.read_csv(ROOT / "benchmarks" / "step.csv")
    ours = step[(step["loop"] == "ours") & (step["pruned_batchnorm"] == "running")]
    ratios = ours.set_index(["pair", "students", "precision"])["ratio"]
    shown = rows_under(f"| {step['machine'][0]} |")
    assert len(shown) == len(ratios) / 2
    for (pair, students), cells in zip(ratios.index.droplevel("precision").unique(), shown, strict=True):
        assert cells[0].split(",")[0].split(" → ") == list(experiments.PAIRS[pair]) and cells[1] == str(students)
        assert cells[2:] == [f"{ratios[(pair, students, precision)]:.2f}" for precision in ("float32", "bfloat16")]


def test_what_the_readme_says_of_half_precision_is_that_of_the_benchmark():
    (sentence,) = re.findall(r"In bfloat16 the same students\s.*?\steaches \w+\.", README, re.DOTALL)
    table = pd.read_csv(ROOT / "benchmarks" / "precision.csv")
    for row in table.to_dict("records"):
        assert f"{row['difference']:+.2f} ± {row['half_width']:.2f} points ({row['student']})" in sentence
    assert f"paired by {table['seeds'][0]} seeds" in sentence
    assert len(re.findall(r"points", sentence)) == len(table)
    assert "10,000 training" in table["caption"][0] and "30 epochs; resnet20 teaches resnet8" in table["caption"][0]


@pytest.mark.parametrize("path", sorted({part.split(")")[0] for part in README.split("](")[1:]}))
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
