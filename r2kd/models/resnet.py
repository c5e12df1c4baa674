"""CIFAR ResNets (He et al., CVPR 2016, section 4.2): three stages, depth = 6n + 2; `x4` are four times as wide."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from .initialisation import kaiming_


class ResNet(nn.Module):
    """images (B, 3, H, W), H and W >= 16 -> logits (B, num_classes)."""

    def __init__(self, depth: int, num_classes: int, widths: tuple[int, int, int, int] = (16, 16, 32, 64)) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        kaiming_(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or in_channels != channels:
        downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    first = BasicBlock(in_channels, channels, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))


WIDE = (32, 64, 128, 256)
MODELS = {f"resnet{depth}": (ResNet, {"depth": depth}) for depth in (8, 14, 20, 32, 44, 56, 110)}
MODELS |= {f"resnet{depth}x4": (ResNet, {"depth": depth, "widths": WIDE}) for depth in (8, 32)}
