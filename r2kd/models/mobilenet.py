"""MobileNetV2 (Sandler et al., CVPR 2018) at half width for small images: ReLU for ReLU6, one stride fewer."""

import torch
from torch import Tensor, nn

from .initialisation import kaiming_

# expansion, output channels at full width, blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.use_residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *_convolution(in_channels, hidden, 1),
            *_convolution(hidden, hidden, 3, stride, groups=hidden),
            *_convolution(hidden, out_channels, 1)[:2],
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.conv(features) if self.use_residual else self.conv(features)


class MobileNetV2(nn.Module):
    """images (B, 3, H, W), H and W >= 16 -> logits (B, num_classes)."""

    def __init__(self, num_classes: int, width: float = 0.5) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Sequential(*_convolution(3, channels, 3, stride=2))
        stages = []
        for expansion, out_channels, count, stride in STAGES:
            blocks = []
            for i in range(count):
                blocks.append(InvertedResidual(channels, int(out_channels * width), 1 if i else stride, expansion))
                channels = int(out_channels * width)
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(*_convolution(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        kaiming_(self, linear_std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv2(self.blocks(self.conv1(images)))
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1))


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


MODELS = {"MobileNetV2": (MobileNetV2, {})}
