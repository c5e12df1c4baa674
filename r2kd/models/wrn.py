"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016): wrn_<depth>_<width factor>, without dropout."""

import torch
from torch import Tensor, nn

from .initialisation import kaiming_


class Block(nn.Module):
    """Pre-activation residual block; where the width changes, the shortcut starts after the first activation."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.convShortcut = None
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        activated = nn.functional.relu(self.bn1(features), inplace=True)
        out = self.conv2(nn.functional.relu(self.bn2(self.conv1(activated)), inplace=True))
        return out.add_(features if self.convShortcut is None else self.convShortcut(activated))


class Stage(nn.Module):
    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = Block(in_channels, channels, stride)
        self.layer = nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)


class WideResNet(nn.Module):
    """images (B, 3, H, W), H and W >= 16 -> logits (B, num_classes)."""

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, 16 * width, blocks, stride=1)
        self.block2 = Stage(16 * width, 32 * width, blocks, stride=2)
        self.block3 = Stage(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        kaiming_(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.block3(self.block2(self.block1(self.conv1(images))))
        features = torch.relu(self.bn1(features))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1))


MODELS = {
    f"wrn_{depth}_{width}": (WideResNet, {"depth": depth, "width": width}) for depth in (16, 40) for width in (1, 2)
}
