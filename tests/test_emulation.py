"""bfloat16 where the processor has no instructions for it."""

from r2kd import acceleration, doctor, emulation, models, runs
from r2kd import frozen as frozen_module
from r2kd.frozen import frozen

import pytest
import torch
import torch.nn.functional as F
from conftest import fill

CPU = torch.device("cpu")
ULP = 2**-7  # of bfloat16, between two of its numbers


@pytest.fixture(autouse=True)
def without(monkeypatch):
    """A processor without instructions for bfloat16, whatever this one has."""
    monkeypatch.setattr(acceleration, "native_bfloat16", lambda device: False)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


def as_bfloat16(value: torch.Tensor) -> torch.Tensor:
    return value.detach().bfloat16().double().requires_grad_()


SETTINGS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2},
    {"groups": 4, "padding": (1, 0)},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_a_convolution_and_its_gradients_are_those_of_rounded_numbers_rounded_once(settings, biased):
    images, weight = drawn(8, 4, 9, 9), drawn(12, 4 // settings.get("groups", 1), 3, 3)
    bias = drawn(12) if biased else None
    given = [value for value in (images, weight, bias) if value is not None]
    for value in given:
        value.requires_grad_()
    with acceleration.autocast(CPU, "bfloat16"):
        found = F.conv2d(images, weight, bias, **settings)
    upstream = drawn(*found.shape).bfloat16()
    found.backward(upstream)

    exact = [as_bfloat16(value) for value in given]
    expected = F.conv2d(*exact, **settings) if biased else F.conv2d(*exact, None, **settings)
    expected.backward(upstream.double())
    assert found.dtype == torch.bfloat16
    pairs = [(found.detach(), expected.detach())]
    pairs += [(value.grad, reference.grad) for value, reference in zip(given, exact, strict=True)]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.double(), theirs, rtol=ULP / 2, atol=1e-5 * float(theirs.abs().max()))
        assert torch.equal(ours.float().bfloat16().float(), ours.float())  # nothing that bfloat16 cannot hold
        assert float((ours.double() == theirs.bfloat16().double()).double().mean()) > 0.99


def test_only_convolutions_only_under_autocast_and_only_in_bfloat16():
    images, weight = drawn(2, 3, 8, 8), drawn(5, 3, 3, 3)
    plain = F.conv2d(images, weight)
    with emulation.Bfloat16InFloat32():
        assert torch.equal(F.conv2d(images, weight), plain)
    with acceleration.autocast(CPU, "float32"):
        assert torch.equal(F.conv2d(images, weight), plain)
    with acceleration.autocast(CPU, "bfloat16"):
        assert F.conv2d(images, weight).dtype == torch.bfloat16
        assert (images * 2).dtype == torch.float32
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(F.conv2d(images, weight), plain)
    assert torch.equal(F.conv2d(images, weight), plain)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "MobileNetV2"])
def test_a_model_answers_as_in_float32_up_to_rounding_and_gives_its_gradients(name):
    model, images = fill(models.create(name, 10)).eval(), drawn(4, 3, 32, 32)
    expected = model(images)
    with acceleration.autocast(CPU, "bfloat16"):
        logits = model(images)
    assert 0 < float(((logits.float() - expected).norm() / expected.norm()).detach()) < 0.03
    logits.float().square().sum().backward()
    assert all(
        torch.isfinite(parameter.grad).all() and parameter.dtype == torch.float32 for parameter in model.parameters()
    )


@pytest.mark.parametrize("joined", [True, False])
def test_a_frozen_teacher_answers_as_it_did(joined, monkeypatch):
    """With relu and addition in the convolution, as where the instructions are, and as torch has them."""
    monkeypatch.setattr(frozen_module, "_can_join", lambda: joined)
    model, images = fill(models.create("resnet20", 10)).eval(), drawn(8, 3, 32, 32)
    with torch.no_grad(), acceleration.autocast(CPU, "bfloat16"):
        logits = frozen(model, torch.bfloat16)(images)
    assert logits.dtype == torch.bfloat16
    with torch.no_grad():
        expected = model(images)
    assert float((logits.float() - expected).norm() / expected.norm()) < 0.02


def test_a_record_says_how_it_was_computed_and_a_run_that_goes_on_otherwise(tmp_path, monkeypatch, capsys):
    run = runs.Run(tmp_path / "run")
    run.prepare({})
    run.start(CPU, "bfloat16")
    assert run.row["precision"] == "bfloat16 in float32"
    monkeypatch.setattr(acceleration, "native_bfloat16", lambda device: True)
    run.start(CPU, "bfloat16", epochs=3)
    assert run.row["precision"] == "bfloat16 in float32 then bfloat16"
    assert "goes on with precision bfloat16, before with bfloat16 in float32" in capsys.readouterr().err
    assert acceleration.carried_out(CPU, "float32") == "float32"


def test_the_doctor_tells(monkeypatch):
    assert "bfloat16 is emulated in float32" in doctor._device("cpu")
    monkeypatch.setattr(acceleration, "native_bfloat16", lambda device: True)
    assert "bfloat16 is native" in doctor._device("cpu")


def test_a_gpu_without_it_is_left_to_torch():
    assert not acceleration.emulates(torch.device("cuda"), "bfloat16")
    assert acceleration.emulates(CPU, "bfloat16") and not acceleration.emulates(CPU, "float32")
