"""The paper's pairs, and the profiles: studies of a scale, with the arms that they compare."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, compress, product
from typing import Any

from . import fidelity

PAIRS = {  # teacher, student: the paper's six
    "wrn402_wrn162": ("wrn_40_2", "wrn_16_2"),
    "res56_res20": ("resnet56", "resnet20"),
    "res32x4_res8x4": ("resnet32x4", "resnet8x4"),
    "vgg13_vgg8": ("vgg13", "vgg8"),
    "vgg13_mv2": ("vgg13", "MobileNetV2"),
    "res32x4_shuv2": ("resnet32x4", "ShuffleV2"),
}
SMALL_PAIRS = {"res20_res8": ("resnet20", "resnet8"), "wrn162_res8": ("wrn_16_2", "resnet8")}  # ours, for two CPU cores
VIEWS = ("none", "mixup", "cutmix", "cutout", "autoaug", "cutmixpick")  # the paper's
STUDY_EPOCHS = 120
STUDY_SHOWN = (
    "cross-entropy",
    "KD, 0.1 and 0.9",
    "DKD",
    "DIST",
    "KD cutmixpick",
    "R2KD cutmixpick",
    "R2KD, released",
    "R2KD, intended",
)
PULLS = {
    "KD": ("kd_weight", 1.0),
    "R2KD": ("value_weight", 0.5),
}  # of a method the weight, and its unit: at equal counts of units the gradients are nearer, and KD's is the larger
MATCHED = (  # arms of the study that differ in distance, and KL divergence has the larger gradient
    ("R2KD cutmixpick", "KD cutmixpick, weight 4"),
    ("R2KD cutmixpick, weight 0.5", "KD cutmixpick"),
)
ONE_VIEW = (("R2KD", "DKD"), ("R2KD", "DIST"))  # arms of one view and the dense teacher, all three
GRID = ("none", "identity", *VIEWS[1:])  # and what a second view changes by itself
MEAN = "mean"  # in the place of a view: over all that augment
CHANGES = {  # of R2KD as released, which a better setting may have; at 16 the soft rank's gradient is, at first, of the value term's size at 2
    "value 4": "method.value_weight=4",
    "soft rank": "method.rank=soft method.rank_weight=16",
    "views as described": "view.pick=after view.draws=sample",
}


def _arms() -> tuple[str, ...]:
    """Cross-entropy; KD, and with cutmix; R2KD with each view, from the dense teacher and with the pruned one."""
    dense = (f"r2kd {view} pruning_rate=0" for view in VIEWS)
    return ("ce", "kd none", "kd cutmix", *dense, *(f"r2kd {view}" for view in VIEWS))


def plain(text: str) -> str:
    """ "kd none" is "kd"."""
    return text.replace(" none", "")


def switched() -> dict[str, str]:
    """R2KD as released, with cutmixpick and the pruned teacher, where every switch has something to act on; each switch; all."""
    released = "r2kd cutmixpick fidelity=released"
    trained = [s for s in fidelity.of("R2KD") if s.part != "recipe"]  # what a run reports trains nothing
    switches = {f"{s.name}: {s.intended}": f"{released} {s.key}={s.intended}" for s in trained}
    return {"released": released} | switches | {"intended": "r2kd cutmixpick fidelity=intended"}


def setting(changes: Iterable[str]) -> str:
    """What R2KD with some of CHANGES is called; with none "released"."""
    return " + ".join(name for name in CHANGES if name in changes) or "released"


def subsets() -> list[frozenset[str]]:
    """Of CHANGES, by name; the first is empty."""
    return [frozenset(compress(CHANGES, which)) for which in product((False, True), repeat=len(CHANGES))]


def searched() -> dict[str, str]:
    """What a better setting is looked for among: R2KD as released with each subset of CHANGES, and with more of the first."""
    arms = {setting(names): [CHANGES[name] for name in CHANGES if name in names] for names in subsets()}
    arms["value 8"] = ["method.value_weight=8"]
    return {label: " ".join(("r2kd cutmixpick fidelity=released", *changes)) for label, changes in arms.items()}


def confirmed(chosen: str, epochs: int) -> dict[str, str]:
    """The setting chosen among `searched`, called recommended; R2KD as released, if that is another; and of the study's students
    those of the newest losses."""
    field, settings = study_arms(epochs), searched()
    arms = {"recommended": settings[chosen]} | ({"released": settings["released"]} if chosen != "released" else {})
    others = ("KD, standardised", "DKD, standardised", "MLKD, released", "MLKD, intended")
    return arms | {label: field[label] for label in others}


def study_arms(epochs: int) -> dict[str, str]:
    """The study's arms: a grid of two distances and seven views, the field's baselines, and R2KD switch by switch.

    Question. What is R2KD worth against what users compare with, and does augmentation hurt KL divergence and help correlation
    distance, as its abstract says?
    Arms. The grid: cross-entropy of the clean view at 1, the distance on each view, the dense teacher. The baselines by their
    own recipes (DKD's warm-up as the same share of the epochs, 20 of 240). R2KD as released, as intended, each switch alone.
    What follows is of `small`; `paper` has the same arms at the full scale, with fewer seeds.
    Scale. 2,500 images and 120 epochs, by the pilot (figures/cifar100/pilot): there the student on labels alone has converged (twice
    the epochs add 1.4 points, and its test loss rises), with more images it has not. The teacher has seen all 50,000.
    Seeds. 10 for the arms of the comparisons, 5 for the others: the grid's verdicts are of 5. The same method in two precisions
    differs by 0.48 points from seed to seed, which no pairing takes away: 10 seeds then find a difference of 0.48 points with 80 %
    chance, 5 of 0.81. (That was before the runs, and too hopeful: findings.twice and words.resolution say what the study itself can see.)
    Weights. Each distance at its own weight (KD 1, R2KD's value 2), at one where its gradient is nearer to the other's at its own
    (KD 4, R2KD 0.5), and at twice the larger. At 1 and 2 R2KD's gradient is 1.8 to 3.7 times KD's, so at the nearer ones KD's is the
    larger, by up to 2.2 (benchmarks/pulls.csv: one seed, the first 30 epochs).
    One question. Augmentation as a whole is the mean over the views (cutmix and the released cutmixpick are one, findings.twin): of KD, of
    R2KD, of their difference, one family of three; clean, and under corruption. That was said when five seeds of mixup, cutmix and
    cutmixpick were known, which lean to R2KD, and none of cutout and autoaug.
    Looks. The tables were read, and committed, while seeds came in: at each number from 1 to 8 of 10. How many there would be was said
    before, but for what was added after six: the arms of weight (five more seeds, decided when five had not told them apart), and
    R2KD with one view against DKD and DIST. A test at 5 and again at 10 seeds has about 9 false calls in 100, not 5;
    one that is read at each number from 3 to 10 has 17.
    Reading. The last epoch on all 10,000 test images; 1,000 validation images, balanced too, choose an epoch to compare with. Test
    images are looked at in the last 0.4 of the epochs only, where every best epoch of the pilot was.
    """
    grid = {"KD": "kd {}", "R2KD": "r2kd {} pruning_rate=0"}
    crossed = {
        f"{label} {view}".removesuffix(" none"): plain(arm.format(view)) for label, arm in grid.items() for view in GRID
    }
    weighted = {
        f"{label} cutmixpick, weight {weight:g}": f"{grid[label].format('cutmixpick')} method.{PULLS[label][0]}={weight:g}"
        for label, weights in {"KD": (4, 8), "R2KD": (0.5, 4)}.items()
        for weight in weights
    }
    warm = f"warmup_epochs={epochs * 20 / 240:.3g}"
    recipe, standardised = "ce_weight=0.1,kd_weight=0.9", "temperature=2,standardise=true"
    mlkd = "mlkd randaugment"
    baselines = {
        "KD, 0.1 and 0.9": f"kd:{recipe}",
        "KD, standardised": f"kd:ce_weight=0.1,kd_weight=9,{standardised}",
        "DKD": f"dkd:{warm}",
        "DKD, standardised": f"dkd:{warm},alpha=9,beta=81,standardise=true",  # temperature 4, and 9 x 9: what --logit-stand sets
        "DIST": "dist",
        "MLKD, released": f"{mlkd} fidelity=released",
        "MLKD, intended": f"{mlkd} fidelity=intended",
    }
    r2kd = {f"R2KD, {label}": arm for label, arm in switched().items()}
    return {"cross-entropy": "ce"} | crossed | weighted | baselines | r2kd


def pair_models(pair: str) -> tuple[str, str]:
    """(teacher, student) of a pair's name. Raises ValueError for an unknown one."""
    known = PAIRS | SMALL_PAIRS
    if pair not in known:
        raise ValueError(f"unknown pair {pair!r}; known: {', '.join(known)}")
    return known[pair]


def _study_comparisons() -> tuple[tuple[str, str], ...]:
    """What carries a verdict: R2KD against the field, its distance alone, with one view as the field has, and each switch."""
    others = ("KD cutmixpick", "DKD", "DIST", "R2KD cutmixpick", "R2KD, intended")
    switches = [f"R2KD, {label}" for label in switched() if ":" in label]
    against = [("R2KD, released", other) for other in others]
    distance = [("R2KD cutmixpick", "KD cutmixpick"), *MATCHED]
    return (*against, *distance, *ONE_VIEW, *((switch, "R2KD, released") for switch in switches))


@dataclass(frozen=True)
class Profile:
    """The settings of a study. `scale`: of its images and epochs, where the data set's own recipe has no fewer.

    `comparisons`: the pairs of arms that the study is designed to tell apart, by their labels; they are one family.
    `settings`: others, the teacher's among them, on its own data set. `arms`: texts, by label or not; `verdicts`: the labels of those that have
    `verdict_seeds`, as what is said of them carries a verdict. `shown`: the arms that crowded figures draw, as texts or labels.
    `ablation`: settings of notebook 04's students alone. `search`: of notebook 06's, which are chosen among by validation images;
    `search_seeds` and `confirmation_seeds`: the seeds of those, and of those that confirm the choice. `fresh`: whether runs of
    which there is only a record are trained again: where that takes minutes. `tests`: settings of parts.Tests.
    """

    summary: str
    dataset: str
    pairs: tuple[str, ...]
    scale: Mapping[str, int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3
    arms: tuple[str, ...] | Mapping[str, str] = _arms()
    comparisons: tuple[tuple[str, str], ...] = (("R2KD", "KD"), ("R2KD cutmix", "KD cutmix"), ("R2KD, pruned", "R2KD"))
    verdicts: tuple[str, ...] = ()
    verdict_seeds: int = 0
    shown: tuple[str, ...] = ("ce", "kd", "kd cutmix", "r2kd", "r2kd cutmix")
    ablation: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    search_seeds: tuple[int, ...] = (100, 101, 102)
    confirmation_seeds: tuple[int, ...] = tuple(range(200, 210))
    tests: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False


PROFILES = {
    "smoke": Profile(
        "does everything run: 1 epoch on 128 images; minutes",
        "digits",
        ("res20_res8",),
        {"train_images": 128, "test_images": 200, "epochs": 1},
        seeds=2,
        search={"validation_images": 64},
        search_seeds=(100,),
        confirmation_seeds=(200, 201),
        tests={"corruptions": "impulse_noise+glass_blur+snow+pixelate", "robust_images": 20, "attacked_images": 10},
        fresh=True,
    ),
    "quick": Profile(
        "the default: the handwritten digits, 9 arms, 5 seeds; minutes on 2 cores, no download",
        "digits",
        ("res20_res8",),
        {"train_images": 1000, "test_images": 1000, "epochs": 20},
        settings={"tested_from": 0.6, "teacher.tested_from": 0.0},
        seeds=5,
        arms=(
            *("ce", "kd", "kd cutmix"),
            *(f"r2kd {view} pruning_rate=0" for view in VIEWS[:-1]),
            f"r2kd {VIEWS[-1]}",
        ),
        comparisons=(
            ("KD", "cross-entropy"),
            ("R2KD", "KD"),
            ("R2KD cutmix", "KD cutmix"),
            ("R2KD cutmixpick, pruned", "KD"),
        ),
        shown=("ce", "kd", "kd cutmix", "r2kd pruning_rate=0", "r2kd cutmixpick"),
        search={"validation_images": 300},
        confirmation_seeds=tuple(range(200, 205)),
        tests={"attacks": "noise+fgsm+pgd", "robust_images": 100, "attacked_images": 30},
        fresh=True,
    ),
    "small": Profile(
        "the study: CIFAR-100, 2,500 images, 120 epochs, 33 arms, 5 or 10 seeds; told from its records, with --fresh most of a day on 2 cores",
        "cifar100",
        ("res20_res8",),
        {"train_images": 2500, "epochs": STUDY_EPOCHS},
        settings={
            "precision": "bfloat16",
            "tested_from": 0.6,
            "teacher.tested_from": 0.0,
            "validation_images": 1000,
            "teacher.train_images": 50_000,
            "teacher.validation_images": 0,
            "teacher.epochs": 60,
        },
        seeds=5,
        arms=study_arms(STUDY_EPOCHS),
        comparisons=_study_comparisons(),
        verdicts=(
            "cross-entropy",
            *dict.fromkeys(chain(*MATCHED, *ONE_VIEW)),
            *(f"R2KD, {label}" for label in switched()),
        ),
        verdict_seeds=10,
        shown=STUDY_SHOWN,
        ablation={"seeds": 10},
        search={"validation_images": 5000},
    ),
    "paper": Profile(
        "the study's arms by the full recipe: six pairs, 240 epochs, 3 seeds; by estimate, days on a GPU",
        "cifar100",
        tuple(PAIRS),
        {},
        arms=study_arms(240),
        comparisons=_study_comparisons(),
        shown=STUDY_SHOWN,
    ),
}
