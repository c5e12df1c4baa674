"""What a study costs on this machine: python -m benchmarks.cost

Times a few steps of every arm of a profile's study on real images (the digits, scaled to the data set's size) and
multiplies by the profile's steps. Prints a table and writes benchmarks/cost.csv; training and testing during it, no more.
"""

import dataclasses
import sys
import tempfile
import time

from benchmarks import report
from r2kd import acceleration, data, evaluation, experiments, models, profiles, training
from r2kd.data import ImageData
from r2kd.progress import tqdm

import pandas as pd

STEPS = 4  # of an epoch; on a GPU the first epoch captures the graphs that the second one replays
# profile, pair, data set, its pixels, training and test images; what quick and small cost, their records say
CASES = (("paper", "res56_res20", "cifar100", 32, 50_000, 10_000),)


def seconds_per_step(study: experiments.Study, images: ImageData) -> tuple[float, float]:
    """(teacher, all students together): seconds of a step of 64 images in training, its bookkeeping left out."""
    with tempfile.TemporaryDirectory() as folder:
        few = {"dataset": "digits", "train_images": 64 * STEPS, "test_images": 256, "epochs": 2, "image_size": None}
        teacher = study.teacher.with_settings(few | {"runs_root": folder})
        students = [
            dataclasses.replace(student.with_settings(few | {"runs_root": folder}), teacher=teacher)
            for student in study.students(0).values()
        ]
        alone = training.train_teacher(teacher, images, progress=False)
        together = training.distill_all(students, images, progress=False)
        return tuple(pd.read_csv(run.folder / "timing.csv")["seconds"].iloc[-1] / STEPS for run in (alone, together[0]))


def seconds_per_test(model: str, images: ImageData) -> float:
    """Seconds to test a model on one image."""
    network = models.create(model, images.num_classes).to(images.test.images.device).eval()
    device = images.test.images.device
    evaluation.predict(network, images.test, images)
    acceleration.wait(device)
    started = time.perf_counter()
    evaluation.predict(network, images.test, images)
    acceleration.wait(device)
    return (time.perf_counter() - started) / len(images.test)


def main() -> None:
    rows = []
    for profile, pair, dataset, pixels, train_images, test_images in tqdm(CASES, desc="studies"):
        study = experiments.study(profile, dataset=dataset, pair=pair)
        images = data.load("digits", image_size=pixels).subset(64 * STEPS, 256).to(training.resolve_device("auto"))
        teacher_step, students_step = seconds_per_step(study, images)
        teacher_test, student_test = (seconds_per_test(name, images) for name in profiles.pair_models(pair))
        epochs = study.teacher.recipe.epochs
        steps = epochs * (min(study.teacher.data.train_images or train_images, train_images) / 64)
        tests = epochs * test_images
        arms = len(study.students(0))
        teacher = steps * teacher_step + tests * teacher_test
        students = len(study.seeds) * (steps * students_step + arms * tests * student_test)
        rows.append(
            {
                "profile": profile,
                "dataset": dataset,
                "pair": pair,
                "students": arms * len(study.seeds),
                "teacher_step_s": round(teacher_step, 3),
                "students_step_s": round(students_step, 3),
                "teacher_hours": round(teacher / 3600, 2),
                "students_hours": round(students / 3600, 2),
            }
        )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    report.save({"cost": table}, training.resolve_device("auto"))


if __name__ == "__main__":
    sys.exit(main())
