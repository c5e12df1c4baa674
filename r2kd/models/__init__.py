"""The field's networks for small images: `create(name, num_classes)` gives `logits = model(images)`.

The names and shapes of the state_dict entries are those of the checkpoints that the field publishes.
"""

import hashlib
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from . import mobilenet, resnet, resnet_imagenet, shufflenet, vgg, wrn

_REGISTRY = resnet.MODELS | resnet_imagenet.MODELS | wrn.MODELS | vgg.MODELS | mobilenet.MODELS | shufflenet.MODELS
NAMES = tuple(_REGISTRY)


def create(name: str, num_classes: int) -> nn.Module:
    """A new model of the registry: images (B, 3, H, W), H and W >= 16 -> logits (B, num_classes).

    Raises ValueError for a name that is not in NAMES.
    """
    if name not in _REGISTRY:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(NAMES)}")
    family, arguments = _REGISTRY[name]
    return family(num_classes=num_classes, **arguments)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state_dict stored at `path`: bare, or under the key "model". Tensors only, no pickled code is run.

    Raises FileNotFoundError, or ValueError where the file is not such a checkpoint.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"no checkpoint at {path}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} is not a checkpoint of weights (truncated, or it holds other objects): {reason}"
        ) from None
    state = stored.get("model", stored) if isinstance(stored, dict) else stored
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state_dict, neither bare nor under the key 'model'")
    return state


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
    own = model.state_dict()
    wrong = [name for name in own if name not in state]
    wrong += [name for name in state if name not in own or own[name].shape != state[name].shape]
    if wrong:
        names = ", ".join(sorted(wrong)[:3])
        raise ValueError(f"{path} is another model's checkpoint: {len(wrong)} entries differ, among them {names}")
    model.load_state_dict(state)
    return model


def from_checkpoint(name: str, num_classes: int, path: str | Path) -> nn.Module:
    """A model of the registry in eval mode with the weights of a checkpoint; the global generator stays where it is.

    Raises as `create` and `load_checkpoint` do.
    """
    with torch.random.fork_rng(devices=[]):  # the weights that it is born with are drawn and thrown away
        model = create(name, num_classes)
    return load_checkpoint(model, path).eval()
