import io
import json
import pickle

import numpy as np
import pytest
import torch
from conftest import SHARED, fill

from r2kd import models

GOLDEN = SHARED / "golden" / "models.json"
RELEASED = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def test_the_released_models_are_all_here(golden):
    assert len(RELEASED) == 45
    assert {key.split("/")[1] for key in RELEASED} == set(models.NAMES)


@pytest.mark.parametrize("key", RELEASED or [pytest.param("none", marks=pytest.mark.skip("needs shared/golden"))])
def test_names_shapes_and_logits_are_the_released_ones(key, golden):
    released = RELEASED[key]
    model = models.create(key.split("/")[1], released["num_classes"])
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == released["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == released["parameters"]
    size = released["image_size"]
    images = np.random.RandomState(0).standard_normal((2, 3, size, size))
    with torch.no_grad():
        logits = fill(model).eval()(torch.tensor(images, dtype=torch.float32)).numpy()
    expected = np.load(golden / "model_logits.npz")[key]
    # formula weights give logits of up to 5e4: an absolute 1e-4 there is below float32's resolution
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=max(1e-4, 2e-6 * np.abs(expected).max()))


@pytest.mark.parametrize("name", models.NAMES)
def test_any_input_from_16_pixels_up_works(name):
    model = models.create(name, 7).eval()
    for size in (16, 17, 33, 64):
        with torch.no_grad():
            logits = model(torch.zeros(2, 3, size, size))
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()


@pytest.mark.parametrize("name", models.NAMES)
def test_16_pixels_train(name):
    model = models.create(name, 3)
    model(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="unknown model 'resnet21'; known: resnet8, "):
        models.create("resnet21", 10)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_checkpoint_loads_bare_or_wrapped(tmp_path, wrapped):
    model, other = models.create("resnet8", 10), models.create("resnet8", 10)
    state = model.state_dict()
    torch.save({"model": state} if wrapped else state, tmp_path / "checkpoint")
    models.load_checkpoint(other, tmp_path / "checkpoint")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in state.items())
    assert models.output_classes(models.read_checkpoint(tmp_path / "checkpoint")) == 10


def test_another_models_checkpoint_is_refused_by_name(tmp_path):
    torch.save(models.create("resnet14", 10).state_dict(), tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"another model's checkpoint.*layer1\.1"):
        models.load_checkpoint(models.create("resnet8", 10), tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"another model's checkpoint: 2 entries differ, among them fc\.bias"):
        models.load_checkpoint(models.create("resnet14", 9), tmp_path / "checkpoint")


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"model": Touch(tmp_path / "created")}, tmp_path / "zip")
    (tmp_path / "bare").write_bytes(pickle.dumps(Touch(tmp_path / "created")))
    for name in ("zip", "bare"):
        with pytest.raises(ValueError, match=f"{name} is not a checkpoint of weights"):
            models.read_checkpoint(tmp_path / name)
    assert not (tmp_path / "created").exists()


def test_truncated_empty_and_missing_checkpoints_are_named(tmp_path):
    buffer = io.BytesIO()
    torch.save(models.create("resnet8", 10).state_dict(), buffer)
    (tmp_path / "truncated").write_bytes(buffer.getvalue()[:-1000])
    (tmp_path / "empty").write_bytes(b"")
    torch.save({"model": 3}, tmp_path / "number")
    for name in ("truncated", "empty", "number"):
        with pytest.raises(ValueError, match=name):
            models.read_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        models.read_checkpoint(tmp_path / "missing")
