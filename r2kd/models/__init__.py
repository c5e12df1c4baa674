"""The networks: `create(model, num_classes)` gives `logits = network(images)`; MODELS lists the field's, for small images.

The names and shapes of the state_dict entries are those of the checkpoints that the field publishes.
"""

import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..entries import Choice
from ..files import first_line, sha256
from .registry import MODELS, TORCHVISION

NAMES = tuple(MODELS)
PARALLEL = "module."  # what DataParallel puts before every name
model = MODELS.entry


def create(model: str | Choice | Callable[..., nn.Module], num_classes: int) -> nn.Module:
    """A new network, images (B, 3, H, W) -> logits (B, num_classes); of those in NAMES, H and W >= 16.

    `model`: a name, with options or without, such as "torchvision:resnet18:weights=DEFAULT"; a choice; or a function or
    class of num_classes. Raises ValueError for what is none of these, OSError for weights that cannot be downloaded.
    """
    choice = MODELS.choose(model)
    network = choice(num_classes=num_classes)
    if not isinstance(network, nn.Module):
        raise ValueError(f"the model {choice.name!r} must make a torch.nn.Module, not {type(network).__name__}")
    return network


def check_answers(model: nn.Module, name: str, images: Tensor, num_classes: int) -> None:
    """Raises ValueError unless `model`, called `name`, answers a batch (B, 3, H, W) with logits (B, num_classes).

    Asked in eval mode, without gradient; mode, weights, buffers and the global generators stay as they are.
    """
    modes = [(module, module.training) for module in model.modules()]
    shown = f"the model {name} ({type(model).__name__})"
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            answer = _answer(model.eval(), images)
    except Exception as error:
        height, width = images.shape[-2:]
        raise ValueError(f"{shown} fails on images of {height}x{width} pixels: {first_line(error)}") from error
    finally:
        for module, training in modes:
            module.training = training
    expected = (len(images), num_classes)
    if not isinstance(answer, Tensor) or answer.shape != expected:
        said = f"a tensor {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise ValueError(f"{shown} answers {said}, not a tensor {expected}")


def draws(model: nn.Module, images: Tensor) -> bool:
    """Whether `model`, training on a batch (B, 3, H, W) on the CPU, draws from torch's generator, as dropout does.

    Weights, buffers and the generator stay as they are; it is left in training mode.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        with suppress(Exception):  # its first step will say it
            _answer(model.train(), images)
        return not torch.equal(before, torch.get_rng_state())


def _answer(model: nn.Module, images: Tensor) -> Any:
    """What the model answers in the mode that it is in; its weights and buffers, and the images, stay as they are."""
    state = {key: value.clone() for key, value in (*model.named_parameters(), *model.named_buffers())}
    return torch.func.functional_call(model, state, (images.clone(),))


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state_dict stored at `path`: bare, or under "model" or "state_dict", without the "module." of DataParallel.

    Tensors only, in memory and dense; no pickled code is run.

    Raises FileNotFoundError, or ValueError where the file is not such a checkpoint.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a checkpoint, but {'a folder' if Path(path).is_dir() else 'no regular file'}")
    try:
        if zipfile.is_zipfile(path):  # as torch saves since 1.6, with a CRC-32 of each part that it does not look at
            with zipfile.ZipFile(path) as parts:
                if damaged := parts.testzip():
                    raise ValueError(f"{damaged} in it is damaged")
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged files torch raises all kinds
        raise ValueError(
            f"{path} is not a checkpoint of weights (truncated, or it holds other objects): {_why(error)}"
        ) from None
    inner = (stored.get("model"), stored.get("state_dict")) if isinstance(stored, dict) else ()
    state = next((found for found in (*inner, stored) if _is_state(found)), None)
    if state is None:
        raise ValueError(f"{path} holds no state_dict, neither bare nor under 'model' or 'state_dict'")
    if odd := [name for name, value in state.items() if not _plain(value)]:
        raise ValueError(
            f"{path} is not a checkpoint of weights: {odd[0]!r} is sparse, quantised, complex or without values"
        )
    prefix = PARALLEL if _parallel(state) else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}  # without what else a state_dict carries


def _why(error: Exception) -> str:
    """In a line. Where torch refuses what is no tensor, it advises to switch its safety off, which is not passed on."""
    if "weights_only" not in str(error):
        return first_line(error)
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it refers to {found[1]}, which is not run" if found else "it holds what is not run"


def _plain(value: Tensor) -> bool:
    dense = value.layout == torch.strided and not value.is_quantized and not value.is_complex()
    return dense and value.device.type == "cpu"


def _is_state(found: Any) -> bool:
    entries = found.items() if isinstance(found, dict) else ()
    return bool(entries) and all(
        isinstance(name, str) and name.isprintable() and isinstance(value, Tensor) for name, value in entries
    )


def _parallel(state: dict[str, Tensor]) -> bool:
    return bool(state) and all(name.startswith(PARALLEL) for name in state)


def checkpoint_digest(path: str | Path) -> str:
    """SHA-256 of the file. Raises FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    return sha256(path)


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The first entry of a state_dict that holds a NaN or an infinite number, running statistics too; None where none does."""
    whole = [value.isfinite().all() for value in state.values()]
    if not whole or torch.stack(whole).all():  # a GPU is asked once
        return None
    return next(name for name, fine in zip(state, whole, strict=True) if not fine)


def output_classes(state: dict[str, Tensor]) -> int:
    """The number of classes of a checkpoint: the length of its last bias, which is the classifier's.

    Raises ValueError where the last entry is a single number.
    """
    name, last = list(state.items())[-1]
    if not last.dim():
        raise ValueError(f"no classifier comes last in the checkpoint: {name!r} is a single number")
    return len(last)


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill `model` from a published checkpoint and return it.

    Raises FileNotFoundError, or ValueError where the file is no checkpoint or another model's, of which the first entries
    that differ are named, or holds values that are not finite.
    """
    state = read_checkpoint(path)
    inner = model.module if _parallel(model.state_dict()) else model
    own = inner.state_dict()
    wrong = [name for name in own if name not in state]
    wrong += [name for name in state if name not in own or own[name].shape != state[name].shape]
    if wrong:
        names = ", ".join(sorted(wrong)[:3])
        raise ValueError(f"{path} is another model's checkpoint: {len(wrong)} entries differ, among them {names}")
    _check_finite({name: value.to(own[name].dtype) for name, value in state.items()}, path)
    inner.load_state_dict(state)
    return model


def _check_finite(state: dict[str, Tensor], path: str | Path) -> None:
    values = sum(value.numel() for value in state.values())
    for what, found in (("NaN", torch.isnan), ("infinite values", torch.isinf)):
        if count := sum(int(found(value).sum()) for value in state.values()):
            raise ValueError(f"{path} holds {what}: {count:,} of {values:,} values")


def from_checkpoint(model: str | Choice | Callable[..., nn.Module], num_classes: int, path: str | Path) -> nn.Module:
    """What `create` makes, in eval mode with the weights of a checkpoint; the global generator stays where it is.

    Raises as `create` and `load_checkpoint` do.
    """
    choice = MODELS.choose(model)
    if choice.name.startswith(TORCHVISION):
        choice = Choice(choice.entry)  # its one option is weights to download, which would be thrown away
    with torch.random.fork_rng(devices=[]):  # the weights that it is born with are drawn and thrown away
        network = create(choice, num_classes)
    return load_checkpoint(network, path).eval()
