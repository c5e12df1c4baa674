"""VGG (Simonyan & Zisserman, ICLR 2015) with batch normalisation and one Linear layer, in five blocks."""

import torch
import torch.fx
from torch import Tensor, nn

from .initialisation import kaiming_

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """images (B, 3, H, W), H and W >= 16 -> logits (B, num_classes).

    Three poolings below 64 pixels, four from 64 pixels on, then global pooling: as released.
    """

    def __init__(self, convolutions: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        in_channels = 3
        for i, (count, channels) in enumerate(zip(convolutions, WIDTHS, strict=True)):
            self.add_module(f"block{i}", _block(in_channels, channels, count))
            in_channels = channels
        self.classifier = nn.Linear(512, num_classes)
        kaiming_(self, linear_std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for block in (self.block0, self.block1, self.block2):
            features = nn.functional.max_pool2d(torch.relu(block(features)), 2)
        features = _fourth_pooling(torch.relu(self.block3(features)))
        features = torch.relu(self.block4(features))
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1))


@torch.fx.wrap  # one node of the traced graph: it depends on the size of its input
def _fourth_pooling(features: Tensor) -> Tensor:
    """Of images from 64 pixels on, whose features are at least 8 high here."""
    return nn.functional.max_pool2d(features, 2) if features.shape[-2] >= 8 else features


def _block(in_channels: int, channels: int, count: int) -> nn.Sequential:
    """`count` times convolution, normalisation, ReLU; the last ReLU is the caller's."""
    layers: list[nn.Module] = []
    for i in range(count):
        layers += [
            nn.Conv2d(channels if i else in_channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers[:-1])


MODELS = {
    "vgg8": (VGG, {"convolutions": (1, 1, 1, 1, 1)}),
    "vgg11": (VGG, {"convolutions": (1, 1, 2, 2, 2)}),
    "vgg13": (VGG, {"convolutions": (2, 2, 2, 2, 2)}),
    "vgg16": (VGG, {"convolutions": (2, 2, 3, 3, 3)}),
    "vgg19": (VGG, {"convolutions": (2, 2, 4, 4, 4)}),
}
