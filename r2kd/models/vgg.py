"""VGG (Simonyan & Zisserman, ICLR 2015) with batch normalisation and one Linear layer, in five blocks."""

import torch
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
        poolings = 4 if images.shape[-2] >= 64 else 3
        features = images
        for i, block in enumerate((self.block0, self.block1, self.block2, self.block3, self.block4)):
            features = torch.relu(block(features))
            if i < poolings:
                features = nn.functional.max_pool2d(features, 2)
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1))


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
