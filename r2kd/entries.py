"""One idea, one entry: a method, a view, a corruption, a model or a data set is said once, and all else follows from it.

An entry is a function under a decorator. A parameter without a default is something that the house hands over, by its name;
one with a default is an option: its name, default and type, or the values that its `Literal` allows, are the signature's.

    @methods.method("MSE", cite="Ba & Caruana, NIPS 2014")
    def mse(student, teacher, *, weight=0.1):
        return weight * torch.nn.functional.mse_loss(student, teacher)
"""

import ast
import importlib.util
import inspect
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from .digest import digest


@dataclass(frozen=True)
class Option:
    """Something that can be set. `types`: of its values; `choices`: the values themselves, where only some will do."""

    name: str
    default: Any
    types: tuple[type, ...] = ()
    choices: tuple = ()

    @classmethod
    def of(cls, name: str, default: Any, annotation: Any) -> "Option":
        """By the annotation: `Literal[...]`, a type or a union of types; else by the type of the default."""
        if get_origin(annotation) is Literal:
            choices = get_args(annotation)
            return cls(name, default, tuple({type(choice) for choice in choices}), choices)
        kinds = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        kinds = tuple(get_origin(kind) or kind for kind in kinds)
        if annotation is Any or not all(isinstance(kind, type) for kind in kinds) or inspect.Parameter.empty in kinds:
            kinds = () if default is None else (type(default),)
        return cls(name, default, kinds)

    def read(self, value: Any, of: str) -> Any:
        """`value`, or what a text says, as this option has it; a path is a text. Raises ValueError for what it cannot be."""
        if isinstance(value, Path) and str in self.types:
            value = str(value)
        if isinstance(value, str) and (str not in self.types or (self.choices and value not in self.choices)):
            value = parsed(value)
        if type(value) is int and float in self.types and int not in self.types:
            value = float(value)
        if tuple in self.types and isinstance(value, list | range):
            value = tuple(value)
        if tuple in self.types and type(value) is int and int not in self.types:
            value = (value,)
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name} is {' or '.join(map(str, self.choices))}, not {value!r}")
        if self.types and type(value) not in self.types:
            kinds = " or ".join(kind.__name__ for kind in self.types if kind is not types.NoneType)
            raise ValueError(f"{self.name} of {of} is of type {kinds}, not {value!r}")
        if value == "" and str in self.types:
            raise ValueError(f"{self.name} of {of} is empty")
        if not all(math.isfinite(v) for v in (value if isinstance(value, tuple) else [value]) if isinstance(v, float)):
            raise ValueError(f"{self.name} of {of} is a finite number, not {value}")
        return value


def parsed(text: str) -> Any:
    """The number, truth value, None or list that a text writes; else the text."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


def pairs(texts: list[str]) -> dict[str, str]:
    """Of --set: "temperature=2" is {"temperature": "2"}. Raises ValueError for what is no key=value."""
    found = [text.partition("=") for text in texts]
    for key, equals, _ in found:
        if not key or not equals:
            raise ValueError(f"--set takes key=value, not {key!r}")
    return {key.strip().replace("-", "_"): value.strip() for key, _, value in found}


@dataclass(frozen=True, eq=False)
class Entry:
    """One idea. `facts`: what its kind says beside, such as a corruption's severities; Registry has their defaults."""

    kind: str
    name: str
    function: Callable
    label: str
    cite: str = ""
    asks: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)
    shared: Mapping[str, Option] = field(default_factory=dict)  # options that every entry of the kind has
    usual: Mapping[str, Any] = field(default_factory=dict)  # their defaults where the decorator says nothing
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *given, **named):
        return self.function(*given, **named)

    @property
    def __wrapped__(self) -> Callable:
        """As functools.wraps has it: what is entered computes what the function does."""
        return self.function

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["facts"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}") from None


@dataclass(frozen=True)
class Choice:
    """An entry and the options of it that are not at their defaults, in the order of the signature."""

    entry: Entry
    changed: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def label(self) -> str:
        return self.entry.label

    @property
    def options(self) -> dict[str, Any]:
        """Every option's value."""
        return {name: option.default for name, option in self.settings.items()} | dict(self.changed)

    @property
    def settings(self) -> dict[str, Option]:
        """What can be set, those that all entries of the kind share among them."""
        return {**self.entry.shared, **self.entry.options}

    def __getitem__(self, option: str) -> Any:
        return self.options[option]

    def __contains__(self, option: str) -> bool:
        return option in self.settings

    def __str__(self) -> str:
        """As it can be written on the command line: r2kd:temperature=2,value=pearson."""
        return self.name + "".join(f"{',' if i else ':'}{name}={value}" for i, (name, value) in enumerate(self.changed))

    def with_options(self, **options: Any) -> "Choice":
        """The same with other values. Raises ValueError for an unknown option, or a value that it cannot have."""
        known = self.settings
        for name in options:
            if name not in known:
                raise ValueError(
                    f"unknown option {name!r} of {self.entry.kind} {self.name!r}; known: {', '.join(known) or 'none'}"
                )
        of = f"{self.entry.kind} {self.name!r}"
        values = self.options | {name: known[name].read(value, of) for name, value in options.items()}
        changed = ((name, value) for name, value in values.items() if not _same(value, known[name].default))
        return Choice(self.entry, tuple(changed))

    def __call__(self, **given: Any) -> Any:
        """What the function makes of what the house hands over, of which it takes what it asks for."""
        asked = {name: given[name] for name in self.entry.asks}
        return self.entry.function(**asked, **{name: self[name] for name in self.entry.options})

    def acts(self) -> dict[str, Any]:
        """What the numbers depend on: the name, the options that differ from their defaults, and what the function computes."""
        own = {name: self[name] for name, value in self.entry.usual.items() if not _same(self[name], value)}
        return {"name": self.name, **dict(self.changed), **own, "digest": digest(self.entry.function)}


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default


class Registry(Mapping[str, Entry]):
    """The entries of one kind, by name: `entry` is the decorator that makes one.

    `gives`: what the house hands over to a function that asks for it. `facts`: what an entry can say beside, with defaults.
    `shared`: options that every entry of the kind has; an entry's decorator can set their default.
    """

    def __init__(
        self, kind: str, gives: tuple[str, ...], facts: dict | None = None, shared: dict | None = None
    ) -> None:
        self.kind, self.gives, self.facts, self.shared = kind, gives, facts or {}, shared or {}
        self._entries: dict[str, Entry] = {}

    def __getitem__(self, name: str) -> Entry:
        """Raises ValueError for an unknown name, listing the known."""
        if name not in self._entries:
            raise ValueError(f"unknown {self.kind} {name!r}; known: {', '.join(self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, label: str, cite: str = "", name: str | None = None, **facts: Any) -> Callable[[Callable], Entry]:
        """Decorator: the function becomes the entry of its name. Raises ValueError where the name is another's already."""

        def enter(function: Callable) -> Entry:
            return self.add(function, label, cite, name, **facts)

        return enter

    def add(self, function: Callable, label: str, cite: str = "", name: str | None = None, **facts: Any) -> Entry:
        """As the decorator `entry` does, of a function that stands elsewhere."""
        made = self.make(function, label, cite, name, **facts)
        old = self._entries.get(made.name)
        if old is not None and _home(old.function) != _home(function):
            raise ValueError(f"the {self.kind} {made.name!r} is already that of {'.'.join(_home(old.function))}")
        self._entries[made.name] = made
        return made

    def make(
        self, function: Callable, label: str | None = None, cite: str = "", name: str | None = None, **facts: Any
    ) -> Entry:
        """An entry that is in no list, of any function, class or lambda. Raises ValueError for what it cannot ask for."""
        name = name or getattr(function, "__name__", type(function).__name__).replace("<lambda>", "lambda")
        shared = {key: Option(key, facts.pop(key, default), (type(default),)) for key, default in self.shared.items()}
        unknown = [key for key in facts if key not in self.facts]
        if unknown:
            raise ValueError(f"a {self.kind} says nothing of {unknown[0]!r}; known: {', '.join(self.facts)}")
        parameters = [p for p in _parameters(function) if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        asks = tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)
        for asked in asks:
            if asked not in self.gives:
                raise ValueError(
                    f"the {self.kind} {name!r} asks for {asked!r}; it can ask for {', '.join(self.gives)}, "
                    "and an option has a default"
                )
        options = {p.name: Option.of(p.name, p.default, p.annotation) for p in parameters if p.name not in asks}
        return Entry(
            self.kind, name, function, label or name, cite, asks, options, shared, self.shared, self.facts | facts
        )

    def choose(self, given: "str | Choice | Entry | Callable") -> Choice:
        """Of a name, "name:option=value,option=value", an entry, or any function that can be one.

        Raises ValueError for an unknown name or option.
        """
        if isinstance(given, Choice):
            return given
        if isinstance(given, Entry):
            return Choice(given)
        if not isinstance(given, str):
            return Choice(self.make(given))
        name, options = split(given)
        return Choice(self[name]).with_options(**options)


def split(text: str) -> tuple[str, dict[str, str]]:
    """A name and its options. "torchvision:resnet18:weights=DEFAULT" is ("torchvision:resnet18", {"weights": "DEFAULT"})."""
    name, _, last = text.rpartition(":")
    if not name or "=" not in last:
        return text, {}
    pairs = [pair.partition("=") for pair in last.split(",")]
    return name, {key.strip(): value.strip() for key, _, value in pairs}


def _home(function: Callable) -> tuple[str, str]:
    return getattr(function, "__module__", None) or "", getattr(function, "__qualname__", type(function).__qualname__)


def _parameters(function: Callable) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise ValueError(f"{function!r} is no function whose parameters can be read") from None


def load(path: str | Path) -> None:
    """Run a user's file of entries, once as long as it stays as it is.

    Raises FileNotFoundError, or ValueError where it fails, in one line.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file of entries at {path}")
    if path.suffix != ".py":
        raise ValueError(f"{path} is no Python file: entries of your own stand in one, my_methods.py")
    content = path.read_bytes()
    if _loaded.get(path) == content:
        return
    if getattr(sys.modules.get(path.stem), "__file__", str(path)) != str(path):
        raise ValueError(f"{path} has the name of a module that is loaded, {path.stem}: give it another")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # what it defines is found by its name, as that of any module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise ValueError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    _loaded[path] = content


_loaded: dict[Path, bytes] = {}
