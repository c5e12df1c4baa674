"""What a function computes: a comment is nothing, a body, a helper, a closure and a constant are something."""

import subprocess
import sys

from r2kd import augmentation, losses, methods, models
from r2kd.digest import digest

import pytest
import torch
from torch import nn

ORIGINAL = '''
import torch
import torch.nn.functional as F

SCALE = 2.0


def helper(x):
    """Twice."""
    return SCALE * x


class Net(torch.nn.Module):
    def forward(self, x):
        return helper(x)


def loss(student, teacher, *, weight=1.0):
    """A loss."""
    # of mine
    return weight * helper(F.mse_loss(student, teacher))
'''


def loaded(tmp_path, source, name="mine"):
    """The module of a source, as Python loads a file."""
    path = tmp_path / f"{name}{abs(hash(source))}.py"
    path.write_text(source)
    namespace = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(source, str(path), "exec"), namespace)
    return namespace


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# of mine", "# of mine, and of others"),
        ("    # of mine\n", ""),
        ('"""A loss."""', '"""Another word for it."""'),
        ('    """Twice."""\n', ""),
        (
            "def loss(student, teacher, *, weight=1.0):",
            "def loss(student, teacher, *, weight: float = 1.0) -> torch.Tensor:",
        ),
        (
            "weight * helper(F.mse_loss(student, teacher))",
            "(weight\n            * helper(F.mse_loss(student, teacher)))",
        ),
        ("SCALE = 2.0", "SCALE = 2.0\nOTHER = 3.0"),
    ],
)
def test_what_changes_nothing_is_the_same(tmp_path, old, new):
    assert old in ORIGINAL
    changed = loaded(tmp_path, ORIGINAL.replace(old, new))
    assert digest(changed["loss"]) == digest(loaded(tmp_path, ORIGINAL)["loss"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("weight * helper", "weight + helper"),
        ("F.mse_loss", "F.l1_loss"),
        ("SCALE * x", "SCALE * x * x"),
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("SCALE = 2.0", "SCALE = 2"),
        ("weight=1.0", "weight=2.0"),
        ("helper(F.mse_loss(student, teacher))", "helper(F.mse_loss(teacher, student))"),
    ],
)
def test_what_changes_something_is_another(tmp_path, old, new):
    changed = loaded(tmp_path, ORIGINAL.replace(old, new))
    assert digest(changed["loss"]) != digest(loaded(tmp_path, ORIGINAL)["loss"])


def test_a_class_is_its_methods_and_what_they_reach(tmp_path):
    first, again = (loaded(tmp_path, ORIGINAL)["Net"] for _ in range(2))
    changed = loaded(tmp_path, ORIGINAL.replace("SCALE * x", "SCALE - x"))["Net"]
    assert digest(first) == digest(again) != digest(changed)


def closure(value):
    return lambda x: x + value


def test_a_closure_is_the_values_that_it_closes_over():
    assert digest(closure(1)) == digest(closure(1)) != digest(closure(2))
    for first, second in (
        (torch.ones(3), torch.zeros(3)),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
        (nn.Linear(2, 2), nn.Linear(2, 2)),
        (closure(1), closure(2)),
        (torch.float32, torch.float64),
        (1, True),
    ):
        assert digest(closure(first)) == digest(closure(first)) != digest(closure(second))


def test_lambdas_of_one_line_are_told_apart():
    one, two, other = (lambda x: x + 1), (lambda x: x + 2), (lambda x: x + 1)
    assert digest(one) == digest(other) != digest(two)


def test_a_function_without_source_is_its_instructions():
    made = {}
    exec("def f(x):\n    return RATE * x\nRATE = 2", made)
    first = digest(made["f"])
    made["RATE"] = 3
    assert digest(made["f"]) != first


def test_a_source_that_changed_after_it_was_loaded_does_not_count(tmp_path):
    mine = loaded(tmp_path, ORIGINAL)
    with_source = digest(mine["loss"])
    (path,) = tmp_path.glob("*.py")
    path.write_text(ORIGINAL.replace("SCALE * x", "0 * x"))
    import linecache

    linecache.checkcache(str(path))
    edited = loaded(tmp_path, ORIGINAL.replace("SCALE * x", "0 * x"), "edited")
    assert digest(mine["loss"]) != digest(edited["loss"]) and with_source != digest(edited["loss"])


def test_a_function_that_calls_itself_has_a_digest():
    def factorial(n):
        return n * factorial(n - 1) if n else 1

    assert len(digest(factorial)) == 16


def test_what_cannot_be_told_is_refused(tmp_path):
    with open(tmp_path / "log", "w") as log, pytest.raises(ValueError, match="hand it over as an option"):
        digest(closure(log))


def test_the_packages_own_helpers_count(monkeypatch):
    kd, cutmixpick = digest(methods.kd.function), digest(augmentation.cutmixpick.function)
    monkeypatch.setattr(losses, "kd_loss", lambda student, teacher, temperature: (student - teacher).sum())
    assert digest(methods.kd.function) != kd
    mixup = augmentation.mixup.function
    monkeypatch.setattr(augmentation, "cutmix", mixup)
    assert digest(augmentation.cutmixpick.function) != cutmixpick


DIGESTS = """
import random, torch
torch.manual_seed(random.randrange(10**6))
from r2kd import augmentation, methods, models
from r2kd.digest import digest
print([digest(entry.function) for kind in (methods.METHODS, augmentation.AUGMENTATIONS, models.MODELS) for entry in kind.values()])
"""


def test_every_process_finds_the_same_digests_and_no_two_entries_share_one():
    printed = subprocess.run([sys.executable, "-c", DIGESTS], capture_output=True, text=True, check=True).stdout
    kinds = (methods.METHODS, augmentation.AUGMENTATIONS, models.MODELS)
    known = [digest(entry.function) for kind in kinds for entry in kind.values()]
    assert printed == f"{known}\n"
    assert len(set(known)) == len(known) - 1  # identity computes what none does; of an address the name is a part too
    assert digest(augmentation.AUGMENTATIONS["identity"].function) == digest(
        augmentation.AUGMENTATIONS["none"].function
    )
