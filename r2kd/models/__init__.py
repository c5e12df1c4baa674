"""The networks: `create(model, num_classes)` gives `logits = network(images)`; MODELS lists the field's, for small images.

The names and shapes of the state_dict entries are those of the checkpoints that the field publishes.
"""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..entries import Choice
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
            state = {key: value.clone() for key, value in (*model.named_parameters(), *model.named_buffers())}
            answer = torch.func.functional_call(model.eval(), state, (images.clone(),))
    except Exception as error:
        height, width = images.shape[-2:]
        raise ValueError(f"{shown} fails on images of {height}x{width} pixels: {_first_line(error)}") from error
    finally:
        for module, training in modes:
            module.training = training
    expected = (len(images), num_classes)
    if not isinstance(answer, Tensor) or answer.shape != expected:
        said = f"a tensor {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise ValueError(f"{shown} answers {said}, not a tensor {expected}")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state_dict stored at `path`: bare, or under "model" or "state_dict", without the "module." of DataParallel.

    Tensors only, no pickled code is run.

    Raises FileNotFoundError, or ValueError where the file is not such a checkpoint.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"no checkpoint at {path}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of weights (truncated, or it holds other objects): {_first_line(error)}"
        ) from None
    inner = (stored.get("model"), stored.get("state_dict")) if isinstance(stored, dict) else ()
    state = next((found for found in (*inner, stored) if _is_state(found)), None)
    if state is None:
        raise ValueError(f"{path} holds no state_dict, neither bare nor under 'model' or 'state_dict'")
    if _parallel(state):
        consume_prefix_in_state_dict_if_present(state, PARALLEL)
    return state


def _is_state(found: Any) -> bool:
    entries = found.items() if isinstance(found, dict) else ()
    return bool(entries) and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in entries)


def _parallel(state: dict[str, Tensor]) -> bool:
    return bool(state) and all(name.startswith(PARALLEL) for name in state)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def checkpoint_digest(path: str | Path) -> str:
    """SHA-256 of the file. Raises FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def output_classes(state: dict[str, Tensor]) -> int:
    """The number of classes of a checkpoint: the length of its last bias, which is the classifier's."""
    return len(list(state.values())[-1])


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill `model` from a published checkpoint and return it.

    Raises FileNotFoundError, or ValueError where the file is no checkpoint or another model's: the first entries that
    differ are named.
    """
    state = read_checkpoint(path)
    inner = model.module if _parallel(model.state_dict()) else model
    own = inner.state_dict()
    wrong = [name for name in own if name not in state]
    wrong += [name for name in state if name not in own or own[name].shape != state[name].shape]
    if wrong:
        names = ", ".join(sorted(wrong)[:3])
        raise ValueError(f"{path} is another model's checkpoint: {len(wrong)} entries differ, among them {names}")
    inner.load_state_dict(state)
    return model


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
