"""What a training depends on: the configuration of a model trained alone, and of a student with its teacher."""

from dataclasses import dataclass

from . import fidelity, models
from .augmentation import AUGMENTATIONS

METHODS = ("ce", "kd", "r2kd")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A model trained by cross-entropy on the clean view. The defaults are the released recipe.

    train_images, test_images: a class-balanced subset of each split, always the same; None is all of them.
    milestones: the learning rate is divided by 10 after these epochs; None puts them at 150, 180 and 210 of 240.
    device: "auto" is CUDA where there is one. device, data_root and runs_root do not change a run's address.
    plain: without what makes it fast and rounds otherwise: eager, float32, default layout, nothing folded; see acceleration.
    Raises ValueError for a name or a number that cannot be.
    """

    model: str
    dataset: str = "digits"
    image_size: int | None = None
    train_images: int | None = None
    test_images: int | None = None
    epochs: int = 240
    batch_size: int = 64
    learning_rate: float = 0.05
    milestones: tuple[int, ...] | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    plain: bool = False
    device: str = "auto"
    data_root: str | None = None
    runs_root: str | None = None

    def __post_init__(self) -> None:
        if self.model not in models.NAMES:
            raise ValueError(f"unknown model {self.model!r}; known: {', '.join(models.NAMES)}")
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError("batch_size must be at least 2: BatchNorm and the class-wise distance need neighbours")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TeacherConfig):
    """A student, `model`, taught by `teacher`: cross-entropy on the clean view, a distance on the clean and augmented views.

    method: "ce" (no teacher), "kd" (KL divergence) or "r2kd" (correlation distance, value and rank).
    teacher_checkpoint: weights to use for the teacher in place of training it.
    pruning_rate: share pruned from each layer of the teacher's copy; 0 is the dense teacher alone.
    rank_regularisation: of the soft ranks; see losses.soft_rank_loss.
    fidelity: "released", what the published students were trained by, or "intended", the method as described.
    rank, value, pruned_batchnorm, pick, draws, reported: the switches of fidelity.SWITCHES; None is as `fidelity` has it.
    """

    teacher: TeacherConfig | None = None
    teacher_checkpoint: str | None = None
    method: str = "r2kd"
    augmentation: str = "none"
    temperature: float = 4.0
    ce_weight: float = 1.0
    kd_weight: float = 1.0
    value_weight: float = 2.0
    rank_weight: float = 2.0
    pruning_rate: float = 0.1
    dense_weight: float = 0.7
    rank_regularisation: float = 0.1
    fidelity: str = "released"
    rank: str | None = None
    value: str | None = None
    pruned_batchnorm: str | None = None
    pick: str | None = None
    draws: str | None = None
    reported: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"unknown augmentation {self.augmentation!r}; known: {', '.join(AUGMENTATIONS)}")
        if not 0 <= self.pruning_rate < 1:
            raise ValueError(f"pruning_rate is a share of the weights, 0 <= rate < 1, not {self.pruning_rate}")
        fidelity.preset(self.fidelity)
        for switch in fidelity.SWITCHES:
            if self.switch(switch.name) not in switch.values:
                raise ValueError(f"{switch.name} is {' or '.join(switch.values)}, not {self.switch(switch.name)!r}")
        if self.method == "ce" and (self.augmentation != "none" or self.teacher is not None):
            raise ValueError("method 'ce' has no teacher, and the augmented view carries no labels to learn from")
        if self.method != "ce" and self.teacher is None:
            raise ValueError(f"method {self.method!r} needs a teacher")

    def switch(self, name: str) -> str:
        """The value of a switch: as set, else as `fidelity` has it."""
        return getattr(self, name) or fidelity.preset(self.fidelity)[name]


Config = TeacherConfig | DistillConfig


def milestones(config: Config) -> tuple[int, ...]:
    """The epochs after which the learning rate is divided by 10."""
    if config.milestones is not None:
        return tuple(config.milestones)
    return tuple(round(config.epochs * share) for share in (150 / 240, 180 / 240, 210 / 240))
