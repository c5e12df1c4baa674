"""The parts of a configuration that are plain settings: each field is said here once, with its default and its help.

Command line, studies, captions, tables and addresses follow from these fields. A field that is added with a default leaves the
address of every run as it is; the default of a field is never changed, as an address holds what differs from it.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from .entries import Option


def setting(
    default: Any,
    help: str,
    *,
    acts: bool = True,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    usual: str | None = None,
) -> Any:
    """A field. `acts`: whether the numbers of a run depend on it. `above`, `least`, `most`: its bounds, open or closed. `usual`: whose
    value it has where the default is none, as another entry says it."""
    about = {"help": help, "acts": acts, "above": above, "least": least, "most": most, "usual": usual}
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some settings. Raises ValueError, when it is made, for a value that cannot be."""

    def __post_init__(self) -> None:
        for known in fields(self):
            value = self.settings[known.name].read(getattr(self, known.name), type(self).__name__.lower())
            object.__setattr__(self, known.name, value)
            above, least, most = (known.metadata[bound] for bound in ("above", "least", "most"))
            if value is not None and above is not None and not value > above:
                raise ValueError(f"{known.name} must be above {above}, not {value}")
            if value is not None and least is not None and not value >= least:
                raise ValueError(f"{known.name} must be at least {least}, not {value}")
            if value is not None and most is not None and not value <= most:
                raise ValueError(f"{known.name} must be at most {most}, not {value}")

    @property
    def settings(self) -> dict[str, Option]:
        """What can be set."""
        return {known.name: Option.of(known.name, known.default, known.type) for known in fields(self)}

    @property
    def options(self) -> dict[str, Any]:
        return {known.name: getattr(self, known.name) for known in fields(self)}

    def __contains__(self, option: str) -> bool:
        return option in self.options

    def with_options(self, **options: Any) -> Self:
        """The same with other values. Raises ValueError for an unknown setting, or a value that it cannot have."""
        unknown = [name for name in options if name not in self]
        if unknown:
            kind = type(self).__name__.lower()
            raise ValueError(f"unknown setting {unknown[0]!r} of {kind}; known: {', '.join(self.options)}")
        return replace(self, **options)

    def acts(self) -> dict[str, Any]:
        """The settings that the numbers of a run depend on and that differ from their defaults."""
        changed = (known for known in fields(self) if getattr(self, known.name) != known.default)
        return {known.name: getattr(self, known.name) for known in changed if known.metadata["acts"]}


@dataclass(frozen=True, kw_only=True)
class Data(Part):
    """The images. Subsets are class-balanced and always the same; None is all of them."""

    dataset: str = setting("digits", "a data set by name, or a folder of images")
    image_size: int | None = setting(None, "side in pixels that the images are brought to", least=8, most=1024)
    train_images: int | None = setting(None, "a class-balanced subset of so many training images", above=0)
    test_images: int | None = setting(None, "the same of the test images", above=0)
    validation_images: int = setting(0, "so many training images, kept from training, choose an epoch", least=0)
    label_noise: float = setting(0.0, "share of the training labels that are flipped to another class", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_images == 1:
            raise ValueError(
                "train_images must be at least 2, not 1: BatchNorm learns nothing from a batch of one image"
            )
        if self.label_noise > 1:
            raise ValueError(f"label_noise is a share, 0 <= label_noise <= 1, not {self.label_noise}")


@dataclass(frozen=True, kw_only=True)
class Recipe(Part):
    """The released recipe: SGD, and a learning rate that is divided by 10 after each of the milestones."""

    epochs: int = setting(240, "passes over the training images", above=0, usual="the data set's")
    batch_size: int = setting(64, "images of a step; BatchNorm and class-wise distances need neighbours", least=2)
    learning_rate: float | None = setting(None, "None: the model's own", above=0)
    milestones: tuple[int, ...] | None = setting(None, "None: 150, 180 and 210 of 240 epochs, in proportion")
    momentum: float = setting(0.9, "of SGD", least=0)
    weight_decay: float = setting(5e-4, "of SGD", least=0)
    tested_from: float = setting(0.0, "share of the epochs before which no test image is looked at", least=0)
    reported: Literal["best", "last"] = setting("best", "the epoch whose accuracy a run reports", acts=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(type(milestone) is int and milestone >= 0 for milestone in self.milestones or ()):
            raise ValueError(f"milestones are epochs, whole numbers such as (150, 180, 210), not {self.milestones}")
        if self.tested_from > 1:
            raise ValueError(f"tested_from is a share, 0 <= tested_from <= 1, not {self.tested_from}")

    def tests(self, epoch: int) -> bool:
        """Whether the test images are looked at after this epoch, from 1: the last one always is."""
        return epoch == self.epochs or epoch > self.tested_from * self.epochs


@dataclass(frozen=True, kw_only=True)
class Pruning(Part):
    """The pruned copy of the teacher, and what it weighs in the mixture; see pruning.MixedTeacher."""

    pruning_rate: float = setting(
        0.0, "share pruned from each layer of the copy; 0: the dense teacher alone", least=0, usual="the method's"
    )
    dense_weight: float = setting(0.7, "share of the dense teacher's logits in the mixture", least=0)
    pruned_batchnorm: Literal["batch", "running"] = setting("batch", "statistics that the pruned copy normalises by")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pruning_rate >= 1:
            raise ValueError(f"pruning_rate is a share of the weights, 0 <= rate < 1, not {self.pruning_rate}")
        if self.dense_weight > 1:
            raise ValueError(f"dense_weight is a share, 0 <= dense_weight <= 1, not {self.dense_weight}")


@dataclass(frozen=True, kw_only=True)
class Machine(Part):
    """Where and how it runs."""

    device: str = setting("auto", "auto, cpu, cuda, cuda:1 ...", acts=False)
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "of convolutions and products in training; auto: float32 on a CPU, bfloat16 on a GPU that has it"
    )
    threads: int | None = setting(
        None,
        "of torch, on a CPU, for each training; None: 1 for a student, students train side by side, all for a teacher",
        acts=False,
        above=0,
    )
    streams: int = setting(4, "students that a GPU computes side by side", acts=False, above=0)
    plain: bool = setting(False, "eager, float32, nothing folded: slower, a run of its own, to compare with")
    data_root: str | None = setting(
        None, "where data sets lie or are downloaded to [$R2KD_DATA, else data/]", acts=False
    )
    runs_root: str | None = setting(None, "where run folders go [$R2KD_RUNS, else runs/]", acts=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plain and self.precision == "bfloat16":
            raise ValueError("plain computes in float32: leave out one of plain and precision=bfloat16")


PLACES = tuple(known.name for known in fields(Machine) if not known.metadata["acts"])  # where and how fast, no number


@dataclass(frozen=True, kw_only=True)
class Tests(Part):
    """What every student of a study is tested with beside clean images, once it is trained; see robustness.Protocol."""

    corruptions: str = setting("all", "none, standard (the 15 of CIFAR-C), all (19), or some: fog+snow", acts=False)
    attacks: str = setting("all", "none, all, or some: fgsm+pgd", acts=False)
    robust_images: int = setting(2000, "test images under each corruption, class-balanced", acts=False, above=0)
    attacked_images: int = setting(500, "the same under each attack", acts=False, above=0)
    as_jpeg: bool = setting(False, "save the corrupted images as JPEG, as Tiny-ImageNet-C's were", acts=False)


@dataclass(frozen=True, kw_only=True)
class Design(Part):
    """What a study compares. Models and arms may be any function, from a notebook; see experiments.study."""

    pair: str | None = setting(None, "teacher and student by the name of their pair")
    teacher: Any = setting(None, "the teacher's model, in place of a pair's")
    student: Any = setting(None, "the student's model, in place of a pair's")
    teacher_checkpoint: str | None = setting(None, "weights of the teacher, in place of training it")
    seeds: int | tuple[int, ...] | None = setting(None, 'how many (5: 0 to 4), or which: "0,3,7", one of them "3,"')
    arms: str | tuple | dict | None = setting(
        None,
        '"ce; kd; r2kd:temperature=2 cutmix"; with + before it beside those of the profile; "mine = kd cutmix" is called mine',
    )
    comparisons: str | tuple | None = setting(
        None, 'pairs of arms that get a verdict, in place of the profile\'s: "kd cutmix - kd; ..."', acts=False
    )
    fidelity: Literal["released", "intended"] = setting("released", "the switches of notebook 04, all at once")
    load: str | tuple | None = setting(None, "a Python file with entries of your own", acts=False)
    fresh: bool | None = setting(None, "train what there is only a record of", acts=False)
    recorded: bool = setting(False, "train nothing: leave out students that have neither run nor record", acts=False)
    figures_root: str | None = setting(
        None, "where figures and records go [run_all.py: figures/; a notebook: figures/ beside the runs]", acts=False
    )
