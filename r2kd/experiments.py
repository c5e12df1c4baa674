"""A study as data: a teacher, arms, seeds; what runs it and makes its tables. Its profiles are those of profiles.PROFILES."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from . import (
    ROOT,
    data,
    entries,
    evaluation,
    models,
    records,
    robustness,
    runs,
    stats,
    tested,
    training,
)
from .augmentation import AUGMENTATIONS
from .config import DistillConfig, TeacherConfig, unknown_setting
from .data import ImageData
from .digest import digest
from .entries import Choice
from .parts import PLACES, Data, Design, Tests
from .profiles import PAIRS, PROFILES, SMALL_PAIRS, Profile, confirmed, pair_models, plain, searched, switched
from .progress import tqdm
from .runs import Run


@dataclass(frozen=True, kw_only=True)
class Study:
    """A teacher and, by their labels, the arms that are compared, each a configuration, with every seed.

    seeds_of: those of the arms that have others, fewer. tests: what each student is tested with. comparisons: the pairs of arms
    that it is to tell apart. shown: the arms that crowded figures draw, empty for all. said: what captions add of its settings.
    figures_root: else beside the runs, so that who looks changes no committed file. fresh: whether an arm of which there is only
    a record is trained. recorded: whether one of which there is nothing is left out in place of it. made_of: (profile, settings)
    that `study` was given.
    """

    name: str
    teacher: TeacherConfig
    arms: Mapping[str, DistillConfig]
    seeds: tuple[int, ...]
    seeds_of: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tests: Tests = Tests()
    shown: tuple[str, ...] = ()
    comparisons: tuple[tuple[str, str], ...] = ()
    said: str = ""
    figures_root: str | None = None
    fresh: bool = True
    recorded: bool = False
    made_of: tuple[str, Mapping[str, Any]] = ("", {})

    @property
    def first(self) -> DistillConfig:
        """An arm, for what all of them share."""
        return next(iter(self.arms.values()))

    @property
    def figures(self) -> Path:
        """Of its figures and its records: <figures_root>/<data set>/<name>."""
        return self.roots[-1] / _dataset_folder(self.first.data.dataset) / self.name

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders of figures whose records it knows, those of the repository and its own, which is the last."""
        own = self.figures_root or runs.root_folder(self.first.machine.runs_root) / "figures"
        return tuple(dict.fromkeys((ROOT / "figures", Path(own))))

    @property
    def reference(self) -> str:
        """The arm that others are compared with: the first that has no teacher, else the first."""
        return next((arm for arm, config in self.arms.items() if not config.taught), next(iter(self.arms)))

    def students(self, seed: int) -> dict[str, DistillConfig]:
        """The configurations, by arm, of those that have this seed, in their order."""
        return {
            arm: replace(config, seed=seed)
            for arm, config in self.arms.items()
            if seed in self.seeds_of.get(arm, self.seeds)
        }

    def drawn(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table with a column `arm` that crowded figures draw."""
        return table[table["arm"].isin(self.shown or self.arms)]

    @property
    def views(self) -> dict[str, Choice]:
        """Every view by name, as the first arm that sees it has it."""
        own = {config.view.name: config.view for config in reversed(self.arms.values())}
        return {name: own.get(name, Choice(entry)) for name, entry in AUGMENTATIONS.items()}

    def option(self, key: str) -> Any:
        """The value of a setting in the first arm that has it, else R2KD's own; of the pruning in one that prunes.

        Raises ValueError for an unknown one.
        """
        usual = DistillConfig.of(self.first.model, teacher=self.teacher, method="r2kd", view="cutmixpick")
        configs = [*sorted(self.arms.values(), key=lambda config: not config.pruned), usual]
        for config in configs:
            if (owner := config.owner(key)) and (owner != "pruning" or config.pruned):
                return config[key]
        raise ValueError(unknown_setting(key, configs))

    def protocol(self, images: ImageData) -> robustness.Protocol:
        """What `tests` mean for these images, here."""
        teacher = self.teacher.run(self.teacher_images(images)).address
        return robustness.protocol(self.tests, images, self.first.machine.data_root, teacher)

    def open_data(self) -> ImageData:
        """The students' images, on their device."""
        return training.open_data(self.first).to(training.resolve_device(self.first.machine.device))

    def caption(self, images: ImageData) -> str:
        """What every figure of the study says below its title: what its numbers rest on."""
        teacher, student = self.teacher.model.name, self.first.model.name
        epochs, taught = _epochs(self.first), []
        if self.teacher.checkpoint:
            tested = teacher_run(self, images).result["last_top1"]
            taught.append(f"weights from {Path(self.teacher.checkpoint).name}, {tested:.2f} %")
        else:
            count = self.teacher.data.train_images
            if count != self.first.data.train_images:
                taught.append(f"of {count:,} images" if count else "of all images")
            if _epochs(self.teacher) != epochs:
                taught.append(_epochs(self.teacher))
        teacher += f" ({', '.join(taught)})" if taught else ""
        classes = f" ({images.num_classes} of {images.of_classes} classes)" if images.of_classes else ""
        kept = f", {len(images.validation):,} validation" if images.validation else ""
        chosen = {(config.precision, config.machine.precision) for config in self.arms.values()}
        half = "; in bfloat16" if chosen == {("bfloat16", "auto")} else ""  # what was asked for is in `said`
        return (
            f"{images.name}{classes}, {len(images.train):,} training{kept} and {len(images.test):,} test images of "
            f"{images.image_size} px; {epochs}; {teacher} teaches {student}{self._label_noise}{half}{self.said}"
        )

    @property
    def _label_noise(self) -> str:
        """What a caption says of flipped labels: an arm's own noise is no setting of the study, and not always in its label."""
        taught = f"{self.teacher.data.label_noise:g}"
        rates = sorted({f"{config.data.label_noise:g}" for config in self.arms.values()})
        if rates == ["0"] and (taught == "0" or self.teacher.checkpoint):
            return ""
        apart = "" if rates == [taught] or self.teacher.checkpoint else f", the teacher's {taught}"
        return f"; label noise {' or '.join(rates)}{apart}"

    def teacher_images(self, images: ImageData) -> ImageData:
        """The teacher's images, on the device of the students'."""
        same = self.teacher.data == self.first.data
        return images if same else training.open_data(self.teacher).to(images.test.labels.device)


class Student(NamedTuple):
    """A trained arm: its label in the study, its configuration with the seed, and its run."""

    arm: str
    config: DistillConfig
    run: Run

    @property
    def columns(self) -> dict[str, Any]:
        """What tables say of it: arm, method, augmentation, pruned, seed."""
        return {
            "arm": self.arm,
            "method": self.config.method.label,
            "augmentation": self.config.view.name,
            "pruned": self.config.pruned,
            "seed": self.config.seed,
        }


ARM = tested.ARM
SHARES = "{l_bar}{bar}| {n:.1f}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # of a bar whose steps are parts of a run


def study(profile: str = "quick", **settings) -> Study:
    """The study of a profile, under `settings`: any of parts.Design and parts.Tests, and of any part of a configuration.

    A key may have its part before it (method.temperature), or "teacher." where it is of the teacher's recipe: of the recipe, a
    setting is the students'; of the data and the machine, it is both's. An option of methods or views is set wherever an arm
    has it; what an arm says itself counts more, and is its student's alone: under "kd label_noise=0.4" the teacher stays the
    study's. None is as not given. `arms`: a text, "ce; kd; r2kd:temperature=2 cutmix", or a list, or a dictionary by label, of
    such texts, of functions that can be a method, or of dictionaries with method, view, fidelity and settings; a first "+"
    keeps the profile's arms before them, and "label = arm" gives one a label. `comparisons`: pairs of them, "mine - kd cutmix", by label or by
    the arm's text, one family of verdicts in place of the profile's.

    Raises ValueError for an unknown profile, pair, entry or setting, or two arms that are the same.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    chosen = PROFILES[profile]
    given = {name: value for name, value in settings.items() if value is not None}
    design = Design().with_options(**{name: given.pop(name) for name in list(given) if name in Design()})
    asked = {name: given.pop(name) for name in list(given) if name in Tests()}
    tests = Tests().with_options(**chosen.tests | asked)
    for path in [design.load] if isinstance(design.load, str) else design.load or ():
        entries.load(path)
    for choose, names in (
        (robustness.chosen_corruptions, tests.corruptions),
        (robustness.chosen_attacks, tests.attacks),
    ):
        choose(names)  # an unknown one is said before anything is trained
    teacher, student = _models(design, chosen)
    dataset = given.pop("dataset", chosen.dataset)
    own = data.recipe(dataset)
    scale = own | {name: min(value, own.get(name, value)) for name, value in chosen.scale.items()}
    base = {"dataset": dataset} | scale
    usual = chosen.settings if dataset == chosen.dataset else {}
    under = dict(usual) | given
    taught, used = _teacher(TeacherConfig.of(teacher, checkpoint=design.teacher_checkpoint, **base), under)
    taught.refuse_idle([key.removeprefix("teacher.") for key in given if key.startswith("teacher.")], of="teacher.")
    specified = _specified(design.arms, chosen)
    configs = [_configure(spec, student, taught, base, under, design.fidelity, used) for _, spec, _ in specified]
    for key in given:
        if key not in used:
            raise ValueError(unknown_setting(key, configs, (*Design().options, *Tests().options)))
    arms = dict(zip(_labels([label for label, _, _ in specified], configs), configs, strict=True))
    for label, config in arms.items():
        if config.teacher != taught:
            raise ValueError(f"the arm {label!r} has a teacher of its own: the arms of a study share one")
    seeds, seeds_of = _seeds(design.seeds, chosen, arms)
    return Study(
        name=_name(profile, design, given | _acting(tests, chosen), configs),
        teacher=taught,
        arms=arms,
        seeds=seeds,
        seeds_of=seeds_of,
        tests=tests,
        comparisons=_comparisons(design.comparisons, chosen, [spec for _, spec, _ in specified], list(arms)),
        shown=tuple(label for label, (_, _, shown) in zip(arms, specified, strict=True) if shown),
        said=_said(design, given),
        figures_root=design.figures_root,
        fresh=chosen.fresh if design.fresh is None else design.fresh,
        recorded=design.recorded,
        made_of=(profile, settings),
    )


def ablation(of: Study) -> Study:
    """The same study with other arms: cross-entropy, R2KD as released, each switch that trains alone, all: as intended.

    With cutmixpick and the pruned teacher, where every switch has something to act on.
    """
    arms = {"cross-entropy": "ce"} | switched()
    profile, settings = of.made_of
    made = variant(of, **dict(PROFILES[profile].ablation) | settings | {"arms": arms})
    pairs = tuple((arm, "released") for arm in switched() if arm != "released")
    return replace(made, comparisons=pairs, said=f"{of.said}; R2KD with cutmixpick, pruned teacher")


def search(of: Study) -> Study:
    """The study of the settings that a better one is chosen among, by its validation images, on seeds of their own; no tests."""
    profile = PROFILES[of.made_of[0]]
    return _beside(of, "search", profile.search, arms=searched(), seeds=profile.search_seeds)


def confirmation(of: Study, chosen: str) -> Study:
    """The study of the setting that `search` chose, by its label, against R2KD as released and the field, on fresh seeds; no tests.

    Raises ValueError for an unknown label.
    """
    if chosen not in searched():
        raise ValueError(f"{chosen!r} was not searched; known: {', '.join(searched())}")
    arms, seeds = confirmed(chosen, of.first.recipe.epochs), PROFILES[of.made_of[0]].confirmation_seeds
    made = _beside(of, "confirmation", {}, arms=arms, seeds=seeds)
    return replace(made, comparisons=tuple(("recommended", other) for other in arms if other != "recommended"))


def _beside(of: Study, name: str, own: Mapping[str, Any], **design) -> Study:
    """A study of students that are none of the first's: in a folder of figures and records beside its."""
    made = variant(of, **dict(own) | of.made_of[1] | design | {"corruptions": "none", "attacks": "none"})
    return replace(made, name=f"{of.name}-{name}")


def with_label_noise(of: Study, rate: float, seeds: int = 3) -> Study:
    """The same study, `rate` of the training labels flipped, the teacher's too: cross-entropy, KD and R2KD, each on one view.

    With at most so many of its seeds, and no tests beside clean images.
    """
    arms = {"cross-entropy": "ce", "KD": "kd", "R2KD": "r2kd pruning_rate=0"}
    arms = {label + _flipped(rate): arm for label, arm in arms.items()}  # their records stand beside those of the study
    return variant(of, label_noise=rate, arms=arms, seeds=of.seeds[:seeds], corruptions="none", attacks="none")


def _flipped(rate: float) -> str:
    return f", {100 * rate:g} % flipped" if rate else ""


def variant(of: Study, **settings) -> Study:
    """A study with other settings, say arms or a student of your own, whose figures and records join those of the first."""
    profile, given = of.made_of
    return replace(study(profile, **dict(given) | {"comparisons": None} | settings), name=of.name)


def in_minutes(of: Study, **settings) -> Study:
    """`variant` where the profile is one of minutes, else the quick study with these settings; its records stay beside the runs."""
    profile, given = of.made_of
    if PROFILES[profile].fresh:
        return variant(of, **settings)
    places = {name: value for name, value in given.items() if name in PLACES}
    return study("quick", **places | settings)


def _models(design: Design, profile: Profile) -> tuple[Any, Any]:
    teacher, student = pair_models(design.pair or profile.pairs[0])
    return design.teacher or teacher, design.student or student


def _seeds(
    asked: int | tuple[int, ...] | None, profile: Profile, arms: Iterable[str]
) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
    """(the seeds of a study, those of the arms that have fewer): what is asked for is for all arms."""
    if isinstance(asked, tuple):
        if len(set(asked)) < len(asked):
            raise ValueError(f"seeds are {', '.join(map(str, asked))}: each once")
        return asked, {}
    if asked is not None and asked < 1:
        raise ValueError(f"seeds must be at least 1, not {asked}")
    few, more = (tuple(range(count)) for count in (asked or profile.seeds, asked or profile.verdict_seeds))
    others = [arm for arm in arms if arm not in profile.verdicts]
    if len(others) == len(list(arms)):
        return few, {}
    return more, ({} if few == more else dict.fromkeys(others, few))


def _specified(arms: Any, profile: Profile) -> list[tuple[str | None, Any, bool]]:
    """(label or None, what the arm is, whether crowded figures draw it) of each arm."""
    if isinstance(profile.arms, Mapping):
        usual = [(label, text, label in profile.shown) for label, text in profile.arms.items()]
    else:
        usual = [(None, text, text in profile.shown) for text in map(plain, profile.arms)]
    if arms is None:
        return usual
    if isinstance(arms, Mapping):
        return [(label, spec, True) for label, spec in arms.items()]
    listed = arms.split(";") if isinstance(arms, str) else list(arms)
    beside = listed and isinstance(listed[0], str) and listed[0].strip().startswith("+")
    if beside:
        listed[0] = listed[0].strip().removeprefix("+")
    own = [(*_labelled(spec), True) for spec in listed if not isinstance(spec, str) or spec.strip()]
    if not own:
        raise ValueError("a study needs an arm at least")
    return [*usual, *own] if beside else own


def _labelled(spec: Any) -> tuple[str | None, Any]:
    """(label or None, the arm) of "label = arm"."""
    label, equals, arm = spec.partition(" = ") if isinstance(spec, str) else ("", "", spec)
    return (label.strip(), arm) if equals else (None, spec)


def _comparisons(asked: Any, profile: Profile, specs: list[Any], labels: list[str]) -> tuple[tuple[str, str], ...]:
    """The pairs of labels that are compared: those asked for, by a label or by an arm's text, else the profile's that are there.

    Raises ValueError for what is no pair of the study's arms.
    """
    if asked is None:
        return tuple(pair for pair in profile.comparisons if set(pair) <= set(labels))
    called = {spec.strip(): label for spec, label in zip(specs, labels, strict=True) if isinstance(spec, str)}
    called |= {label: label for label in labels}
    texts = [text.split(" - ") for text in asked.split(";") if text.strip()] if isinstance(asked, str) else asked
    pairs = [tuple(called.get(name.strip()) for name in pair) for pair in texts]
    for pair, text in zip(pairs, texts, strict=True):
        if len(pair) != 2 or None in pair or len(set(pair)) < 2:
            raise ValueError(
                f"{' - '.join(text)!r} is no pair of arms, {labels[0]} - {labels[-1]} is; there are {', '.join(labels)}"
            )
    return tuple(pairs)


def _teacher(base: TeacherConfig, given: Mapping[str, Any]) -> tuple[TeacherConfig, set[str]]:
    """(the teacher, the keys of `given` that are its alone): what is of the data or the machine is the students' too."""
    both = {key: value for key, value in given.items() if base.owner(key) in ("data", "machine")}
    own = {key.removeprefix("teacher."): value for key, value in given.items() if key.startswith("teacher.")}
    made, used = base.apply(both)[0].apply(own)
    return made, {f"teacher.{key}" for key in used}


def _configure(
    spec: Any, student: Any, teacher: TeacherConfig, base: dict, given: Mapping[str, Any], preset: str, used: set[str]
) -> DistillConfig:
    """The configuration of one arm; `used` gains the keys of `given` that it has.

    What is given of the pruning is for the arms that prune: KD's teacher stays dense.
    """
    own = {"method": spec}
    if isinstance(spec, str | Mapping):
        own = _parsed(spec) if isinstance(spec, str) else dict(spec)
    if "method" not in own:
        raise ValueError(f"the arm {spec!r} names no method")
    parts = {name: own.pop(name) for name in ("method", "view") if name in own}
    model, own_preset = own.pop("model", student), own.pop("fidelity", None)
    made = DistillConfig.of(model, teacher=teacher, fidelity=preset, **parts, **base)
    pruning = {key for key in given if made.owner(key) == "pruning"}
    mine = {key: value for key, value in given.items() if made.pruned or key not in pruning}
    made, known = made.apply({key: value for key, value in mine.items() if not key.startswith("teacher.")})
    used |= known | (pruning if made.pruned else set())
    return (made.with_preset(own_preset) if own_preset else made).with_settings(own)


def _parsed(text: str) -> dict[str, str]:
    """ "r2kd:temperature=2 cutmix pruning_rate=0": a method, a view if there is one, and settings."""
    words = text.split()
    own: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and ":" not in key:
            own[key] = value
            continue
        part = "view" if "method" in own else "method"
        if part in own:
            raise ValueError(f"the arm {text.strip()!r} has two views, {own[part]!r} and {word!r}")
        own[part], options = entries.split(word)
        own |= {f"{part}.{name}": value for name, value in options.items()}  # said of this arm, be it the default
    return own


def _labels(given: list[str | None], configs: list[DistillConfig]) -> list[str]:
    """What each arm is called: its method and view, whether its teacher is pruned, and what else differs among the arms."""
    called = {label: config for label, config in zip(given, configs, strict=True) if label}
    own = [config for label, config in zip(given, configs, strict=True) if not label]
    labels = [label or _label(config, own) for label, config in zip(given, configs, strict=True)]
    for i, label in enumerate(labels):
        if not given[i] and label in called:
            labels[i] = _label(configs[i], [*own, called[label]])
    for i, config in enumerate(configs):
        same = [other for other in configs if other == config]
        if len(same) > 1:
            raise ValueError(f"two arms are the same: {labels[i]}")
    computed = [digest((c.model.entry.function, c.method.entry.function, c.view.entry.function))[:6] for c in configs]
    told = [f"{a} ({b})" if labels.count(a) > 1 else a for a, b in zip(labels, computed, strict=True)]
    if twice := [label for label, name in zip(labels, told, strict=True) if told.count(name) > 1]:
        raise ValueError(f"two arms are called {twice[0]!r}: give them labels, 'mine = kd; ...' or arms={{label: arm}}")
    return told


def _label(config: DistillConfig, among: list[DistillConfig]) -> str:
    words = config.method.label + (f" {config.view.label}" if config.view.entry.drawn else "")
    words += ", pruned" if config.pruned else ""
    for name in ("method", "view", "pruning", "model", "data", "recipe", "machine"):
        part = config.parts[name]
        # of one entry's options those that differ among its arms; of the pruning, those among the arms that prune
        alike = [other.parts[name] for other in among if name != "pruning" or other.pruned]
        if isinstance(part, Choice):
            if name == "model" and len({other.name for other in alike}) > 1:
                words += f", {part.label}"
            alike = [other for other in alike if other.entry is part.entry]
        elif name == "pruning" and not config.pruned:
            continue
        for option, value in part.options.items():
            if len({other.options[option] for other in alike}) > 1:
                shown = f"{value:g}" if isinstance(value, float) else value
                words += f", {option.replace('_', ' ')} {shown}"
    return words


_SEEN = ("image_size", "train_images", "test_images", "validation_images", "label_noise", "teacher.label_noise")
_SEEN += ("epochs", "teacher.epochs")  # in any caption


def _acting(tests: Tests, profile: Profile) -> dict[str, Any]:
    """What of the tests differs from the profile's; captions say it in their own words, robustness.Protocol.words."""
    usual = Tests().with_options(**profile.tests).options
    return {name: value for name, value in tests.options.items() if value != usual[name]}


def _settings(design: Design, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was set and acts, beside data set, models, arms and seeds; 2, 2.0 and "2" are one."""
    acting = {name: value for name, value in given.items() if name.rpartition(".")[2] not in PLACES}
    acting |= {} if design.fidelity == "released" else {"fidelity": design.fidelity}
    values = {name: entries.parsed(value) if isinstance(value, str) else value for name, value in acting.items()}
    return {name: f"{value:g}" if isinstance(value, float) else value for name, value in values.items()}


def _said(design: Design, given: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in _settings(design, given).items() if name not in _SEEN)
    return f"; set: {said}" if said else ""


def _name(profile: str, design: Design, given: Mapping[str, Any], configs: list[DistillConfig]) -> str:
    """Of a study's folder of figures: profile, pair and whatever else was set, so that no two studies share one."""
    known = {models_: pair for pair, models_ in (PAIRS | SMALL_PAIRS).items()}
    taught, model = configs[0].teacher.model, configs[0].model
    name = f"{profile}-" + (known.get((str(taught), str(model))) or f"{_word(taught)}_{_word(model)}")
    settings = _settings(design, given)
    if design.teacher_checkpoint:
        settings["teacher"] = (
            f"{Path(design.teacher_checkpoint).stem}.{models.checkpoint_digest(design.teacher_checkpoint)[:6]}"
        )
    if design.arms is not None:
        usual = configs[0].teacher.data.options.items()
        own = [sorted(c.data.options.items() - usual) for c in configs]  # mostly none: the names of old folders stay
        parts = ((c.model.acts(), c.method.acts(), c.view.acts(), c.pruning.acts(), c.recipe.acts()) for c in configs)
        settings["arms"] = digest(tuple(repr((*acts, *data)) for acts, data in zip(parts, own, strict=True)))[:6]
    if design.seeds is not None and (PROFILES[profile].verdict_seeds or design.seeds != PROFILES[profile].seeds):
        settings["seeds"] = design.seeds
    return name + "".join(f"-{key}={_short(value)}" for key, value in sorted(settings.items()))


def _word(model: Choice) -> str:
    """A model in a folder's name; functions and options by what they compute."""
    named = model.name in models.MODELS and not model.changed
    return re.sub(r"[^\w.+]+", "_", model.name) + ("" if named else f".{digest(tuple(model.acts().values()))[:6]}")


def _short(value: Any) -> str:
    text = re.sub(r"[^\w.+]+", "_", str(value))
    return text if len(text) <= 24 else digest(str(value))[:8]


def _dataset_folder(dataset: str) -> str:
    """A data set's name; a folder's name and a hash of its place, as two of one name are two."""
    if data.named(dataset):
        return _short(dataset)
    folder = Path(dataset).expanduser().resolve()
    return f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"


def _epochs(config: TeacherConfig) -> str:
    epochs = config.recipe.epochs
    return f"{epochs} epoch" + ("s" if epochs > 1 else "")


def run_teacher(study: Study, images: ImageData) -> nn.Module:
    """The study's teacher in eval mode, on its device: trained, returned as it was, put back, or loaded from a checkpoint."""
    run = teacher_run(study, images)
    records.write(study.figures, [("teacher", run)])
    return _on_device(study.teacher, run, images)


def teacher_result(study: Study, images: ImageData) -> dict[str, Any]:
    """What the teacher's run ended with: from its record where its weights are not here and the study is not `fresh`."""
    run = study.teacher.run(study.teacher_images(images))
    recorded = {} if run.finished or study.fresh else records.under(*study.roots)
    if run.address in recorded:
        return Run(run.folder, recorded[run.address]).result
    run = teacher_run(study, images)
    records.write(study.figures, [("teacher", run)])
    return run.result


def teacher_run(study: Study, images: ImageData) -> Run:
    """The study's teacher trained, returned as it was, or, where the study is not `fresh`, put back from beside its record.

    Nothing is recorded: the teacher of a variant is not the study's.
    """
    own = study.teacher_images(images)
    if not study.fresh:
        training.put_back(study.teacher, own)
    return training.train_teacher(study.teacher, own)


def _teacher_logits(study: Study, images: ImageData) -> torch.Tensor:
    """(N, C) for the test images."""
    run = teacher_run(study, images)
    return evaluation.predict(_on_device(study.teacher, run, images), images.test, images)


def run_students(study: Study, images: ImageData, weights: bool = True) -> list[Student]:
    """Every arm with every seed, trained and tested or returned as it was; those of one seed share each teacher pass.

    Where no `weights` are asked for and the study is not `fresh`, a run whose record is under study.roots is reported
    from it; in a study of what is `recorded` nothing is trained. Every finished run is written to the study's records, seed by seed.
    Several processes share a study: each takes what no other is at, then waits for what is left, and all return the same.
    """
    recorded = {} if weights or study.fresh else records.under(*study.roots)
    wanted, opened = _wanted(study, images)
    under = study.protocol(images)
    order = [student.run.address for students in wanted.values() for student in students]
    trained: dict[int, list[Student]] = {}
    tested: set[int] = set()
    unwritten = list(wanted)  # in this order, whichever is finished first
    total = len(order)
    shares = {seed: _shares(wanted[seed], recorded) for seed in wanted}
    with tqdm(total=total, initial=sum(shares.values()), desc="students", unit="run", bar_format=SHARES) as bar:

        def move(seed: int) -> None:
            shares[seed] = _shares(wanted[seed], recorded)
            bar.update(sum(shares.values()) - bar.n)

        for wait in (False, True):
            for seed in [seed for seed in wanted if seed not in tested]:
                if seed not in trained:
                    found = _run_seed(study, wanted[seed], opened, recorded, wait, partial(move, seed))
                    if not all(student.run.source == "record" or student.run.finished for student in found):
                        continue
                    trained[seed] = found
                    move(seed)
                while unwritten and unwritten[0] in trained:
                    records.write(study.figures, [(s.arm, s.run) for s in trained[unwritten.pop(0)]])
                rows = _test(study, images, trained[seed], under, order, wait)
                if all(student.run.address in rows for student in trained[seed]):
                    tested.add(seed)
    finished = [student for seed in wanted for student in trained[seed]]
    if missing := total - len(finished):
        print(f"{missing} of {total} students have neither run nor record, and are left out")
    if reported := sum(student.run.source == "record" for student in finished):
        print(
            f"{reported} of {len(finished)} students are reported from their records; fresh=True (--fresh) trains them"
        )
    return finished


def _wanted(study: Study, images: ImageData) -> tuple[dict[int, list[Student]], dict[Data, ImageData]]:
    """(the students by seed, trained or not; the images that they ask for)."""
    opened = {study.first.data: images}
    wanted: dict[int, list[Student]] = {}
    for seed in study.seeds:
        students = []
        for arm, config in study.students(seed).items():
            if config.data not in opened:
                opened[config.data] = training.open_data(config)
            students.append(Student(arm, config, config.run(opened[config.data])))
        wanted[seed] = students
    return wanted, opened


def _shares(students: Iterable[Student], recorded: Mapping[str, dict]) -> float:
    """How many of them are trained, or known; of one at work its epochs count."""
    return sum(1 if s.run.address in recorded else s.run.epochs / s.config.recipe.epochs for s in students)


def _run_seed(
    study: Study,
    students: list[Student],
    opened: Mapping[Data, ImageData],
    recorded: Mapping[str, dict],
    wait: bool,
    after_epoch: Callable[[], None],
) -> list[Student]:
    found, together = {}, {}
    for student in students:
        run = student.run
        if not run.finished and run.address in recorded:
            found[student.arm] = student._replace(run=Run(run.folder, recorded[run.address]))
        elif run.finished or not study.recorded:
            found[student.arm] = student
            together.setdefault(repr(training.shared(student.config)), []).append(student.config)
    if not study.fresh and any(s.config.taught and not s.run.finished for s in found.values() if s.run.source == "run"):
        training.put_back(study.teacher, study.teacher_images(opened[study.first.data]))
    for configs in together.values():
        training.distill_all(configs, opened[configs[0].data], wait=wait, after_epoch=after_epoch)
    return [found[student.arm] for student in students if student.arm in found]


def _test(
    study: Study, images: ImageData, students: Iterable[Student], under: robustness.Protocol, *how: Any
) -> dict[str, list[dict[str, Any]]]:
    wanted = [_tested(student.arm, student.config, student.run, images) for student in students]
    return test_rows(study, images, wanted, under, *how)


def test_rows(
    study: Study,
    images: ImageData,
    wanted: list[robustness.Subject],
    under: robustness.Protocol,
    order: Sequence[str] = (),
    wait: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """The rows of robustness.test by the run's address; what is not in the records is measured, with the teacher at hand.

    under: `Study.protocol`, which opens the teacher's images.
    """
    if not (under.corruptions or under.attacks):
        return {}
    places = {"folder": study.figures, "roots": study.roots, "order": order, "wait": wait}
    return robustness.test(wanted, images, under, **places, teacher_logits=partial(_teacher_logits, study, images))


def _tested(arm: str, config: TeacherConfig, run: Run, images: ImageData) -> robustness.Subject:
    weights = None
    if run.source == "run":
        training.ensure_sound(config, run)
        weights = models.checkpoint_digest(run.weights())
    return robustness.Subject(run.address, weights, partial(_on_device, config, run, images), {"arm": arm})


def _on_device(config: TeacherConfig, run: Run, images: ImageData) -> nn.Module:
    model = training.load_model(config, run, images.num_classes)
    return model.to(images.test.labels.device, memory_format=torch.channels_last)


def tests_table(study: Study, images: ImageData, students: Iterable[Student]) -> pd.DataFrame:
    """A row for each test of each student: its columns, then test, name, level, n, top1, loss, ece, confidence.

    A student of whose tests there is neither a record nor weights has no row; without corruptions and attacks, none has.
    """
    students = list(students)
    found = _test(study, images, students, study.protocol(images))
    tables = [pd.DataFrame(found[s.run.address]).assign(**s.columns) for s in students if s.run.address in found]
    columns = [*ARM, "seed", "test", "name", "level", *robustness.MEASURES]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def sources(study: Study, students: Iterable[Student]) -> str:
    """What a caption adds where some of a study's students are not there yet, or not all of them were trained here."""
    sources = [student.run.source for student in students]
    wanted, recorded = sum(len(study.students(seed)) for seed in study.seeds), sources.count("record")
    there = f"; {len(sources)} of the study's {wanted} students so far" if len(sources) < wanted else ""
    return there + (f"; {recorded} students from their records" if recorded else "")


def arms_table(study: Study) -> pd.DataFrame:
    """A row an arm, by its label: the options of its method, its view and its pruning that act; empty where it has none."""
    rows = {}
    for arm, config in study.arms.items():
        acting = {"method": config.method.options}
        acting |= {"view": config.view.options} if config.view.entry.drawn else {}
        acting |= {"pruning": config.pruning.options} if config.pruned else {}
        rows[arm] = {}
        for part, options in acting.items():
            rows[arm] |= {f"{part}.{name}" if name in rows[arm] else name: value for name, value in options.items()}
    return pd.DataFrame.from_dict(rows, orient="index").astype(object).replace({float("nan"): ""})


def results_table(students: Iterable[Student]) -> pd.DataFrame:
    """A row a run: arm, seed, the last and the best epoch's test accuracy in percent, which epoch was best, and its source.

    With validation images also chosen_top1, chosen_epoch and validation_top1, of the epoch that they chose, and
    last_validation_top1.
    """
    rows = []
    for student in students:
        result = student.run.result
        kept = {name: result[name] for name in runs.ACCURACIES if name in result}
        rows.append(student.columns | kept | {"source": student.run.source})
    return pd.DataFrame(rows)


def curves_table(students: Iterable[Student]) -> pd.DataFrame:
    """A row for each epoch of each run after which test images were looked at: arm, seed, epoch, test_top1."""
    tables = [student.run.metrics[["epoch", "test_top1"]].assign(**student.columns) for student in students]
    return pd.concat(tables, ignore_index=True).dropna(subset="test_top1", ignore_index=True)


def pruning_gain(study: Study, results: pd.DataFrame) -> pd.DataFrame:
    """What the pruned teacher adds to last_top1: a row for each pair of arms that differ in nothing else, paired by seed."""
    dense = {
        replace(config, pruning=study.first.pruning): arm for arm, config in study.arms.items() if not config.pruned
    }
    rows = []
    for arm, config in study.arms.items():
        other = dense.get(replace(config, pruning=study.first.pruning))
        if config.pruned and other is not None:
            gain = stats.paired_difference(results, arm, other, "last_top1")
            rows.append(gain.assign(augmentation=config.view.name, method=config.method.label, arm=arm))
    columns = ["augmentation", "mean", "n", "half_width", "each", "method", "arm"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)
