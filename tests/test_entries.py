"""One idea, one entry."""

import ast
import dataclasses
from functools import partialmethod
from pathlib import Path
from typing import Literal

import r2kd
from r2kd import __main__, augmentation, config, data, entries, methods, models, parts, profiles, robustness
from r2kd.entries import Registry

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
KINDS = (methods.METHODS, augmentation.AUGMENTATIONS, robustness.CORRUPTIONS, models.MODELS, data.DATASETS)


@pytest.fixture
def kind():
    made = Registry("kind", gives=("a", "b"), facts={"loud": False}, shared={"weight": 1.0})

    @made.entry("First", cite="Someone, 2020", loud=True, weight=2.0)
    def first(a, *, rate=0.5, how: Literal["soft", "hard"] = "soft", count: int | None = None):
        return a, rate, how, count

    return made


def test_an_entry_is_its_function_under_its_name_with_its_label_citation_options_and_facts(kind):
    entry = kind["first"]
    assert (entry.name, entry.label, entry.cite, entry.asks, entry.loud) == (
        "first",
        "First",
        "Someone, 2020",
        ("a",),
        True,
    )
    chosen = kind.choose("first:rate=1,how=hard,count=3")
    assert chosen.options == {"weight": 2.0, "rate": 1.0, "how": "hard", "count": 3}
    assert chosen(a="a", b="b") == ("a", 1.0, "hard", 3) and str(chosen) == "first:rate=1.0,how=hard,count=3"
    assert kind.choose("first:rate=0.5") == kind.choose(entry) == kind.choose("first")


def test_what_acts_of_a_choice_is_what_differs_from_its_default_and_what_it_computes(kind):
    acts = kind.choose("first:rate=1").acts()
    assert acts == {"name": "first", "rate": 1.0, "weight": 2.0, "digest": acts["digest"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("second", "unknown kind 'second'; known: first"),
        ("first:speed=3", "unknown option 'speed' of kind 'first'; known: weight, rate, how, count"),
        ("first:how=loud", "how is soft or hard, not 'loud'"),
        ("first:rate=fast", "rate of kind 'first' is of type float, not 'fast'"),
        ("first:rate=True", "rate of kind 'first' is of type float, not True"),
        ("first:count=1.5", "count of kind 'first' is of type int, not 1.5"),
    ],
)
def test_an_unknown_name_option_or_value_lists_what_is_known(kind, text, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        kind.choose(text)


def test_what_nobody_hands_over_cannot_be_asked_for(kind):
    with pytest.raises(
        ValueError, match="the kind 'lambda' asks for 'c'; it can ask for a, b, and an option has a default"
    ):
        kind.choose(lambda c: c)
    with pytest.raises(ValueError, match="a kind says nothing of 'quiet'; known: loud"):
        kind.entry("X", quiet=True)(lambda a: a)


def test_a_name_is_taken_once_and_a_cell_can_be_run_again(kind):
    def define(by):
        def first(a):
            return by

        return first

    one = kind.entry("One", name="one")(define(1))
    assert kind.entry("One again", name="one")(define(2)) is kind["one"] is not one  # the same function, defined anew
    with pytest.raises(ValueError, match="the kind 'first' is already that of"):
        kind.entry("Other")(define(3))


def test_a_file_of_ones_own_is_loaded_once_as_long_as_it_stays_and_its_mistakes_are_one_line(tmp_path):
    path = tmp_path / "my_views.py"
    source = "from r2kd.augmentation import view\n\n@view('mirror', keeps_target=True)\ndef mirror(images):\n    return images.flip(3)\n"
    path.write_text(source)
    try:
        entries.load(path)
        first = augmentation.AUGMENTATIONS["mirror"]
        entries.load(path)
        assert augmentation.AUGMENTATIONS["mirror"] is first
        path.write_text(source.replace("flip(3)", "flip(2)"))
        entries.load(path)
        assert augmentation.AUGMENTATIONS["mirror"] is not first
        path.write_text("1 / 0")
        with pytest.raises(ValueError, match="cannot be loaded: ZeroDivisionError: division by zero"):
            entries.load(path)
    finally:
        augmentation.AUGMENTATIONS._entries.pop("mirror", None)
    with pytest.raises(FileNotFoundError, match="no file of entries"):
        entries.load(tmp_path / "nowhere.py")
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ValueError, match="has the name of a module that is loaded, json"):
        entries.load(tmp_path / "json.py")


def test_the_kinds_say_who_they_are():
    for kind in KINDS:
        for name, entry in kind.items():
            assert entry.name == name and entry.label and entry.kind == kind.kind
    cited = [entry for kind in (methods.METHODS, augmentation.AUGMENTATIONS) for entry in kind.values()]
    assert {entry.name for entry in cited if not entry.cite} == {"ce", "none", "identity"}


def sources():
    """(where, syntax tree) of every file of the package, of run_all and of every notebook."""
    for path in [*sorted((ROOT / "r2kd").rglob("*.py")), ROOT / "run_all.py"]:
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == "code":
                code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
                yield f"{path.name}, cell {i}", ast.parse(code)


def compared(tree):
    """The strings that a tree compares something with, or looks a case up by."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                yield from (part.value for part in ast.walk(side) if isinstance(part, ast.Constant))
        elif isinstance(node, ast.MatchValue):
            yield from (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))


def test_nothing_compares_the_name_or_label_of_an_entry():
    names = {word for kind in KINDS for entry in kind.values() for word in (entry.name, entry.label)}
    found = [(where, value) for where, tree in sources() for value in compared(tree) if value in names]
    assert not found


def test_a_setting_is_said_in_one_place():
    """Fields of the recipe and the pruning stand in r2kd/parts.py; command line, run_all and notebooks' parameters follow."""
    names = {*parts.Recipe().options, *parts.Pruning().options, "train_images", "test_images", "validation_images"}
    for path in (ROOT / "run_all.py", ROOT / "r2kd" / "__main__.py"):
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not {f"--{name.replace('_', '-')}" for name in names} & words and not names & words, path.name
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        (cell,) = (c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", []))
        given = {node.targets[0].id for node in ast.parse(cell.source).body}
        assert {"profile", "settings"} <= given <= {"profile", "settings", "published_root", "download", "robustness"}


def test_a_new_setting_is_an_option_of_the_command_line_and_a_setting_of_a_study(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Recipe(parts.Recipe):
        warmup: int = parts.setting(0, "epochs of warm-up")

    monkeypatch.setattr(__main__, "Recipe", Recipe)
    monkeypatch.setattr(config.TeacherConfig, "__init__", partialmethod(config.TeacherConfig.__init__, recipe=Recipe()))
    options = __main__.parser().parse_args(["teacher", "-d", "digits", "-m", "resnet8", "--warmup", "3"])
    assert options.warmup == "3"
    made = config.TeacherConfig.of("resnet8", **__main__._settings(options, Recipe))
    assert made["warmup"] == 3 and made.recipe.acts()["warmup"] == 3


def test_the_package_names_its_kinds_once():
    assert r2kd.__version__ and set(profiles.GRID) | set(profiles.VIEWS) <= set(augmentation.AUGMENTATIONS)
