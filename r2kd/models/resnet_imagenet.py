"""ResNet18 and ResNet50 for small images: ImageNet's four stages (He et al., CVPR 2016) behind one 3x3 convolution."""

import torch
from torch import Tensor, nn

from .initialisation import kaiming_


class Block(nn.Module):
    """Residual block: `kernels` (3, 3) is the basic block, (1, 3, 1) the bottleneck, whose last layer is 4 times wider."""

    def __init__(self, in_channels: int, channels: int, stride: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.depth = len(kernels)
        out_channels = channels * expansion(kernels)
        widths = [in_channels, *[channels] * (self.depth - 1), out_channels]
        strided = kernels.index(3)
        for i, kernel in enumerate(kernels):
            convolution = nn.Conv2d(
                widths[i], widths[i + 1], kernel, stride if i == strided else 1, kernel // 2, bias=False
            )
            self.add_module(f"conv{i + 1}", convolution)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        out = features
        for i in range(1, self.depth + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            if i < self.depth:
                out = torch.relu(out)
        return torch.relu(out + self.shortcut(features))


class ImageNetResNet(nn.Module):
    """images (B, 3, H, W), H and W >= 16 -> logits (B, num_classes)."""

    def __init__(self, blocks: tuple[int, int, int, int], kernels: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels_in = 64
        for stage, count in enumerate(blocks):
            channels = 64 * 2**stage
            layers = []
            for i in range(count):
                layers.append(Block(channels_in, channels, 2 if i == 0 and stage > 0 else 1, kernels))
                channels_in = channels * expansion(kernels)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(channels_in, num_classes)
        kaiming_(self)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.bn1(self.conv1(images)))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return self.linear(torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1))


def expansion(kernels: tuple[int, ...]) -> int:
    return 1 if len(kernels) == 2 else 4


MODELS = {
    "ResNet18": (ImageNetResNet, {"blocks": (2, 2, 2, 2), "kernels": (3, 3)}),
    "ResNet50": (ImageNetResNet, {"blocks": (3, 4, 6, 3), "kernels": (1, 3, 1)}),
}
