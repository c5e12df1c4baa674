"""What a model is tested with beside clean images: a protocol of corruptions, attacks, calibration and ambiguity.

A test has a kind, a name and a level: corruption, fog, 3. Its row says how many images there were (n), top1 in percent, loss in
nats, ece in percent. All models of one protocol meet the same images.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from . import acceleration, evaluation, files, losses, official, records
from .attacks import ATTACKS, attacked_logits
from .corruptions import CORRUPTIONS, SEVERITIES, constants_size, corrupt, corruption, jpeg, missing
from .data import ImageData, Split
from .entries import Choice, Registry
from .frozen import frozen
from .parts import Tests
from .progress import interruptible, tqdm
from .randomness import generator

__all__ = ["CORRUPTIONS", "Protocol", "corrupt", "corrupted", "corruption", "measure", "protocol"]

NAME = "robustness_records.csv"
CHUNK = 500  # images that are corrupted at once
MEASURES = ("n", "top1", "loss", "ece", "confidence", "value")
AMBIGUITY_BINS = 5


def chosen_corruptions(text: str) -> tuple[str, ...]:
    """The names of "none", "standard" (CIFAR-C's 15), "all", or "fog+snow". Raises ValueError for an unknown one."""
    standard = tuple(name for name, entry in CORRUPTIONS.items() if entry.cite and not entry.extra)
    return standard if text == "standard" else _chosen(text, CORRUPTIONS)


def chosen_attacks(text: str) -> tuple[str, ...]:
    """The names of "none", "all", or "fgsm+pgd". Raises ValueError for an unknown one."""
    return _chosen(text, ATTACKS)


def _chosen(text: str, among: Registry) -> tuple[str, ...]:
    groups = {"none": (), "all": tuple(among)}
    return groups[text] if text in groups else tuple(among[name.strip()].name for name in text.split("+"))


@dataclass(frozen=True)
class Protocol:
    """What is measured, on which images. `left_out`: corruptions that were asked for and cannot be made here, and why."""

    corruptions: tuple[str, ...]
    attacks: tuple[str, ...]
    images: int
    attacked_images: int
    as_jpeg: bool
    constants: int
    precision: str
    clean_images: int  # all test images, for what needs no corrupted ones
    validation_images: int
    teacher: str  # the address of whose hesitation sorts the images
    official: Mapping[str, Path]
    left_out: Mapping[str, str]

    @property
    def address(self) -> str:
        """A hash of all that the numbers of one model depend on: what the entries compute, on which images."""
        acts = {"severities": SEVERITIES, "images": self.images, "attacked": self.attacked_images, "jpeg": self.as_jpeg}
        entries = [CORRUPTIONS[name] for name in self.corruptions]
        acts |= {"corruptions": [Choice(e).acts() | {"at_32": e.at_32, "at_64": e.at_64} for e in entries]}
        acts |= {"attacks": [Choice(ATTACKS[name]).acts() | {"at": ATTACKS[name].epsilons} for name in self.attacks]}
        acts |= {} if self.precision == "float32" else {"precision": self.precision}
        acts |= {"clean": self.clean_images, "validation": self.validation_images}
        acts |= {"teacher": self.teacher, "constants": self.constants, "official": sorted(self.official)}
        return hashlib.sha256(json.dumps(acts, sort_keys=True, default=str).encode()).hexdigest()[:8]

    @property
    def whole(self) -> "Protocol":
        """The same where nothing has to be left out, as a record of another machine may have it."""
        wanted = {*self.corruptions, *self.left_out}
        return replace(self, corruptions=tuple(name for name in CORRUPTIONS if name in wanted), left_out={})

    @property
    def words(self) -> str:
        """For captions: which corruptions, whose constants, how many images."""
        said = []
        if self.corruptions:
            made = sum(name not in self.official for name in self.corruptions)
            source = {32: "CIFAR-C's constants for 32 px", 64: "Tiny-ImageNet-C's constants for 64 px"}[self.constants]
            whose = [f"{made} made here, {source}"] if made else []
            whose += [f"{len(self.official)} from the official files"] if self.official else []
            whose += ["saved as JPEG of quality 85"] if self.as_jpeg and made else []
            whose += [f"answered in {self.precision}"] if self.precision != "float32" else []
            without = f" (without {', '.join(self.left_out)})" if self.left_out else ""
            said.append(
                f"{len(self.corruptions)} corruption{'s' * (len(self.corruptions) > 1)}{without} x 5 severities on {self.images:,} test images: {', '.join(whose)}"
            )
        if self.attacks:
            said.append(f"attacks on {self.attacked_images:,}")
        return "; ".join(said)


def protocol(
    tests: Tests, images: ImageData, data_root: str | None = None, teacher: str = "", precision: str = "float32"
) -> Protocol:
    """What `tests` mean for a data set, here: official files are used where they lie under the data root.

    `teacher`: the address of the run that sorts images by ambiguity. `precision`: of the convolutions that answer to corrupted
    images; all else is float32. Raises ValueError for an unknown corruption or attack.
    """
    wanted = chosen_corruptions(tests.corruptions)
    found = official.available(images, data_root, wanted)
    left_out = {name: why for name in wanted if name not in found and (why := missing(name))}
    return Protocol(
        corruptions=tuple(name for name in wanted if name not in left_out),
        attacks=chosen_attacks(tests.attacks),
        images=min(tests.robust_images, len(images.test)),
        attacked_images=min(tests.attacked_images, len(images.test)),
        as_jpeg=tests.as_jpeg,
        constants=constants_size(images.image_size),
        precision=precision,
        clean_images=len(images.test),
        validation_images=len(images.validation or ()),
        teacher=teacher,
        official=found,
        left_out=left_out,
    )


def corrupted(split: Split, name: str, severity: int, seed: int = 0, as_jpeg: bool = False) -> Split:
    """The split's images (N, 3, S, S) uint8 under a corruption, the same every time; its labels."""
    draws = generator(seed, name, severity)
    chunks = [
        corrupt(images, name, severity, draws) for images, _ in split.batches(torch.arange(len(split)).split(CHUNK))
    ]
    images = torch.cat(chunks)
    return Split(jpeg(images, 85) if as_jpeg else images, split.labels)


def measure(
    models: Mapping[str, nn.Module], images: ImageData, under: Protocol, teacher_logits: Tensor | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each model: test, name, level, n, top1, loss, ece, confidence, value, or as many of them as a test has.

    The models are in eval mode on the images' device. `teacher_logits` (N, C), of all test images, sort them by ambiguity.
    """
    # exact here: it is one state for all threads, which those of one thread must not put back under another
    with acceleration.SideBySide(images.test.labels.device, threads=1) as side_by_side, acceleration.exact():
        return _measure(models, images, under, teacher_logits, side_by_side)


def _measure(
    models: Mapping[str, nn.Module],
    images: ImageData,
    under: Protocol,
    teacher_logits: Tensor | None,
    side_by_side: acceleration.SideBySide,
) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict]] = {key: [] for key in models}
    clean = evaluation.predict_all(models, images.test, images, side_by_side)
    for key, logits in clean.items():
        rows[key].append(_row("clean", "all", 0, logits, images.test.labels))
        rows[key] += _calibration(models[key], images, logits)
        rows[key] += _answers(logits, images.test.labels, teacher_logits)
        if teacher_logits is not None:
            rows[key] += _ambiguity(logits, images.test.labels, teacher_logits)
    subset, attacked = images.test.subset(under.images), images.test.subset(under.attacked_images)
    dtype = getattr(torch, under.precision)
    answering = {key: frozen(model, dtype) for key, model in models.items()}  # a third faster; equal up to rounding
    passes = [(name, severity) for name in under.corruptions for severity in SEVERITIES]
    passes = [("clean", 0)] * bool(passes) + passes
    bar = tqdm(total=len(passes) + len(under.attacks), desc="robustness", unit="test", leave=False)
    with bar, interruptible(lambda: f"in test {bar.n + 1} of {bar.total} of {len(models)} models"):
        for name, severity in passes:
            split = _corrupted(subset, name, severity, under) if severity else subset
            found = evaluation.predict_all(answering, split, images, side_by_side, under.precision)
            for key, logits in found.items():
                rows[key].append(_row("corruption", name, severity, logits, split.labels))
            bar.update()
        for name in under.attacks:
            side_by_side(
                lambda key, name=name: rows[key].extend(_attacked(models[key], attacked, images, name)), models
            )
            bar.update()
    return rows


def _attacked(model: nn.Module, split: Split, images: ImageData, attack: str) -> list[dict]:
    curve = epsilon_curve(model, split, images, attack)
    return [_row("attack", attack, epsilon, logits, split.labels) for epsilon, logits in curve.items()]


def epsilon_curve(model: nn.Module, split: Split, images: ImageData, attack: str) -> dict[float, Tensor]:
    """The logits (N, C) at each of an attack's radii, in its own unit and growing order; 0 is the clean images.

    An image whose answer an attack has changed lies within every larger radius too: it is not attacked again, and accuracy falls
    along the curve. The control, which does not ask for the model, is drawn anew for all images.
    """
    entry = ATTACKS[attack]
    logits, curve = evaluation.predict(model, split, images), {}
    for epsilon in sorted(entry.epsilons):
        standing = logits.argmax(1) == split.labels if "model" in entry.asks else torch.ones_like(split.labels)
        left = standing.nonzero().flatten()
        if epsilon and len(left):
            logits = logits.index_copy(0, left, attacked_logits(model, split.take(left), images, attack, epsilon))
        curve[epsilon] = logits
    return curve


def _corrupted(subset: Split, name: str, severity: int, under: Protocol) -> Split:
    if name in under.official:
        return official.split(under.official[name], severity, subset)
    return corrupted(subset, name, severity, as_jpeg=under.as_jpeg)


def _row(test: str, name: str, level: float, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    found = evaluation.summary(logits, labels)
    figures = {measure: found[measure] for measure in ("n", "top1", "loss")}
    return (
        {"test": test, "name": name, "level": level} | figures | {"ece": evaluation.calibration_error(logits, labels)}
    )


def _calibration(model: nn.Module, images: ImageData, test_logits: Tensor) -> list[dict]:
    """Before and after a temperature, which is the level; it is fitted on validation images, else on half of the test images.

    And the bins of reliability, before it, of the images that it was not fitted on.
    """
    measured = Split(test_logits, images.test.labels)
    if images.validation is None:
        fitted, measured = measured.hold_out(len(measured) // 2)
    else:
        fitted = Split(evaluation.predict(model, images.validation, images), images.validation.labels)
    temperature = evaluation.fit_temperature(fitted.images, fitted.labels)
    logits = measured.images
    rows = [_row("calibration", "before", 1.0, logits, measured.labels)]
    rows.append(_row("calibration", "after", temperature, logits / temperature, measured.labels))
    for found in evaluation.reliability_table(logits, measured.labels):
        figures = {"n": found["samples"], "top1": 100 * found["accuracy"], "confidence": 100 * found["confidence"]}
        rows.append({"test": "reliability", "name": "bin", "level": found["bin"]} | figures)
    return rows


def _answers(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> list[dict]:
    """On clean test images: top5 in percent, mean entropy in nats and confidence in percent; with a teacher, agreement in percent
    and the mean rank correlation with its answers."""
    values = {"top5": evaluation.accuracy(logits, labels, 5), "entropy": float(evaluation.entropy(logits).mean())}
    values["confidence"] = 100 * float(evaluation.confidence(logits).mean())
    if teacher_logits is not None:
        values["agreement"] = evaluation.agreement(logits, teacher_logits)
        values["rank_correlation"] = 1 - float(losses.rank_loss(logits, teacher_logits))
    return [{"test": "answers", "name": name, "level": 0, "value": value} for name, value in values.items()]


def _ambiguity(logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> list[dict]:
    """By the teacher's entropy, the surest fifth first; and of the classes that it confuses most, and of the others."""
    rows = []
    classes = teacher_logits.shape[1]
    pairs = evaluation.confused_classes(teacher_logits, labels, max(1, classes // 10))
    groups = {"entropy": evaluation.ambiguity_bins(teacher_logits, AMBIGUITY_BINS) + 1}
    groups["confused"] = torch.isin(labels, pairs.to(labels.device)).long()
    for name, group in groups.items():
        for found in evaluation.by_group(logits, labels, group.to(labels.device)):
            figures = {"n": found["samples"], "top1": found["top1"], "loss": found["loss"]}
            rows.append({"test": "ambiguity", "name": name, "level": found["group"]} | figures)
    return rows


@dataclass(frozen=True)
class Subject:
    """A model to be tested: `address`, what it is; `weights`, a digest of them, None where they are gone; how to `make` it."""

    address: str
    weights: str | None
    make: Callable[[], nn.Module] = field(compare=False)
    about: Mapping[str, Any] = field(compare=False)


def test(
    wanted: Iterable[Subject],
    images: ImageData,
    under: Protocol,
    folder: Path,
    roots: Iterable[Path],
    teacher_logits: Callable[[], Tensor] | None = None,
    order: Sequence[str] = (),
    wait: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each model by its address: from the records under `roots`, or measured and recorded in `folder`.

    A record counts where it is of this protocol and of these weights; where the weights are gone, one of the whole protocol counts
    too. A model that has neither weights nor record has no rows. What another process is measuring is waited for; without `wait` it
    has no rows, unless it is recorded already.
    `teacher_logits` makes those of all test images, where something has to be measured. `order`: the models' addresses, as their
    records are to stand.
    """
    wanted, known = list(wanted), _known(roots)
    here, whole = under.address, under.whole.address  # each digests what all its entries compute
    keys = {model: (f"{model.address}@{here}", model.weights) for model in wanted}
    for model, key in keys.items():
        if model.weights is None and key not in known:
            keys[model] = (f"{model.address}@{whole}", None)

    def left() -> dict[Path, Subject]:
        missing = [model for model, key in keys.items() if model.weights and key not in known]
        if missing:
            known.update(_known(roots))  # another process may have recorded them
        return {folder / re.sub(r"[^\w.+=,@-]", "_", keys[m][0]): m for m in missing if keys[m] not in known}

    def compute(mine: list[Subject]) -> None:
        for why in under.left_out.values():
            _say_once(why)
        found = measure({m.address: m.make() for m in mine}, images, under, teacher_logits and teacher_logits())
        new = {}
        for model in mine:
            address, weights = keys[model]
            row = {"address": address, "weights": weights, "protocol": under.words, **model.about}
            new[address] = known[keys[model]] = row | packed(found[model.address])
        path = folder / NAME
        with files.alone(path):
            kept = (records.read([path]) if path.exists() else {}) | new
            kept = records.in_order(kept, [f"{address}@{under.address}" for address in order])
            files.write_table(path, pd.DataFrame(kept))

    files.in_turn(left, compute, wait)
    return {model.address: unpacked(known[key]) for model, key in keys.items() if key in known}


def _known(roots: Iterable[Path]) -> dict[tuple[str, str | None], dict]:
    """The rows of all records under `roots` by (address, digest of the weights), and by (address, None), whatever weights."""
    known: dict[tuple[str, str | None], dict] = {}
    for path in files.found(roots, NAME):
        for row in records.read([path]).values():
            known.setdefault((row["address"], row["weights"]), row)
            known.setdefault((row["address"], None), row)
    return known


@cache
def _say_once(what: str) -> None:
    print(what, file=sys.stderr)


def packed(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The rows of a model as one: a cell a figure of a test, "1:63.2 2:61", in five digits. `unpacked` is the way back."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        for name in MEASURES:
            if row.get(name) is not None:
                cell = cells.setdefault(f"{name}.{row['test']}.{row['name']}", [])
                cell.append(f"{row['level']:.5g}:{row[name]:.5g}")
    return {name: " ".join(cell) for name, cell in cells.items()}


def unpacked(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that `packed` made a record's cells of; what else the record has is left out."""
    rows: dict[tuple, dict] = {}
    for column, cell in record.items():
        name, _, test = column.partition(".")
        if name in MEASURES and test and isinstance(cell, str):
            kind, _, named = test.partition(".")
            for pair in cell.split():
                level, _, value = pair.partition(":")
                row = {"test": kind, "name": named, "level": float(level)}
                rows.setdefault((kind, named, level), row)[name] = float(value)
    return list(rows.values())
