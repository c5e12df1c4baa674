"""What is asked for of a study, in texts, as its arms, seeds and pairs; the name of its folder, and what captions say of its settings."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import data, entries, models
from .config import DistillConfig, TeacherConfig
from .digest import digest
from .entries import Choice
from .parts import PLACES, Design, Tests
from .profiles import PAIRS, PROFILES, SMALL_PAIRS, Profile, pair_models, plain


def pair(design: Design, profile: Profile) -> tuple[Any, Any]:
    """(the teacher's model, the student's). Raises ValueError for an unknown pair."""
    teacher, student = pair_models(design.pair or profile.pairs[0])
    return design.teacher or teacher, design.student or student


def seeds(
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


def arms(arms: Any, profile: Profile) -> list[tuple[str | None, Any, bool]]:
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


def comparisons(asked: Any, profile: Profile, specs: list[Any], labels: list[str]) -> tuple[tuple[str, str], ...]:
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


def teacher(base: TeacherConfig, given: Mapping[str, Any]) -> tuple[TeacherConfig, set[str]]:
    """(the teacher, the keys of `given` that are its alone): what is of the data or the machine is the students' too."""
    both = {key: value for key, value in given.items() if base.owner(key) in ("data", "machine")}
    own = {key.removeprefix("teacher."): value for key, value in given.items() if key.startswith("teacher.")}
    made, used = base.apply(both)[0].apply(own)
    return made, {f"teacher.{key}" for key in used}


def configure(
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


def labels(given: list[str | None], configs: list[DistillConfig]) -> list[str]:
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


def acting(tests: Tests, profile: Profile) -> dict[str, Any]:
    """What of the tests differs from the profile's; captions say it in their own words, robustness.Protocol.words."""
    usual = Tests().with_options(**profile.tests).options
    return {name: value for name, value in tests.options.items() if value != usual[name]}


def _settings(design: Design, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was set and acts, beside data set, models, arms and seeds; 2, 2.0 and "2" are one."""
    acting = {name: value for name, value in given.items() if name.rpartition(".")[2] not in PLACES}
    acting |= {} if design.fidelity == "released" else {"fidelity": design.fidelity}
    values = {name: entries.parsed(value) if isinstance(value, str) else value for name, value in acting.items()}
    return {name: f"{value:g}" if isinstance(value, float) else value for name, value in values.items()}


def said(design: Design, given: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in _settings(design, given).items() if name not in _SEEN)
    return f"; set: {said}" if said else ""


def name(profile: str, design: Design, given: Mapping[str, Any], configs: list[DistillConfig]) -> str:
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


def dataset_folder(dataset: str) -> str:
    """A data set's name; a folder's name and a hash of its place, as two of one name are two."""
    if data.named(dataset):
        return _short(dataset)
    folder = Path(dataset).expanduser().resolve()
    return f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"


def epochs(config: TeacherConfig) -> str:
    epochs = config.recipe.epochs
    return f"{epochs} epoch" + ("s" if epochs > 1 else "")
