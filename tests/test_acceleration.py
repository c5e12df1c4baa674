import subprocess
import sys

import pytest
import torch
from conftest import fill
from torch import nn

from r2kd import acceleration, models
from r2kd.frozen import frozen

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def pixels(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(size))


def batchnorms(model: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


@pytest.mark.parametrize("name", models.NAMES)
def test_a_frozen_model_answers_as_the_model_does(name):
    model = fill(models.create(name, 100)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = frozen(model)
    assert batchnorms(folded) < batchnorms(model)
    assert not any(parameter.requires_grad for parameter in folded.parameters()) and not folded.training
    for size in (32, 64):
        with torch.no_grad():
            expected = model.eval()(pixels(size))
        torch.testing.assert_close(folded(pixels(size)), expected, rtol=1e-4, atol=2e-6 * float(expected.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_after_each_convolution_of_a_resnet_no_batchnorm_is_left():
    assert batchnorms(frozen(models.create("resnet56", 10))) == 0


def test_in_bfloat16_only_convolutions_and_the_classifier_are_rounded():
    model = fill(models.create("wrn_16_2", 10)).eval()
    half = frozen(model, torch.bfloat16)
    kinds = {
        type(layer): {p.dtype for p in layer.parameters()} for layer in half.modules() if not list(layer.children())
    }
    assert kinds[nn.Conv2d] == kinds[nn.Linear] == {torch.bfloat16} and kinds[nn.BatchNorm2d] == {torch.float32}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, expected = half(pixels(32, 8)), model(pixels(32, 8))
    assert logits.dtype == torch.bfloat16
    assert float((logits - expected).norm() / expected.norm()) < 0.03


def test_a_cpu_computes_in_float32():
    cpu = torch.device("cpu")
    assert acceleration.precision(cpu) == "float32"
    with acceleration.autocast(cpu, "float32"):
        assert models.create("resnet8", 10)(pixels(16)).dtype == torch.float32


FAULTS = """
import resource, torch
from r2kd import acceleration
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12_000_000).add(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
assert acceleration.keep_freed_memory()
faults()
print(first, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_kept_for_the_next_tensor():
    printed = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    handed_back, kept = map(int, printed.split())
    assert handed_back > 100_000 and kept < handed_back / 10  # the heap may still grow once


def test_without_glibc_nothing_is_kept_and_nothing_breaks(monkeypatch):
    monkeypatch.setattr(acceleration.ctypes, "CDLL", lambda _: object())
    assert acceleration.keep_freed_memory() is False


def test_on_a_cpu_a_replayed_function_is_the_function():
    total = torch.zeros(3)
    replayed = acceleration.Replayed(acceleration.Lane(torch.device("cpu")))
    for _ in range(6):
        assert replayed(total.add_, torch.ones(3)) is total
    assert total.tolist() == [6, 6, 6]


@needs_cuda
def test_on_cuda_a_function_is_replayed_with_what_it_is_given_whatever_its_shape():
    total, calls = torch.zeros((), device="cuda"), []

    def function(x):
        calls.append(len(x))
        total.add_(x.sum())
        return 2 * x

    replayed = acceleration.Replayed(function)
    for i in range(10):
        for count in (4, 7):
            assert replayed(torch.full((count,), float(i), device="cuda")).tolist() == [2.0 * i] * count
    assert float(total) == 11 * sum(range(10)) and calls.count(4) == calls.count(7) == 4
