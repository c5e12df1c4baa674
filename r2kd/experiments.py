"""The paper's pairs, the recipes and the profiles as data; a study is one profile on one data set and one pair."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from scipy import stats
from torch import nn

from . import ROOT, fidelity, models, training
from .augmentation import AUGMENTATIONS
from .data import ImageData
from .progress import tqdm
from .runs import Run
from .training import DistillConfig, TeacherConfig

PAIRS = {  # teacher, student: the paper's six
    "wrn402_wrn162": ("wrn_40_2", "wrn_16_2"),
    "res56_res20": ("resnet56", "resnet20"),
    "res32x4_res8x4": ("resnet32x4", "resnet8x4"),
    "vgg13_vgg8": ("vgg13", "vgg8"),
    "vgg13_mv2": ("vgg13", "MobileNetV2"),
    "res32x4_shuv2": ("resnet32x4", "ShuffleV2"),
}
SMALL_PAIRS = {"res20_res8": ("resnet20", "resnet8"), "wrn162_res8": ("wrn_16_2", "resnet8")}  # ours, for two CPU cores

RECIPES = {"digits": {"image_size": 16, "train_images": 300, "epochs": 20}}  # other data sets: the released one
SLOW_LEARNERS = ("MobileNetV2", "ShuffleV1", "ShuffleV2")  # learning rate 0.01 in place of 0.05


@dataclass(frozen=True)
class Profile:
    """How much of a study to run. `scale` overrides the recipe of every data set but the digits, whose own is `digits`.

    `ablation` overrides it once more for the students of notebook 04.
    """

    summary: str
    dataset: str
    pairs: tuple[str, ...]
    seeds: tuple[int, ...]
    scale: dict
    digits: dict
    kd_augmentations: tuple[str, ...] = ("none", "cutmix")
    ablation: dict = field(default_factory=dict)


_SMOKE = {"train_images": 128, "test_images": 200, "epochs": 1}
PROFILES = {
    "smoke": Profile("does everything run: 1 epoch, 128 images", "digits", ("res20_res8",), (0, 1), _SMOKE, _SMOKE),
    "quick": Profile(
        "digits, 3 seeds: minutes on 2 cores",
        "digits",
        ("res20_res8",),
        (0, 1, 2),
        {"train_images": 1000, "test_images": 1000, "epochs": 20},
        {},
    ),
    "small": Profile(
        "CIFAR-100, 10,000 images, 30 epochs, 3 seeds: hours on 2 cores",
        "cifar100",
        ("res20_res8",),
        (0, 1, 2),
        {"train_images": 10_000, "epochs": 30},
        {},
        ablation={"epochs": 8},
    ),
    "paper": Profile(
        "the full recipe: six pairs, 240 epochs, 3 seeds; needs a GPU",
        "cifar100",
        tuple(PAIRS),
        (0, 1, 2),
        {},
        {},
        tuple(AUGMENTATIONS),
    ),
}


@dataclass(frozen=True)
class Study:
    """A teacher and its students on one data set; every configuration follows from these fields."""

    profile: str
    dataset: str
    pair: str
    device: str = "auto"
    data_root: str | None = None
    runs_root: str | None = None
    figures_root: str | None = None
    image_size: int | None = None
    teacher_checkpoint: str | None = None
    fidelity: str = "released"
    plain: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        return PROFILES[self.profile].seeds

    @property
    def figures(self) -> Path:
        """Of its figures: <figures_root>/<data set>/<profile>-<pair>[-intended][-plain], figures_root else figures/."""
        dataset = Path(self.dataset).expanduser().resolve().name
        name = f"{self.profile}-{self.pair}" + ("" if self.fidelity == "released" else f"-{self.fidelity}")
        name += "-plain" if self.plain else ""
        return Path(self.figures_root or ROOT / "figures") / dataset / name

    def _common(self) -> dict:
        profile = PROFILES[self.profile]
        scale = profile.digits if self.dataset == "digits" else profile.scale
        common = recipe(self.dataset) | scale
        common |= {"image_size": self.image_size} if self.image_size else {}
        where = {"device": self.device, "data_root": self.data_root, "runs_root": self.runs_root}
        return common | where | {"dataset": self.dataset, "plain": self.plain}

    @property
    def teacher(self) -> TeacherConfig:
        model = pair_models(self.pair)[0]
        return TeacherConfig(model=model, learning_rate=learning_rate(model), seed=0, **self._common())

    def _student(self, seed: int, **scale) -> tuple[dict, dict]:
        """(what all students of a seed share, the same with a teacher)."""
        model = pair_models(self.pair)[1]
        alone = self._common() | scale | {"model": model, "learning_rate": learning_rate(model), "seed": seed}
        return alone, alone | {"teacher": self.teacher, "teacher_checkpoint": self.teacher_checkpoint}

    def students(self, seed: int) -> list[DistillConfig]:
        """Cross-entropy; KD with some or all augmentations; R2KD with each, without and with the pruned teacher."""
        alone, taught = self._student(seed)
        taught |= {"fidelity": self.fidelity}
        arms = [DistillConfig(method="ce", pruning_rate=0.0, **alone)]
        for augmentation in PROFILES[self.profile].kd_augmentations:
            arms.append(DistillConfig(method="kd", augmentation=augmentation, pruning_rate=0.0, **taught))
        for pruning_rate in (0.0, 0.1):
            for augmentation in AUGMENTATIONS:
                arms.append(DistillConfig(augmentation=augmentation, pruning_rate=pruning_rate, **taught))
        return arms

    def ablation(self, seed: int) -> dict[str, DistillConfig]:
        """By name: cross-entropy, the released method, each switch of fidelity.SWITCHES that trains alone, all: intended.

        With cutmixpick and the pruned teacher, where every switch has something to act on.
        """
        alone, taught = self._student(seed, **PROFILES[self.profile].ablation)
        released = DistillConfig(augmentation="cutmixpick", **taught)
        switched = {
            f"{switch.name}: {switch.intended}": replace(released, **{switch.name: switch.intended})
            for switch in fidelity.SWITCHES
            if switch.name != "reported"
        }
        plain = DistillConfig(method="ce", pruning_rate=0.0, **alone)
        intended = replace(released, fidelity="intended")
        return {"cross-entropy": plain, "released": released} | switched | {"intended": intended}

    def open_data(self) -> ImageData:
        """Its images, on its device."""
        return training.open_data(self.teacher).to(training.resolve_device(self.device))

    def caption(self, images: ImageData) -> str:
        """What every figure of the study says below its title."""
        teacher, student = pair_models(self.pair)
        classes = f" ({images.num_classes} of {images.of_classes} classes)" if images.of_classes else ""
        return (
            f"{images.name}{classes}, {len(images.train):,} training and {len(images.test):,} test images of "
            f"{images.image_size} px; {_epochs(self.teacher)}; {teacher} teaches {student}"
        ) + ("" if self.fidelity == "released" else f"; fidelity: {self.fidelity}")

    def ablation_caption(self, images: ImageData) -> str:
        """The same of the ablation, whose students may be trained for fewer epochs than the teacher."""
        student = self.ablation(0)["released"]
        own = "" if student.epochs == self.teacher.epochs else f", students {_epochs(student)}"
        return f"{self.caption(images)}{own}; R2KD with cutmixpick, pruned teacher"


def study(profile: str = "quick", dataset: str | None = None, pair: str | None = None, **where) -> Study:
    """The study of a profile; its own data set and first pair where none is named. `where`: further fields of Study.

    Raises ValueError for an unknown profile, pair or fidelity.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    pair = pair or PROFILES[profile].pairs[0]
    pair_models(pair)
    made = Study(profile, dataset or PROFILES[profile].dataset, pair, **where)
    fidelity.preset(made.fidelity)
    return made


def pair_models(pair: str) -> tuple[str, str]:
    """(teacher, student) of a pair's name. Raises ValueError for an unknown one."""
    known = PAIRS | SMALL_PAIRS
    if pair not in known:
        raise ValueError(f"unknown pair {pair!r}; known: {', '.join(known)}")
    return known[pair]


def recipe(dataset: str) -> dict:
    """What differs from the released recipe for this data set."""
    return RECIPES.get(dataset, {})


def learning_rate(model: str) -> float:
    """The released one: 0.05, or 0.01 for the MobileNet and ShuffleNets."""
    return 0.01 if model in SLOW_LEARNERS else 0.05


def _epochs(config: TeacherConfig) -> str:
    return f"{config.epochs} epoch" + ("s" if config.epochs > 1 else "")


def run_teacher(study: Study, images: ImageData) -> nn.Module:
    """The study's teacher in eval mode, on its device: trained, returned as it was, or loaded from a checkpoint."""
    if study.teacher_checkpoint:
        teacher = models.from_checkpoint(study.teacher.model, images.num_classes, study.teacher_checkpoint)
    else:
        teacher = training.load_model(training.train_teacher(study.teacher, images), images.num_classes)
    return teacher.to(images.test.images.device, memory_format=torch.channels_last)


def run_students(study: Study, images: ImageData) -> list[tuple[DistillConfig, Run]]:
    """Every student of every seed, trained or returned as it was; those of one seed share each teacher pass."""
    return _run_all([study.students(seed) for seed in study.seeds], images)


def run_ablation(study: Study, images: ImageData) -> list[tuple[str, DistillConfig, Run]]:
    """The students of notebook 04, by their names in Study.ablation; trained or returned as they were."""
    arms = [study.ablation(seed) for seed in study.seeds]
    finished = _run_all([list(configs.values()) for configs in arms], images)
    names = [name for configs in arms for name in configs]
    return [(name, config, run) for name, (config, run) in zip(names, finished, strict=True)]


def _run_all(by_seed: list[list[DistillConfig]], images: ImageData) -> list[tuple[DistillConfig, Run]]:
    finished = []
    with tqdm(total=sum(map(len, by_seed)), desc="students", unit="run") as bar:
        for configs in by_seed:
            finished += zip(configs, training.distill_all(configs, images), strict=True)
            bar.update(len(configs))
    return finished


def arm(config: DistillConfig) -> dict:
    """The columns that tell a student from the others of its study: method, augmentation, pruned, and its `arm` in words."""
    method = {"ce": "cross-entropy", "kd": "KD", "r2kd": "R2KD"}[config.method]
    words = method if config.augmentation == "none" else f"{method} {config.augmentation}"
    pruned = config.pruning_rate > 0
    return {
        "arm": words + (", pruned" if pruned else ""),
        "method": method,
        "augmentation": config.augmentation,
        "pruned": pruned,
    }


def results_table(students: Sequence[tuple[DistillConfig, Run]]) -> pd.DataFrame:
    """A row a run: arm, seed, the last and the best epoch's test accuracy in percent, and which epoch was best."""
    rows = []
    for config, run in students:
        result = run.result
        kept = {name: result[name] for name in ("last_top1", "best_top1", "best_epoch")}
        rows.append(arm(config) | {"seed": config.seed} | kept)
    return pd.DataFrame(rows)


def curves_table(students: Sequence[tuple[DistillConfig, Run]]) -> pd.DataFrame:
    """A row for each epoch of each run: arm, seed, epoch, loss, test_top1."""
    tables = [
        run.metrics[["epoch", "loss", "test_top1"]].assign(**arm(config), seed=config.seed) for config, run in students
    ]
    return pd.concat(tables, ignore_index=True)


def mean_interval(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Over each group of rows: `mean`, `half_width` of the 95 % t-interval of the mean, `n`; the groups in their order.

    The interval is over training seeds, on one training set and one teacher. n = 1 has none (NaN).
    """
    groups = table.groupby(by, sort=False, dropna=False)[value]
    summary = groups.agg(mean="mean", deviation="std", n="count").reset_index()
    quantile = stats.t.ppf(0.975, (summary["n"] - 1).clip(lower=1))
    summary["half_width"] = quantile * summary["deviation"] / summary["n"] ** 0.5
    return summary.drop(columns="deviation")


def paired_difference(table: pd.DataFrame, switch: str, value: str, by: list[str]) -> pd.DataFrame:
    """Within each group of `by`: mean and interval of `value` where `switch` is true minus where it is false, by seed."""
    wide = table.pivot_table(index=[*by, "seed"], columns=switch, values=value, sort=False).dropna()
    difference = (wide[True] - wide[False]).rename("difference").reset_index()
    return mean_interval(difference, by, "difference")


def switch_effects(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """What each arm of the ablation changes in `value`, by seed: mean, half_width, n of arm minus "released", and a verdict.

    `table`: a row a run, with the columns arm, seed, top1, best_top1 and `value`. The switch `reported` trains nothing: of
    "top1" its row is the released arm's last minus its best epoch.
    """
    wide = table.pivot_table(index="seed", columns="arm", values=value, sort=False)
    changed = wide.drop(columns="released").sub(wide["released"], axis=0)
    if value == "top1":
        released = table[table["arm"] == "released"].set_index("seed")
        changed.insert(len(changed.columns) - 1, "reported: last", released["top1"] - released["best_top1"])
    long = changed.melt(var_name="arm", value_name="difference", ignore_index=False).reset_index()
    effects = mean_interval(long, ["arm"], "difference")
    verdicts = [verdict(*row) for row in zip(effects["mean"], effects["half_width"], strict=True)]
    effects["verdict"] = verdicts
    same = (effects["arm"] == "reported: last") & (effects["verdict"] == "hurts")
    effects.loc[same, "verdict"] = "a lower number for the same students"
    return effects


def verdict(mean: float, half_width: float) -> str:
    """In words, of a difference where more is better and its interval."""
    if half_width != half_width:  # NaN
        return "one seed, no interval"
    if abs(mean) <= half_width:
        return "no difference we can see at this scale"
    return "helps" if mean > 0 else "hurts"
