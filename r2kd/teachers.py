"""What a teacher, its pruned copies and their mixtures answer: what the student is shown, before any student is trained."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, islice
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from . import acceleration, evaluation, experiments, models, pruning, robustness, stats, tested
from .augmentation import augment
from .batch import Batch, Teachers, epoch_batches
from .config import CLEAN
from .data import ImageData
from .entries import Choice
from .experiments import Study
from .frozen import frozen
from .progress import interruptible, tqdm
from .randomness import generator

GROUP = 5  # batches of 64 of each view, whose answers are averaged


def teachers_table(study: Study, images: ImageData, teacher: nn.Module, draws: int = 50) -> pd.DataFrame:
    """What the dense, the pruned and the mixed teacher say to training images under each view, in `draws` batches of 64.

    A row for each view and teacher: view, teacher, and over the batches the mean and the standard deviation (_spread) of entropy,
    in nats, and of top1, how often in percent it names the label of the image (of the first one, where two are mixed).
    """
    pruned = pruning.prune_l1(teacher, study.option("pruning_rate"))
    mixed = pruning.MixedTeacher(teacher, pruned, study.option("dense_weight"), study.option("pruned_batchnorm"))
    context = {"mean": images.mean, "std": images.std, "policy": images.policy, "epoch": torch.tensor(1.0)}
    drawn = {name: generator(0, name) for name in study.views}
    rows = []
    for batch, target in tqdm(islice(_batches(images), draws), total=draws, desc="views", unit="batch"):
        for name, view in study.views.items():
            with torch.inference_mode(), acceleration.exact():
                clean = images.normalize(batch)
                augmented, index = augment(view, clean, drawn[name], teacher=teacher, target=target, **context)
                dense, sparse = teacher(augmented), pruned(augmented)
            for kind, logits in (("dense", dense), ("pruned", sparse), ("mixed", mixed.mix(dense, sparse))):
                row = {"view": name, "teacher": kind, "entropy": float(evaluation.entropy(logits).mean())}
                rows.append(row | {"top1": evaluation.accuracy(logits, target[index])})
    found = pd.DataFrame(rows).groupby(["view", "teacher"], sort=False)
    return found.mean().join(found.std(), rsuffix="_spread").reset_index()


def _batches(images: ImageData, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the training images, shuffled anew each time they are through, without end."""
    size = min(size, len(images.train))
    for times in count():
        few = images.train.shuffled(times)
        yield from few.batches(torch.arange(len(few) // size * size).split(size))


def pruned_teachers(
    study: Study, images: ImageData, rates: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9)
) -> pd.DataFrame:
    """What the teacher, its pruned copy at each rate and their mixture know clean and corrupted.

    A row a network: teacher ("dense", "pruned", "mixed"), rate in percent, clean and corrupted, accuracy in percent, the latter
    the mean over corruptions and severities.
    """
    corruptions_alone = replace(study, tests=study.tests.with_options(attacks="none"))
    under = corruptions_alone.protocol(images)
    if not under.corruptions:
        return pd.DataFrame()
    run = study.teacher.run(study.teacher_images(images))
    kinds = [("dense", 0.0), *((kind, rate) for kind in ("pruned", "mixed") for rate in rates)]
    weight = f"{study.option('dense_weight'):g}"
    about = {f"{run.address}+{kind}={rate:g},{weight}": (kind, rate) for kind, rate in kinds}

    def found(weights: str | None) -> dict[str, list[dict[str, Any]]]:
        make = partial(_sparse, study, images)
        wanted = [
            robustness.Subject(address, weights, partial(make, *of), {"arm": f"teacher, {of[0]}"})
            for address, of in about.items()
        ]
        return experiments.test_rows(corruptions_alone, images, wanted, under)

    rows = {} if (study.fresh or run.finished) and not study.recorded else found(None)
    if len(rows) < len(about) and not study.recorded:
        experiments.teacher_run(study, images)
        rows = found(models.checkpoint_digest(run.weights()))
    table = []
    for address, tests in rows.items():
        kind, rate = about[address]
        summary = stats.corruption_summary(tested.by_severity(pd.DataFrame(tests)).assign(arm=address, seed=0)).iloc[0]
        table.append(
            {"teacher": kind, "rate": 100 * rate, "clean": summary["clean"], "corrupted": summary["corrupted"]}
        )
    return pd.DataFrame(table)


def _sparse(study: Study, images: ImageData, kind: str, rate: float) -> nn.Module:
    dense = experiments.run_teacher(study, images)
    if kind == "dense":
        return dense
    pruned = pruning.prune_l1(dense, rate)
    return pruned if kind == "pruned" else pruning.MixedTeacher(dense, pruned, study.option("dense_weight"), "running")


def answer_spread(
    study: Study,
    images: ImageData,
    teacher: nn.Module,
    rates: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    groups: int = 20,
    repeats: int = 5,
) -> pd.DataFrame:
    """T.stddev, a test of a view that needs only a teacher: how much its mean answer varies. Lower goes with better students.

    The mean probability vector (softmax at T = 1, eval mode) over a group of batches of 64, GROUP clean and GROUP of the view
    (clean alone where there is no second view); its standard deviation over `groups` groups (n - 1), averaged over the classes.
    Of the dense teacher, its pruned copy at each rate, and their mixture with the study's weight, all on the same batches.
    A row for each of `repeats` draws, view and network: repeat, view, teacher, rate in percent, spread, in percent.
    Wang et al., "What makes a good data augmentation in knowledge distillation", NeurIPS 2022; released code.
    """
    copies = {rate: frozen(pruning.prune_l1(teacher, rate)) for rate in rates}
    dense, weight, views = frozen(teacher), study.option("dense_weight"), list(study.views.values())
    rows = []
    bar = tqdm(total=repeats * groups, desc="mean answers", unit="group")
    asking = acceleration.SideBySide(images.test.labels.device, threads=1)
    with asking as side_by_side, bar, interruptible(lambda: f"in group {bar.n + 1} of {bar.total}"):
        for repeat in range(repeats):
            means: dict[tuple, list[Tensor]] = {}
            for group in islice(_groups(images, teacher, views, repeat), groups):
                answers = [_answers(dense, copies, weight, batch.images, side_by_side) for batch in group]
                for view in views:
                    shown = dict.fromkeys((CLEAN, view)) if view.entry.drawn else (CLEAN,)
                    for network in answers[0]:
                        p = torch.cat([said[network][kind] for said in answers for kind in shown])
                        means.setdefault((view.name, *network), []).append(p.mean(dim=0))
                bar.update()
            for (view, kind, rate), vectors in means.items():
                spread = 100 * float(torch.stack(vectors).std(dim=0).mean())
                rows.append({"repeat": repeat, "view": view, "teacher": kind, "rate": 100 * rate, "spread": spread})
    return pd.DataFrame(rows)


def _groups(images: ImageData, teacher: nn.Module, views: list[Choice], repeat: int) -> Iterator[list[Batch]]:
    """Batches as a training meets them, GROUP by GROUP, epoch after epoch, without end."""
    drawn, dense, group = {view for view in views if view.entry.drawn}, Teachers(teacher), []
    for epoch in count():
        for batch in epoch_batches(images, drawn, dense, seed=repeat, epoch=epoch, batch_size=64):
            group.append(batch)
            if len(group) == GROUP:
                yield group
                group = []


@acceleration.exact()
def _answers(
    dense: nn.Module,
    copies: dict[float, nn.Module],
    weight: float,
    shown: dict[Choice, Tensor],
    side_by_side: acceleration.SideBySide,
) -> dict[tuple[str, float], dict[Choice, Tensor]]:
    """By (kind, rate) and view, (B, C): the softmax of what each network answers. Images that are two views' are asked for once."""
    found: dict[tuple[str, float], dict[Choice, Tensor]] = {}
    known: dict[int, Choice] = {}
    said: dict[nn.Module, Tensor] = {}

    @torch.inference_mode()
    def ask(batch: Tensor, network: nn.Module) -> None:
        said[network] = network(batch).float()

    for view, batch in shown.items():
        same = known.setdefault(id(batch), view)
        if same is not view:
            for answers in found.values():
                answers[view] = answers[same]
            continue
        side_by_side(partial(ask, batch), (dense, *copies.values()))
        logits = {("dense", 0.0): said[dense]}
        for rate, copy in copies.items():
            logits[("pruned", rate)] = said[copy]
            logits[("mixed", rate)] = weight * said[dense] + (1 - weight) * said[copy]
        for network, values in logits.items():
            found.setdefault(network, {})[view] = values.softmax(dim=1)
    return found
