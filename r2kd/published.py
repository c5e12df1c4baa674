"""The students that the authors of R2KD published, and the teachers they were distilled from: found, downloaded, evaluated.

A folder is laid out as the authors' repository is: best_results/<augmentation>/<pair>_student_best, and the teachers where
their script unpacks them, download_ckpts/tiny_teachers/models_tinyimagenet_v2/<model>_vanilla/ckpt_epoch_240.pth.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from . import acceleration, data, evaluation, models, records, robustness, stats, tested
from .data import ImageData
from .downloads import fetch, zip_member
from .files import alone, write_atomically
from .parts import Tests
from .profiles import PAIRS, VIEWS
from .progress import interruptible, tqdm

AUGMENTATIONS = VIEWS[1:]  # all but having none
CLASSES = 200  # Tiny ImageNet
STUDENTS_URL = "https://raw.githubusercontent.com/Seonghak35/R2KD/9adc6f9bf206f8269885708dfd53529484c9700b"
TEACHERS_URL = "https://github.com/MingSun-Tse/Good-DA-in-KD/releases/download/v0.1/teachers_tinyimagenet.zip"
TEACHERS_FOLDER = Path("download_ckpts/tiny_teachers")
OVERHEAD = 2**19  # bytes that torch.save and a little more than weights (an epoch, an accuracy) may add to a checkpoint
TEACHERS_AT_MOST = 2**30  # bytes of the zip, ten times what it should have


@dataclass(frozen=True)
class Checkpoint:
    """One published file. `augmentation` and `pair` are of a student; a teacher has neither."""

    model: str
    path: Path  # within the folder
    augmentation: str = ""
    pair: str = ""

    @property
    def weights(self) -> int:
        """Bytes of the model's entries: a file that holds them cannot be smaller, and is hardly larger."""
        with torch.device("meta"):
            state = models.create(self.model, CLASSES).state_dict()
        return sum(value.numel() * value.element_size() for value in state.values())


STUDENTS = tuple(
    Checkpoint(student, Path("best_results", augmentation, f"{pair}_student_best"), augmentation, pair)
    for pair, (_, student) in PAIRS.items()
    for augmentation in AUGMENTATIONS
)
TEACHERS = tuple(
    Checkpoint(model, TEACHERS_FOLDER / "models_tinyimagenet_v2" / f"{model}_vanilla" / "ckpt_epoch_240.pth")
    for model in dict.fromkeys(teacher for teacher, _ in PAIRS.values())
)


def default_folder(data_root: str | None = None) -> Path:
    """Where the files lie or are downloaded to: r2kd-published/ beside the named data sets."""
    return data.root_folder(data_root) / "r2kd-published"


def missing(folder: Path) -> list[Checkpoint]:
    """The students and teachers that are not in `folder`."""
    return [checkpoint for checkpoint in (*STUDENTS, *TEACHERS) if not (Path(folder) / checkpoint.path).is_file()]


def folder_of(given: str | Path | None, data_root: str | None = None, may_be_new: bool = False) -> Path:
    """The folder that was given, else the default one. Raises FileNotFoundError where what was given is not there."""
    folder = Path(given).expanduser() if given is not None else default_folder(data_root)
    if given is not None and not may_be_new and not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder} of published files: mistyped? (they can be downloaded there)"
        )
    return folder


def download(folder: Path) -> None:
    """Fetch what is missing in `folder` from its public addresses, by one process while others wait.

    What could not be had is said on stderr, one line each.
    """
    folder = Path(folder)
    if not missing(folder):
        return
    with _failures_said(folder), alone(folder / "download"):
        wanted = missing(folder)
        archive = folder / TEACHERS_FOLDER / TEACHERS_URL.rpartition("/")[2]
        teachers = [checkpoint for checkpoint in wanted if checkpoint in TEACHERS]
        _unpack_teachers(archive, folder, teachers)  # if it is there, without a network
        try:
            for checkpoint in tqdm([c for c in wanted if c in STUDENTS], desc="published students", unit="file"):
                url, size = f"{STUDENTS_URL}/{checkpoint.path.as_posix()}", checkpoint.weights
                with _failures_said(url):
                    fetch(url, folder / checkpoint.path, size, size + OVERHEAD)
            if teachers and not archive.is_file():
                with _failures_said(TEACHERS_URL):
                    fetch(TEACHERS_URL, archive, sum(teacher.weights for teacher in TEACHERS) // 2, TEACHERS_AT_MOST)
                _unpack_teachers(archive, folder, teachers)
        except ConnectionError as error:
            print(f"the published checkpoints were not downloaded: {error}", file=sys.stderr)


def _unpack_teachers(archive: Path, folder: Path, teachers: list[Checkpoint]) -> None:
    """Of the zip, if it is there, only these."""
    for teacher in teachers if archive.is_file() else []:
        with _failures_said(archive):
            name = teacher.path.relative_to(TEACHERS_FOLDER).as_posix()
            content = zip_member(archive, name, teacher.weights + OVERHEAD)
            (folder / teacher.path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / teacher.path, content)


@contextmanager
def _failures_said(source: str | Path) -> Iterator[None]:
    """What one file lacks is said, and does not stop the others. A network that is not there does."""
    try:
        yield
    except ConnectionError:
        raise
    except (OSError, ValueError) as error:
        print(f"not downloaded: {source}: {error}", file=sys.stderr)


def evaluate(folder: Path, images: ImageData | None, device: torch.device) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(students, teachers) on the test split of `images`, which no one needs where no file is present: a row for each file.

    Columns: augmentation, pair (of students), model, status ("evaluated", "not present" or "refused: why"), top1, top5,
    ece, agreement with the pair's teacher (where it is present) in percent, n. A refused file's code is never run.
    """
    test = images.test.to(device) if images else None
    logits: dict[str, Tensor] = {}
    rows = {"students": [], "teachers": []}
    there = sum((Path(folder) / checkpoint.path).is_file() for checkpoint in STUDENTS + TEACHERS)
    bar = tqdm(total=there, desc="published", unit="model")
    with bar, interruptible(lambda: f"in model {bar.n + 1} of {bar.total}"):
        for kind, checkpoints in (("teachers", TEACHERS), ("students", STUDENTS)):
            for checkpoint in checkpoints:
                row = {"augmentation": checkpoint.augmentation, "pair": checkpoint.pair, "model": checkpoint.model}
                try:
                    model = _loaded(checkpoint, Path(folder) / checkpoint.path, device)
                    answers = evaluation.predict(model, test, images)
                    if not answers.isfinite().all():
                        raise ValueError(f"{checkpoint.path} answers with values that are not finite")
                    row |= {"status": "evaluated", **evaluation.summary(answers, test.labels)}
                    row["ece"] = evaluation.calibration_error(answers, test.labels)
                    if kind == "teachers":
                        logits[checkpoint.model] = answers
                    elif PAIRS[checkpoint.pair][0] in logits:
                        row["agreement"] = evaluation.agreement(answers, logits[PAIRS[checkpoint.pair][0]])
                    bar.set_postfix_str(f"{checkpoint.path.parent.name} {checkpoint.model} {row['top1']:.2f} %")
                except FileNotFoundError:
                    row["status"] = "not present"
                except (OSError, ValueError) as error:
                    row["status"] = f"refused: {error}"
                rows[kind].append(row)
                bar.update(row["status"] != "not present")
    columns = ["augmentation", "pair", "model", "status", "top1", "top5", "ece", "agreement", "n"]
    students, teachers = (pd.DataFrame(rows[kind]).reindex(columns=columns) for kind in ("students", "teachers"))
    students["n"], teachers["n"] = students["n"].astype("Int64"), teachers["n"].astype("Int64")
    return students, teachers.drop(columns=["augmentation", "pair", "agreement"])


TESTS = Tests(robust_images=1000, attacked_images=200, as_jpeg=True)  # JPEG: as Tiny-ImageNet-C's files are


def test(
    folder: Path,
    images: ImageData,
    device: torch.device,
    figures: Path,
    tests: Tests = TESTS,
    precision: str = "bfloat16",
    known: Sequence[Path] = (),
) -> None:
    """Measure the students' robustness, calibration and attacks, one pair after the other, and record them in `figures`.

    What a record there, or in the folders `known`, says of the same weights under the same protocol is not measured again. See
    robustness.measure.
    """
    under = robustness.protocol(tests, images, precision=precision)
    images = images.to(device)
    if device.type == "cpu":
        acceleration.keep_freed_memory()
    for pair in tqdm(
        sorted(PAIRS, key=lambda pair: Checkpoint(PAIRS[pair][1], Path()).weights), desc="tests", unit="pair"
    ):
        wanted = []
        for student in (student for student in STUDENTS if student.pair == pair):
            path = Path(folder) / student.path
            if path.is_file() and _sound(student, path):
                about = {"arm": student.augmentation, "pair": pair, "model": student.model}
                make = partial(_loaded, student, path, device)
                digest = models.checkpoint_digest(path)
                wanted.append(robustness.Subject(student.path.as_posix(), digest, make, about))
        robustness.test(wanted, images, under, figures, (*known, figures))


def tests_table(*figures: Path) -> tuple[pd.DataFrame, str]:
    """(a row for each test of each student that these folders record, as experiments.tests_table has it; the protocol, in words).

    The augmentation is the arm and the pair stands for the seed. Of several protocols it is the one that most students met.
    """
    paths = [Path(folder) / robustness.NAME for folder in figures]
    rows = list(records.read([path for path in paths if path.exists()]).values())
    if not rows:
        return pd.DataFrame(), ""
    protocols = [row["address"].rpartition("@")[2] for row in rows]
    chosen = max(dict.fromkeys(protocols), key=protocols.count)
    rows = [row for row, protocol in zip(rows, protocols, strict=True) if protocol == chosen]
    order = {(student.augmentation, student.pair): i for i, student in enumerate(STUDENTS)}
    rows.sort(key=lambda row: order[row["arm"], row["pair"]])
    about = {"method": "R2KD", "pruned": True}
    tables = [
        pd.DataFrame(robustness.unpacked(row)).assign(
            arm=row["arm"], augmentation=row["arm"], seed=row["pair"], **about
        )
        for row in rows
    ]
    return pd.concat(tables, ignore_index=True), rows[0]["protocol"]


SHOWN = {
    "clean": "top-1, all validation images (%)",
    "corrupted": "accuracy under corruption (%)",
    "relative_drop": "lost under corruption, of clean (%)",
    "pgd": "accuracy under PGD, 1/255 (%)",
    "ece_before": "calibration error (%)",
    "ece_after": "calibration error after T (%)",
}


def robustness_summary(tests: pd.DataFrame) -> pd.DataFrame:
    """A row a student, by arm (its augmentation) and seed (its pair): the measures of SHOWN, and residual (tested.summary)."""
    key = ["arm", "seed"]
    clean = tests[tests["test"] == "clean"].set_index(key)["top1"]
    pgd = tests[(tests["test"] == "attack") & (tests["name"] == "pgd") & (tests["level"] == 1)].set_index(key)["top1"]
    found = tested.summary(tests).merge(tested.calibration(tests)[[*key, "ece_before", "ece_after"]], on=key)
    return found.set_index(key).assign(clean=clean, pgd=pgd).reset_index()


def robustness_words(summary: pd.DataFrame) -> str:
    """In a sentence, by each measure of _WORDS, the best augmentation and its paired difference from the next; n."""
    if summary["arm"].nunique() < 2:
        return "There are no two augmentations to compare."
    said, ahead = [], []
    for what, (measure, sign) in _WORDS.items():
        means = (sign * summary.groupby("arm", sort=False)[measure].mean()).sort_values(ascending=False)
        best, second = means.index[:2]
        gap = stats.paired_difference(summary, best, second, measure).iloc[0]
        ahead += [best] if abs(gap["mean"]) > gap["half_width"] else []
        points = f"{gap['mean']:+.1f} ± {gap['half_width']:.1f} points against {second}"
        said.append(f"{what}, {best} {abs(means[best]):.1f} % ({points})")
    who = " and ".join(dict.fromkeys(ahead)) or "no augmentation"
    pairs = summary["seed"].nunique()
    return (
        f"Over {pairs} pairs, one seed each, {who} is ahead of the next by more than the interval: {'; '.join(said)}."
    )


_WORDS = {  # the measure, and whether more of it is better
    "accuracy under corruption": ("corrupted", 1),
    "accuracy under PGD at 1/255": ("pgd", 1),
    "calibration error": ("ece_before", -1),
    "calibration error after a temperature": ("ece_after", -1),
}


def robustness_figure(summary: pd.DataFrame) -> pd.DataFrame:
    """The table of figures.published_robustness: augmentation, pair, measure, label, value, present, known."""
    named = summary.rename(columns={"seed": "pair"})
    long = named.melt(["augmentation", "pair"], list(SHOWN), "measure")
    return long.assign(label=long["measure"].map(SHOWN), present=len(summary), known=len(STUDENTS))


def _loaded(checkpoint: Checkpoint, path: Path, device: torch.device) -> nn.Module:
    return models.from_checkpoint(checkpoint.model, CLASSES, path).to(device)


def _sound(checkpoint: Checkpoint, path: Path) -> bool:
    """Whether a file can be loaded; else it is said why not."""
    try:
        _loaded(checkpoint, path, torch.device("cpu"))
    except (OSError, ValueError) as error:
        print(f"not tested: {error}", file=sys.stderr)
        return False
    return True
