"""How hard each distance pulls at a student, at its own weight: python -m benchmarks.pulls

Question: R2KD in place of KD changes the distance, and with it the size of its gradient. By how much? Arms: the study's students of KD and
R2KD with cutmixpick, seed 0, stopped after some epochs of the first learning rate. Measured: the norm of a distance's gradient with
respect to the student's logits, the mean over batches of 64 of its training images, clean and under cutmixpick. The weights of
profiles.PULLS come from it. Finished runs are not computed again. Writes pulls.csv and README.md beside it.
"""

import argparse

from benchmarks import report
from r2kd import augmentation, experiments, losses, randomness, training
from r2kd.config import DistillConfig
from r2kd.data import ImageData

import pandas as pd
import torch
from torch import Tensor, nn

ARMS = ("KD cutmixpick", "R2KD cutmixpick")
EPOCHS = (1, 10, 30)  # before the learning rate drops
BATCHES = 8


def norms(student: Tensor, teacher: Tensor, kd: DistillConfig, r2kd: DistillConfig) -> dict[str, float]:
    """Of the gradient of each distance with respect to the student's logits (B, C), at the weights of the two configurations."""
    student = student.detach().requires_grad_()
    distances = {
        "kl": kd["kd_weight"] * losses.kd_loss(student, teacher, kd["temperature"]),
        "value": r2kd["value_weight"] * losses.value_loss(student, teacher, r2kd["temperature"]),
    }
    return {name: float(torch.autograd.grad(distance, student)[0].norm()) for name, distance in distances.items()}


def measured(
    model: nn.Module, teacher: nn.Module, images: ImageData, configs: tuple[DistillConfig, DistillConfig]
) -> list[dict]:
    """A row a view: the mean norms over the batches. The student as it trains, by its batch's statistics."""
    train, draws, rows = images.train.shuffled(), randomness.generator(0, "pulls"), []
    for start in range(0, 64 * BATCHES, 64):
        clean = images.normalize(train.images[start : start + 64])
        with torch.no_grad():
            mixed, _ = augmentation.cutmixpick(clean, draws, teacher=teacher)
            for view, batch in (("clean", clean), ("cutmixpick", mixed)):
                answers = model.train()(batch).float(), teacher(batch).float()
                with torch.enable_grad():
                    rows.append({"view": view} | norms(*answers, *configs))
    return pd.DataFrame(rows).groupby("view", as_index=False).mean().to_dict("records")


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--data-root", help="where CIFAR-100 lies or is downloaded to [$R2KD_DATA, else data/]")
    top.add_argument("--runs-root", help="where run folders go [$R2KD_RUNS, else runs/]")
    places = vars(top.parse_args())
    study = experiments.study("small", **places)
    images = study.open_data()
    teacher = experiments.run_teacher(study, images)
    configs = tuple(study.arms[arm] for arm in ARMS)
    rows = []
    for epochs in EPOCHS:
        stopped = [config.with_settings({"epochs": epochs, "milestones": (2 * EPOCHS[-1],)}) for config in configs]
        runs = training.distill_all(stopped, images)
        for arm, config, run in zip(ARMS, stopped, runs, strict=True):
            model = training.load_model(config, run, images.num_classes)
            rows += [{"student": arm, "epochs": epochs} | row for row in measured(model, teacher, images, configs)]
    table = pd.DataFrame(rows)
    table["ratio"] = table["value"] / table["kl"]
    print(table.round(3).to_string(index=False))
    report.save({"pulls": table.assign(caption=study.caption(images))}, training.resolve_device("auto"))


if __name__ == "__main__":
    main()
