"""Whether the study's students come out as recorded on this machine: python -m benchmarks.again

Question: the records are of processors with instructions for bfloat16. On one without them the sums have another order, and training
magnifies the last digit: is a student another one there, on average? Arms: four that train in a third of an hour, each from its
recorded seeds; paired by seed with its record. What it can see: a method differs from itself by about half a point from one order of
sums to another (benchmarks.precision), so twenty students see a mean difference of 0.3. Where the kind of machine is the
record's, all differences are 0. Finished runs are not computed again. Writes again.csv and README.md beside it.
"""

import argparse
from dataclasses import replace

from benchmarks import report
from r2kd import experiments, records, stats, training
from r2kd.data import ImageData

import pandas as pd

ARMS = ("cross-entropy", "KD", "DKD", "DIST")


def trained(study: experiments.Study, images: ImageData, seed: int, known: dict[str, dict]) -> list[dict]:
    """A row a student of this seed that has a record: its accuracy there and here, in percent, and what computed each."""
    configs = {arm: config for arm, config in study.students(seed).items() if config.run(images).address in known}
    runs = training.distill_all(list(configs.values()), images) if configs else []
    rows = []
    for arm, run in zip(configs, runs, strict=True):
        row = {"student": arm, "seed": seed}
        for where, found in {"recorded": known[run.address], "here": run.row}.items():
            how = f"in {found['precision']}, threads {found['threads']}, torch {found['torch']}"
            row |= {where: found["last_top1"], f"{where}_how": how}
        rows.append(row)
    return rows


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """By student, and of all: both means, of the difference in points the mean, its half width and its standard deviation, and
    of how many students, of which so many are the same to the last digit."""
    both = pd.concat([rows, rows.assign(student="all")])
    both["difference"] = both["here"] - both["recorded"]
    by = both.groupby("student", sort=False)
    found = by[["recorded", "here"]].mean()
    found["standard_deviation"] = by["difference"].std()
    found["same"] = by["difference"].agg(lambda points: int((points == 0).sum()))
    pooled = both.drop(columns="seed")  # "all" has several students of a seed
    difference = stats.mean_interval(pooled, ["student"], "difference").set_index("student")
    found = found.join(difference.rename(columns={"mean": "difference"}))
    for where in ("recorded_how", "here_how"):
        found[where] = by[where].agg(lambda how: " or ".join(dict.fromkeys(how)))
    return found.reset_index()


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--arms", default=";".join(ARMS), help="labels of the study, with ; between them [%(default)s]")
    top.add_argument("--seeds", type=int, default=5, help="[5]")
    top.add_argument("--data-root", help="where CIFAR-100 lies or is downloaded to [$R2KD_DATA, else data/]")
    top.add_argument("--runs-root", help="where run folders go [$R2KD_RUNS, else runs/]")
    options = top.parse_args()
    study = experiments.study("small", data_root=options.data_root, runs_root=options.runs_root)
    if unknown := set(options.arms.split(";")) - study.arms.keys():
        top.error(f"unknown arm {min(unknown)!r}; known: {'; '.join(study.arms)}")
    study = replace(study, arms={label: study.arms[label] for label in options.arms.split(";")})
    images, known = study.open_data(), records.committed()
    training.put_back(study.teacher, study.teacher_images(images))
    rows = pd.DataFrame(row for seed in range(options.seeds) for row in trained(study, images, seed, known))
    table = compared(rows)
    print(table.round(2).to_string(index=False))
    report.save({"again": table.assign(caption=study.caption(images))}, training.resolve_device("auto"))


if __name__ == "__main__":
    main()
