"""The models by name: the field's, a user's own under the decorator `model`, and torchvision's as "torchvision:resnet18"."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from torch import nn

from ..entries import Entry, Registry
from . import mobilenet, resnet, resnet_imagenet, shufflenet, vgg, wrn, zoo

TORCHVISION = "torchvision:"


class Models(Registry):
    """Lists the field's and the user's; those of torchvision are entries as well, made when they are asked for."""

    def __getitem__(self, name: str) -> Entry:
        """Raises ValueError for an unknown name."""
        return _torchvision(name) if name.startswith(TORCHVISION) else super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        if isinstance(name, str) and name.startswith(TORCHVISION):
            return name.removeprefix(TORCHVISION) in zoo.NAMES
        return super().__contains__(name)

    def make(
        self, function: Callable, label: str | None = None, cite: str = "", name: str | None = None, **facts
    ) -> Entry:
        """As any registry; a `num_classes` with a default is no option, nor is one among **others: the data set says it.

        Raises ValueError for what takes no num_classes.
        """
        if isinstance(function, nn.Module):
            raise ValueError(
                f"a model is a class or a function of num_classes, not a {type(function).__name__} already built"
            )
        made = super().make(function, label, cite, name, **facts)
        try:
            inspect.signature(function).bind_partial(num_classes=0)
        except TypeError:
            raise ValueError(f"the model {made.name!r} must take num_classes") from None
        options = {option: known for option, known in made.options.items() if option != "num_classes"}
        return replace(made, asks=("num_classes",), options=options)


MODELS = Models("model", gives=("num_classes",), facts={"learning_rate": 0.05})
model = MODELS.entry


@cache
def _torchvision(name: str) -> Entry:
    bare = name.removeprefix(TORCHVISION)
    return MODELS.make(zoo.builder(bare), f"torchvision {bare}", name=name)


def _add(table: dict[str, tuple[type[nn.Module], dict]], cite: str, **facts) -> None:
    for name, (family, arguments) in table.items():
        MODELS.add(_builder(family, arguments), name, cite, name, **facts)


def _builder(family: type[nn.Module], arguments: dict) -> Callable[[int], nn.Module]:
    def build(num_classes: int) -> nn.Module:
        return family(num_classes=num_classes, **arguments)

    return build


_add(resnet.MODELS, "He et al., CVPR 2016")
_add(resnet_imagenet.MODELS, "He et al., CVPR 2016")
_add(wrn.MODELS, "Zagoruyko & Komodakis, BMVC 2016")
_add(vgg.MODELS, "Simonyan & Zisserman, ICLR 2015")
_add(mobilenet.MODELS, "Sandler et al., CVPR 2018", learning_rate=0.01)
_add(shufflenet.V1, "Zhang et al., CVPR 2018", learning_rate=0.01)
_add(shufflenet.V2, "Ma et al., ECCV 2018", learning_rate=0.01)
