"""torchvision's classification networks, as they are: made for larger images than the field's, with weights to download."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Literal

import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

TUPLES = ["googlenet", "inception_v3"]  # answer a tuple in training mode
NAMES = tuple(list_models(module=torchvision.models, exclude=TUPLES))


def builder(name: str) -> Callable[..., nn.Module]:
    """The function that builds torchvision's model `name`. Raises ValueError for a name that is not in NAMES."""
    if name not in NAMES:
        near = ", ".join(get_close_matches(name.lower(), NAMES, n=6) or NAMES)
        raise ValueError(f"unknown model 'torchvision:{name}'; torchvision's classifiers with one answer: {near}")
    # the features' classifier is not a number
    known = tuple(member for member in get_model_weights(name).__members__ if member != "IMAGENET1K_FEATURES")

    def build(num_classes: int, *, weights: Literal[known] = None) -> nn.Module:  # noqa: RUF013
        network = get_model(name, weights=None, num_classes=num_classes)
        if weights is not None:
            _load(network, name, weights)
        return network

    return build


def _load(network: nn.Module, name: str, weights: str) -> None:
    """Fill all but the classifier, whose classes are others. Raises OSError where the weights cannot be downloaded."""
    try:
        state = get_model(name, weights=weights).state_dict()  # torchvision renames what older files call otherwise
    except (OSError, RuntimeError) as error:
        raise OSError(f"the weights {weights} of torchvision's {name} could not be had: {error}") from error
    own = network.state_dict()
    for entry in [entry for entry in state if state[entry].shape != own[entry].shape]:
        if state[entry].shape[1:] != own[entry].shape[1:]:
            raise ValueError(f"the weights {weights} of torchvision's {name} are those of another image size")
        del state[entry]
    network.load_state_dict(state, strict=False)
