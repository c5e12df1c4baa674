import io
import json
import os
import pickle
import random
import tarfile

from r2kd import models
from r2kd.digest import digest

import numpy as np
import pytest
import torch
import torchvision
from conftest import SHARED, fill
from torch import nn
from torchvision.models import WeightsEnum

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


def test_each_model_is_an_entry_with_its_rate_its_source_and_a_digest_of_its_own():
    entries = models.MODELS.values()
    assert [entry.label for entry in entries] == list(models.NAMES) == [entry.name for entry in entries]
    assert {entry.name for entry in entries if entry.learning_rate != 0.05} == {"MobileNetV2", "ShuffleV1", "ShuffleV2"}
    assert {entry.learning_rate for entry in entries} == {0.05, 0.01}
    assert all(entry.cite and not entry.options and entry.asks == ("num_classes",) for entry in entries)
    assert len({digest(entry.function) for entry in entries}) == len(models.NAMES)


@pytest.fixture
def own_list(monkeypatch):
    """What is entered here is gone afterwards."""
    monkeypatch.setattr(models.MODELS, "_entries", dict(models.MODELS._entries))


class Tiny(nn.Module):
    def __init__(self, num_classes: int = 1000, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.fc(self.layers(images))


def test_a_users_model_is_a_decorated_function_with_options(own_list):
    @models.model("tiny net")
    def tiny(num_classes, *, width=8):
        return Tiny(num_classes, width)

    assert tuple(models.create("tiny:width=16", 10).fc.weight.shape) == (10, 16)
    assert tuple(models.create("tiny", 7).fc.weight.shape) == (7, 8)
    assert tiny.label == "tiny net" and tiny.learning_rate == 0.05
    with pytest.raises(ValueError, match="already that of r2kd"):
        models.model("mine", name="resnet8")(lambda num_classes: Tiny(num_classes))


@pytest.mark.parametrize(
    "given",
    [Tiny, lambda num_classes: Tiny(num_classes), lambda **settings: Tiny(**settings), models.MODELS.choose(Tiny)],
)
def test_a_class_a_lambda_and_a_choice_are_models_whatever_number_of_classes_they_would_have(given):
    assert models.create(given, 7).fc.out_features == 7
    assert "num_classes" not in models.MODELS.choose(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (nn.Linear(2, 2), "not a Linear already built"),
        (lambda: Tiny(), "must take num_classes"),
        (lambda classes: Tiny(classes), "asks for 'classes'"),
        (lambda num_classes: 3, "must make a torch.nn.Module, not int"),
    ],
)
def test_what_is_no_model_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        models.create(given, 7)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_torchvisions_models_have_the_classes_that_are_asked_for(name):
    entry = models.MODELS[f"torchvision:{name}"]
    assert entry is models.MODELS[f"torchvision:{name}"] and f"torchvision:{name}" in models.MODELS
    assert (entry.label, entry.learning_rate) == (f"torchvision {name}", 0.05) and entry.name not in models.NAMES
    model = models.create(f"torchvision:{name}", 7)
    assert isinstance(model, type(torchvision.models.get_model(name)))
    models.check_answers(model, name, torch.zeros(2, 3, 64, 64), 7)


@pytest.mark.parametrize(
    "name", ["resnet81", "ResNet18", "googlenet", "inception_v3", "fcn_resnet50", "quantized_resnet18"]
)
def test_what_torchvision_lacks_or_answers_otherwise_is_refused(name):
    assert f"torchvision:{name}" not in models.MODELS
    with pytest.raises(ValueError, match=f"unknown model 'torchvision:{name}'; .*: [a-z]") as refused:
        models.create(f"torchvision:{name}", 10)
    assert "\n" not in str(refused.value)


def test_unknown_weights_are_refused_before_anything_is_built():
    with pytest.raises(ValueError, match="weights is IMAGENET1K_V1 or DEFAULT, not 'IMAGENET1K_V3'"):
        models.MODELS.choose("torchvision:resnet18:weights=IMAGENET1K_V3")


@pytest.fixture
def downloads(monkeypatch):
    """(what a download gives, what was asked for): in place of torchvision's addresses."""
    states, asked = {}, []

    def get_state_dict(weights, *arguments, **options):
        asked.append((type(weights).__name__, weights.name, options))
        return states[type(weights).__name__]

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    return states, asked


def test_torchvisions_weights_are_loaded_all_but_the_head(downloads):
    states, asked = downloads
    state = states["ResNet18_Weights"] = fill(torchvision.models.resnet18()).state_dict()
    model = models.create("torchvision:resnet18:weights=DEFAULT", 10)
    assert asked == [("ResNet18_Weights", "IMAGENET1K_V1", {"progress": True, "check_hash": True})]
    differ = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert differ == {"fc.weight", "fc.bias"} and model.fc.out_features == 10
    assert torch.equal(models.create("torchvision:resnet18:weights=DEFAULT", 1000).fc.bias, state["fc.bias"])


def test_weights_of_another_image_size_or_out_of_reach_are_refused(downloads, monkeypatch):
    states, _ = downloads
    states["ViT_B_16_Weights"] = torchvision.models.vit_b_16(image_size=384).state_dict()
    with pytest.raises(ValueError, match="SWAG_E2E_V1 of torchvision's vit_b_16 are those of another image size"):
        models.create("torchvision:vit_b_16:weights=IMAGENET1K_SWAG_E2E_V1", 10)

    def unreachable(*arguments, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", unreachable)
    with pytest.raises(OSError, match="weights DEFAULT of torchvision's resnet18 could not be had: no network"):
        models.create("torchvision:resnet18:weights=DEFAULT", 10)


def test_a_checkpoint_of_a_torchvision_model_needs_no_download(downloads, tmp_path):
    model = models.create("torchvision:squeezenet1_1", 10)
    torch.save(model.state_dict(), tmp_path / "checkpoint")
    loaded = models.from_checkpoint("torchvision:squeezenet1_1:weights=DEFAULT", 10, tmp_path / "checkpoint")
    assert torch.equal(loaded.classifier[1].bias, model.classifier[1].bias) and not downloads[1]


def test_the_answers_are_checked_and_the_model_and_the_generator_stay_as_they_were():
    class Restless(Tiny):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.norm = nn.BatchNorm2d(3)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, images):
            self.seen += 1
            return super().forward(nn.functional.dropout(self.norm(images.relu_())))

    model, images = Restless(7), torch.randn(2, 3, 16, 16)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before, drawn = images.clone(), torch.get_rng_state()
    model.norm.eval()
    assert models.check_answers(model, "restless", images, 7) is None
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn) and torch.equal(images, before)
    assert model.training and not model.norm.training and model.fc.weight.requires_grad


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda net, images: (images, images), r"the model mine \(Answers\) answers a tuple, not a tensor \(2, 7\)"),
        (lambda net, images: images[:, :, 0, 0], r"\(Answers\) answers a tensor \(2, 3\), not a tensor \(2, 7\)"),
        (lambda net, images: images.view(5), r"\(Answers\) fails on images of 16x20 pixels: shape '\[5\]' is invalid"),
        (lambda net, images: {}[3], r"\(Answers\) fails on images of 16x20 pixels: 3"),
        (lambda net, images: net.no_such_layer(images), "fails on images of 16x20 pixels: .*no_such_layer"),
    ],
)
def test_other_answers_and_failures_are_said_in_one_line(forward, said):
    class Answers(nn.Module):
        def forward(self, images):
            return forward(self, images)

    model = Answers()
    with pytest.raises(ValueError, match=said) as refused:
        models.check_answers(model, "mine", torch.zeros(2, 3, 16, 20), 7)
    assert "\n" not in str(refused.value) and model.training


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_a_checkpoint_loads_bare_or_wrapped(tmp_path, key, parallel):
    model, other = models.create("resnet8", 10), models.create("resnet8", 10)
    state = nn.DataParallel(model).state_dict() if parallel else model.state_dict()
    torch.save({key: state, "epoch": 3, "optimizer": {"lr": 0.1}} if key else state, tmp_path / "checkpoint")
    models.load_checkpoint(other, tmp_path / "checkpoint")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert models.output_classes(models.read_checkpoint(tmp_path / "checkpoint")) == 10
    loaded = models.from_checkpoint(models.MODELS.choose("resnet8"), 10, tmp_path / "checkpoint")
    assert torch.equal(loaded.fc.bias, model.fc.bias) and not loaded.training


def test_a_model_whose_one_layer_is_called_module_loads_its_own_checkpoint(tmp_path):
    model, other = nn.DataParallel(Tiny(7)), nn.DataParallel(Tiny(7))
    torch.save(model.state_dict(), tmp_path / "checkpoint")
    models.load_checkpoint(other, tmp_path / "checkpoint")
    assert torch.equal(other.module.fc.bias, model.module.fc.bias)


def test_a_file_of_other_things_is_no_checkpoint(tmp_path):
    torch.save({"weights": models.create("resnet8", 10).state_dict(), "epoch": 3}, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="checkpoint holds no state_dict, neither bare nor under 'model'") as refused:
        models.read_checkpoint(tmp_path / "checkpoint")
    assert "\n" not in str(refused.value)


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


def saved(path, state):
    torch.save(state, path)
    return path


def whole():
    return models.create("resnet8", 10).state_dict()


ODD = {
    "complex": lambda path: saved(path, whole() | {"fc.weight": whole()["fc.weight"].cfloat()}),
    "a name of two lines": lambda path: saved(path, whole() | {"a\nb": torch.zeros(3)}),
    "sparse": lambda path: saved(path, whole() | {"fc.weight": whole()["fc.weight"].to_sparse()}),
    "meta": lambda path: saved(path, whole() | {"fc.weight": whole()["fc.weight"].to("meta")}),
    "quantized": lambda path: saved(
        path, whole() | {"fc.weight": torch.quantize_per_tensor(whole()["fc.weight"], 0.1, 0, torch.qint8)}
    ),
    "0-d": lambda path: saved(path, whole() | {"fc.weight": torch.tensor(3.0)}),
    "integer keys": lambda path: saved(path, {"model": dict(enumerate(whole().values()))}),
    "5,000 bytes": lambda path: path.write_bytes(saved(path, whole()).read_bytes()[:5000]),
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a script": lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path),
    "text": lambda path: path.write_text("<html>not found</html>"),
    "a list": lambda path: saved(path, [torch.zeros(3)]),
    "old tar": lambda path: tarfile.open(path, "w").close(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_checkpoint_is_refused_in_a_line_that_names_it(odd, tmp_path):
    ODD[odd](tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"^[^\n]*/checkpoint [^\n]*$") as refused:
        models.load_checkpoint(models.create("resnet8", 10), tmp_path / "checkpoint")
    assert "weights_only" not in str(refused.value)


def test_a_checkpoint_that_ends_with_a_single_number_has_no_classifier(tmp_path):
    saved(tmp_path / "checkpoint", whole() | {"steps": torch.tensor(3)})
    with pytest.raises(ValueError, match=r"^no classifier comes last in the checkpoint: 'steps' is a single number$"):
        models.output_classes(models.read_checkpoint(tmp_path / "checkpoint"))


def test_what_a_state_dict_carries_beside_its_entries_is_not_read(tmp_path):
    state = nn.DataParallel(models.create("resnet8", 10)).state_dict()
    state._metadata = {3: "hostile"}
    loaded = models.from_checkpoint("resnet8", 10, saved(tmp_path / "checkpoint", state))
    assert torch.equal(loaded.fc.bias, state["module.fc.bias"])


def test_a_refused_pickle_does_not_pass_on_the_advice_to_switch_the_safety_off(tmp_path):
    torch.save({"model": Touch(tmp_path / "created")}, tmp_path / "zip")
    (tmp_path / "bare").write_bytes(pickle.dumps(Touch(tmp_path / "created")))
    with tarfile.open(tmp_path / "tar", "w") as tar:
        for name in ("pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    for name in ("zip", "bare", "tar"):
        with pytest.raises(ValueError, match=f"{name} is not a checkpoint of weights") as refused:
            models.read_checkpoint(tmp_path / name)
        said = str(refused.value)
        assert not [word for word in ("weights_only", "trust", "option", "\n", "\033") if word in said]
        assert name != "zip" or "it refers to io.open, which is not run" in said


def test_a_checkpoint_with_a_value_that_single_precision_cannot_hold_is_refused(tmp_path):
    state = whole() | {"fc.bias": torch.full((10,), 1e300, dtype=torch.float64)}
    with pytest.raises(ValueError, match="holds infinite values: 10 of "):
        models.load_checkpoint(models.create("resnet8", 10), saved(tmp_path / "checkpoint", state))


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN"), (float("-inf"), "infinite values")])
@pytest.mark.parametrize("entry", ["fc.weight", "bn1.running_var"])
def test_a_checkpoint_with_values_that_are_not_finite_is_refused_by_name(entry, value, what, tmp_path):
    state = whole()
    state[entry].view(-1)[:3] = value
    count = sum(found.numel() for found in state.values())
    with pytest.raises(ValueError, match=rf"/checkpoint holds {what}: 3 of {count:,} values$"):
        models.load_checkpoint(models.create("resnet8", 10), saved(tmp_path / "checkpoint", state))


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_checkpoint_is_refused_in_a_line_or_has_the_same_values(tmp_path):
    path, model, draws = tmp_path / "checkpoint", models.create("resnet8", 10), random.Random(0)
    state = model.state_dict()
    content = saved(tmp_path / "whole", state).read_bytes()
    for turn in range(120):
        damaged = bytearray(content)
        for _ in range(1 + turn % 3):  # in the values, in the pickle before them, or in the lists at the end
            start, end = ((0, len(content)), (0, 12_000), (len(content) - 9000, len(content)))[turn % 3]
            damaged[draws.randrange(start, end)] ^= 1 << draws.randrange(8)
        path.write_bytes(bytes(damaged)[: draws.randrange(len(content)) if turn % 4 == 0 else None])
        try:
            loaded = models.read_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert all(torch.equal(loaded[name], value) for name, value in state.items()), turn
