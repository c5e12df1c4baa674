"""What a training depends on. A configuration is its parts, and knows what of them acts, so the address of its run."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from . import acceleration, fidelity, models, runs
from .augmentation import AUGMENTATIONS
from .data import ImageData
from .entries import Choice, split
from .methods import METHODS
from .parts import Data, Machine, Part, Pruning, Recipe
from .runs import Run

CLEAN = Choice(AUGMENTATIONS["none"])


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A model trained by cross-entropy on the clean view, or taken from the weights at `checkpoint`.

    model: a name of models.MODELS, with options or without, or any function num_classes -> nn.Module.
    Raises ValueError for a name or a number that cannot be.
    """

    model: Choice
    data: Data = Data()
    recipe: Recipe = Recipe()
    machine: Machine = Machine()
    seed: int = 0
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", models.MODELS.choose(self.model))
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        if self.checkpoint == "":
            raise ValueError("checkpoint is empty: it is the path of a file of weights")

    @classmethod
    def of(cls, model: str | Choice | Callable, *, seed: int = 0, checkpoint: str | None = None, **settings) -> Self:
        """With settings of any part by name: of("resnet20", epochs=60, train_images=1000). Raises as `with_settings` does."""
        return cls(model=model, seed=seed, checkpoint=checkpoint).with_settings(settings)

    @property
    def parts(self) -> dict[str, Part | Choice]:
        return {"model": self.model, "data": self.data, "recipe": self.recipe, "machine": self.machine}

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """The same with other values; a key is a setting's name, with its part before it where that tells two apart.

        Raises ValueError for a key that no part knows, listing the known, and for a value that cannot be.
        """
        changed, used = self.apply(settings)
        for key in settings:
            if key not in used:
                raise ValueError(unknown_setting(key, [changed]))
        return changed

    def apply(self, settings: Mapping[str, Any]) -> tuple[Self, set[str]]:
        """(the same with those of the settings that some part knows, their keys)."""
        parts, used = self.parts, set()
        for key, value in settings.items():
            if owner := self.owner(key):
                parts[owner] = parts[owner].with_options(**{key.rpartition(".")[2]: value})
                used.add(key)
        return replace(self, **parts), used

    def owner(self, key: str) -> str | None:
        """The part that a setting is of. Raises ValueError where it is of two."""
        prefix, _, name = key.rpartition(".")
        owners = [part for part, known in self.parts.items() if name in known and prefix in ("", part)]
        if len(owners) > 1:
            ways = " or ".join(f"{owner}.{name}" for owner in owners)
            raise ValueError(f"{name} is of the {' and of the '.join(owners)}: write {ways}")
        return owners[0] if owners else None

    def __getitem__(self, key: str) -> Any:
        """The value of a setting. Raises KeyError for an unknown one."""
        if (owner := self.owner(key)) is None:
            raise KeyError(key)
        return self.parts[owner].options[key.rpartition(".")[2]]

    def idle(self, keys: Iterable[str]) -> dict[str, str]:
        """Those of these settings that act on nothing here, each with the reason."""
        given = self.checkpoint is not None
        return {key: "the weights are given" for key in keys if given and self.owner(key) == "recipe"}

    def refuse_idle(self, keys: Iterable[str], of: str = "") -> None:
        """Raises ValueError for the first of these settings that acts on nothing; `of` stands before its name."""
        for key, why in self.idle(keys).items():
            raise ValueError(f"{of}{key} acts on nothing: {why}")

    @property
    def learning_rate(self) -> float:
        return self.recipe.learning_rate or self.model.entry.learning_rate

    @property
    def milestones(self) -> tuple[int, ...]:
        """The epochs after which the learning rate is divided by 10."""
        if self.recipe.milestones is not None:
            return self.recipe.milestones
        return tuple(round(self.recipe.epochs * share) for share in (150 / 240, 180 / 240, 210 / 240))

    @property
    def views(self) -> dict[str, Choice]:
        """The views that the model sees, in the order of its forwards."""
        return {"clean": CLEAN}

    @property
    def precision(self) -> str:
        """That of its convolutions and products in training, whatever was asked for: "float32", or "bfloat16"."""
        if self.machine.plain:
            return "float32"
        return acceleration.precision(acceleration.resolve_device(self.machine.device), self.machine.precision)

    @property
    def threads(self) -> int | None:
        """Torch's for its training on a CPU; None: all."""
        return self.machine.threads

    def acts(self, images: ImageData) -> dict[str, Any]:
        """What the numbers of a run depend on: of the parts in use, what differs from its default. `images`: its data set."""
        acting = {"model": self.model.acts(), "data": acting_data(self.data, images)}
        if self.checkpoint is not None:
            return acting | {"checkpoint": models.checkpoint_digest(self.checkpoint)}
        resolved = {"learning_rate": self.learning_rate, "milestones": self.milestones}
        machine = {name: value for name, value in self.machine.acts().items() if name != "precision"}
        machine |= {} if self.precision == "float32" else {"precision": self.precision}
        return acting | {"recipe": self.recipe.acts() | resolved, "machine": machine, "seed": self.seed}

    def settings(self) -> dict[str, Any]:
        """Every setting of the parts in use, flat: for tables. A choice's options have its part before them."""
        flat = {}
        for name, part in self.parts.items():
            if isinstance(part, Choice):
                flat |= {name: part.name} | {f"{name}.{option}": value for option, value in part.options.items()}
            else:
                flat |= part.options
        flat |= {"learning_rate": self.learning_rate, "milestones": self.milestones, "seed": self.seed}
        flat |= {"precision": self.precision}
        return flat | ({} if self.checkpoint is None else {"checkpoint": self.checkpoint})

    def title(self, images: ImageData) -> str:
        """What the folder of its run is called, before the hash."""
        how = f"seed{self.seed}" if self.checkpoint is None else "given"
        return _title("teacher", images.name, self.model.name, how)

    def run(self, images: ImageData) -> Run:
        """Its run folder: finished or not, or not yet there. `images`: its data set, or a subset of it."""
        return runs.at(self.machine.runs_root, self.title(images), self.acts(images))


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TeacherConfig):
    """A student, `model`, taught by `teacher`: cross-entropy on the clean view, and what `method` says to each view.

    method: of methods.METHODS, or any function of what a method can ask for; view: of augmentation.AUGMENTATIONS, the same.
    """

    teacher: TeacherConfig | None = None
    pruning: Pruning = Pruning()
    method: Choice = "r2kd"
    view: Choice = CLEAN

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "method", METHODS.choose(self.method))
        object.__setattr__(self, "view", AUGMENTATIONS.choose(self.view))
        asks, seen = self.method.entry.asks, self.view.entry
        if self.taught and self.teacher is None:
            raise ValueError(f"method {self.method.name!r} needs a teacher")
        if seen.drawn and not {"teacher", "target"} & set(asks):
            raise ValueError(
                f"method {self.method.name!r} asks for neither teacher nor labels: it has nothing to say to a second view"
            )
        if seen.drawn and "target" in asks and not seen.keeps_target:
            raise ValueError(
                f"method {self.method.name!r} asks for labels, and view {self.view.name!r} keeps none (keeps_target)"
            )
        if self.method.entry.second_view and not seen.drawn:
            raise ValueError(f"method {self.method.name!r} needs a second view, and {self.view.name!r} is none")

    @classmethod
    def of(
        cls,
        model: str | Choice | Callable,
        *,
        teacher: TeacherConfig | None = None,
        method: str | Choice | Callable = "r2kd",
        view: str | Choice | Callable = CLEAN,
        seed: int = 0,
        fidelity: str = "released",
        **settings,
    ) -> Self:
        """With settings of any part by name, of the teacher's with "teacher." before it, over the switches of a preset.

        And over the options that the method's authors chose by the pair, where the method is given by its name.
        """
        said = split(method)[1] if isinstance(method, str) else None
        method = METHODS.choose(method)
        pruning = Pruning(pruning_rate=method.entry.pruning_rate)
        made = cls(model=model, teacher=teacher, method=method, view=view, seed=seed, pruning=pruning)
        if said is not None and teacher is not None:
            usual = method.entry.of_pair(teacher.model.name, made.model.name)
            made = replace(made, method=method.with_options(**{k: v for k, v in usual.items() if k not in said}))
        return made.with_preset(fidelity).with_settings(settings)

    def with_preset(self, name: str) -> Self:
        """The same with the switches of its method that its parts have. Raises ValueError for an unknown preset."""
        values = fidelity.preset(name)
        known = {}
        for switch in fidelity.of(self.method.label):
            option = self.parts[switch.part].settings.get(switch.name)
            if option is not None and set(option.choices) == set(switch.values):
                known[switch.key] = values[switch.name]
        return self.with_settings(known)

    @property
    def parts(self) -> dict[str, Part | Choice]:
        return super().parts | {"method": self.method, "view": self.view, "pruning": self.pruning}

    def apply(self, settings: Mapping[str, Any]) -> tuple[Self, set[str]]:
        """As a teacher's; what has "teacher." before it is the teacher's."""
        changed, used = super().apply(settings)
        if self.teacher is None:
            return changed, used
        own = {key.removeprefix("teacher."): value for key, value in settings.items() if key.startswith("teacher.")}
        teacher, own_used = self.teacher.apply(own)
        return replace(changed, teacher=teacher), used | {f"teacher.{key}" for key in own_used}

    def idle(self, keys: Iterable[str]) -> dict[str, str]:
        """As a teacher's; what has "teacher." before it is the teacher's."""
        untaught = f"the method {self.method.name} has no teacher"
        of_teacher = [key.removeprefix("teacher.") for key in keys if key.startswith("teacher.")]
        found = self.teacher.idle(of_teacher) if self.taught else dict.fromkeys(of_teacher, untaught)
        found = super().idle(keys) | {f"teacher.{key}": why for key, why in found.items()}
        if not self.pruned:
            why = "pruning_rate is 0" if self.taught else untaught
            found |= {key: why for key in keys if self.owner(key) == "pruning" and self[key] != 0}
        return found

    @property
    def threads(self) -> int | None:
        """One, unless it is said: students train side by side, and come out the same on any number of cores."""
        return self.machine.threads or (None if self.machine.plain else 1)

    @property
    def taught(self) -> bool:
        """Whether a teacher takes part."""
        return "teacher" in self.method.entry.asks

    @property
    def pruned(self) -> bool:
        """Whether a pruned copy of the teacher takes part."""
        return self.taught and self.pruning.pruning_rate > 0

    @property
    def views(self) -> dict[str, Choice]:
        return {"clean": CLEAN} | ({"augmented": self.view} if self.view.entry.drawn else {})

    def acts(self, images: ImageData) -> dict[str, Any]:
        acting = super().acts(images) | {"method": self.method.acts()}
        if self.view.entry.drawn:
            acting["view"] = self.view.acts()
        if self.taught:
            acting["teacher"] = self._checked_teacher().acts(images)
        if self.pruned:
            acting["pruning"] = self.pruning.acts()
        return acting

    @property
    def learning_rate(self) -> float:
        return self.recipe.learning_rate or min(self.model.entry.learning_rate, self.method.entry.learning_rate)

    def _checked_teacher(self) -> TeacherConfig:
        for name in ("dataset", "image_size"):
            if (theirs := self.teacher.data.options[name]) != (mine := self.data.options[name]):
                raise ValueError(f"teacher and student must have one {name}, not {theirs!r} and {mine!r}")
        return self.teacher

    def settings(self) -> dict[str, Any]:
        flat = super().settings()
        if not self.pruned:
            flat |= {name: None for name in self.pruning.options} | {"pruning_rate": 0.0}
        if self.taught:
            flat |= {("teacher" if k == "model" else f"teacher.{k}"): v for k, v in self.teacher.settings().items()}
        return flat

    def title(self, images: ImageData) -> str:
        return _title("distill", images.name, self.model.name, self.method.name, self.view.name, f"seed{self.seed}")


Config = TeacherConfig | DistillConfig


def unknown_setting(key: str, configs: list[Config], beside: tuple[str, ...] = ()) -> str:
    """What to say of a setting that acts in none of the configurations and that `beside` doesn't know either."""
    part, _, name = key.rpartition(".")
    if any(config.owner(key) for config in configs):
        return f"{key} acts on nothing: no arm prunes"
    for kind, entries in (("method", METHODS), ("view", AUGMENTATIONS)):
        having = [entry.name for entry in entries.values() if name in entry.options and part in ("", kind)]
        chosen = dict.fromkeys(config.parts[kind].name for config in configs if kind in config.parts)
        if having and chosen:
            return f"{name} is of {' and '.join(having)}, and the {kind} is {' or '.join(chosen)}"
    of = [known for config in configs for name, known in config.parts.items() if part in ("", name)]
    if of and part:
        return f"unknown setting {key!r}; the {part} has {', '.join(dict.fromkeys(name for p in of for name in p.settings))}"
    known = dict.fromkeys(
        [*beside, *(name for config in configs for p in config.parts.values() for name in p.settings)]
    )
    return f"unknown setting {key!r}; known: {', '.join(known)}; before each its part, or teacher."


def _title(*words: str) -> str:
    return "-".join(re.sub(r"[^\w.+]+", "_", word) for word in words)


def acting_data(data: Data, images: ImageData) -> dict[str, Any]:
    """The images themselves, how many, by number, so that "all" and a number above it are one, and their label noise."""
    train, test = images.of_images or (len(images.train), len(images.test))
    kept = {"train_images": min(data.train_images or train, train - data.validation_images)}
    kept |= {"test_images": min(data.test_images or test, test)}
    kept |= {"validation_images": data.validation_images} if data.validation_images else {}
    kept |= {"label_noise": data.label_noise} if data.label_noise else {}
    return {"fingerprint": images.fingerprint, "classes": images.num_classes} | kept
