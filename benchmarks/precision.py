"""What bfloat16 does to a student's accuracy: python -m benchmarks.precision

Question: is a student (CIFAR-100, 10,000 images, 30 epochs, resnet20 teaches resnet8) another one when it trains in bfloat16? Arms: R2KD with cutmix and the pruned teacher, which has in it all that a step can, in both precisions, of one
teacher trained in float32, paired by seed, tested in float32 on all 10,000 images. What it can see: students of 8 epochs that
differed in one switch differed by 0.5 to 0.7 points (standard deviation over seeds, from the half widths in the README), so five
seeds see 0.6 to 0.9 points. Rows of finished runs go to the study's records.csv, and are not computed again. Writes precision.csv
and README.md beside it. On two CPU cores about an hour and a half.
"""

import argparse

from benchmarks import report
from r2kd import experiments, stats
from r2kd.training import resolve_device

import pandas as pd

ARMS = ("r2kd cutmix",)
PRECISIONS = ("float32", "bfloat16")
SCALE = {"train_images": 10_000, "validation_images": 0, "epochs": 30, "tested_from": 0.0}
SCALE |= {"teacher.train_images": 10_000, "teacher.epochs": 30, "teacher.precision": "float32"}


def study(seeds: int, **settings) -> experiments.Study:
    arms = [f"{arm} precision={precision}" for arm in ARMS for precision in PRECISIONS]
    return experiments.study("small", arms=arms, seeds=seeds, **SCALE, **settings)


def compared(results: pd.DataFrame) -> pd.DataFrame:
    """A row a student: the mean of each precision with its half width, and that of the difference by seed, in points."""
    summary = stats.mean_interval(results, ["arm"], "last_top1").set_index("arm")
    rows = []
    for arm in dict.fromkeys(name.rpartition(", precision ")[0] for name in results["arm"]):
        row = {"student": arm}
        for precision in PRECISIONS:
            of = summary.loc[f"{arm}, precision {precision}"]
            row |= {precision: of["mean"], f"{precision}_half_width": of["half_width"]}
        half, full = (f"{arm}, precision {precision}" for precision in ("bfloat16", "float32"))
        (by_seed,) = stats.paired_difference(results, half, full, "last_top1").to_dict("records")
        rows.append(row | {"difference": by_seed["mean"], "half_width": by_seed["half_width"], "seeds": by_seed["n"]})
    return pd.DataFrame(rows)


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--seeds", type=int, default=5, help="[5]")
    top.add_argument("--device", default="auto", help="auto, cpu, cuda [auto]")
    top.add_argument("--data-root", help="where CIFAR-100 lies or is downloaded to [$R2KD_DATA, else data/]")
    top.add_argument("--runs-root", help="where run folders go [$R2KD_RUNS, else runs/]")
    options = top.parse_args()
    made = study(options.seeds, device=options.device, data_root=options.data_root, runs_root=options.runs_root)
    images = made.open_data()
    students = experiments.run_students(made, images, weights=False)
    table = compared(experiments.results_table(students)).assign(caption=made.caption(images))
    print(table.round(2).to_string(index=False))
    report.save({"precision": table}, resolve_device(options.device))


if __name__ == "__main__":
    main()
