"""ShuffleNet V1 (Zhang et al., CVPR 2018; 3 groups) and V2 (Ma et al., ECCV 2018; width 1) for small images."""

import torch
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import channel_shuffle


def _pointwise(in_channels: int, out_channels: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)


class V1Unit(nn.Module):
    """`out_channels` counts what the unit returns; with stride 2 part of it is the pooled input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        own = out_channels - in_channels if stride == 2 else out_channels
        middle = own // 4
        self.groups = 1 if in_channels == 24 else groups  # too few channels behind the stem to divide
        self.conv1, self.bn1 = _pointwise(in_channels, middle, self.groups), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = _depthwise(middle, stride), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = _pointwise(middle, own, groups), nn.BatchNorm2d(own)

    def forward(self, features: Tensor) -> Tensor:
        out = channel_shuffle(torch.relu(self.bn1(self.conv1(features))), self.groups)
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            shortcut = nn.functional.avg_pool2d(features, 3, 2, 1)
            return torch.relu(torch.cat((out, shortcut), 1))
        return torch.relu(out + features)


class V2DownUnit(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1, self.bn1 = _depthwise(in_channels, 2), nn.BatchNorm2d(in_channels)
        self.conv2, self.bn2 = _pointwise(in_channels, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _pointwise(in_channels, half), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = _depthwise(half, 2), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = _pointwise(half, half), nn.BatchNorm2d(half)

    def forward(self, features: Tensor) -> Tensor:
        left = torch.relu(self.bn2(self.conv2(self.bn1(self.conv1(features)))))
        right = self.bn4(self.conv4(torch.relu(self.bn3(self.conv3(features)))))
        right = torch.relu(self.bn5(self.conv5(right)))
        return channel_shuffle(torch.cat((left, right), 1), 2)


class V2Unit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = _pointwise(half, half), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = _depthwise(half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _pointwise(half, half), nn.BatchNorm2d(half)

    def forward(self, features: Tensor) -> Tensor:
        kept, out = features.chunk(2, dim=1)
        out = torch.relu(self.bn1(self.conv1(out)))
        out = torch.relu(self.bn3(self.conv3(self.bn2(self.conv2(out)))))
        return channel_shuffle(torch.cat((kept, out), 1), 2)


class ShuffleNet(nn.Module):
    """images (B, 3, H, W), H and W >= 16 -> logits (B, num_classes)."""

    def __init__(self, version: int, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _pointwise(3, 24), nn.BatchNorm2d(24)
        widths, counts = ((240, 480, 960), (4, 8, 4)) if version == 1 else ((116, 232, 464), (4, 8, 4))
        channels = 24
        for i, (width, count) in enumerate(zip(widths, counts, strict=True)):
            if version == 1:
                units = [V1Unit(channels, width, 2, groups=3)]
                units += [V1Unit(width, width, 1, groups=3) for _ in range(count - 1)]
            else:
                units = [V2DownUnit(channels, width), *(V2Unit(width) for _ in range(count - 1))]
            self.add_module(f"layer{i + 1}", nn.Sequential(*units))
            channels = width
        self.conv2 = None
        if version == 2:
            self.conv2, self.bn2 = _pointwise(channels, 1024), nn.BatchNorm2d(1024)
            channels = 1024
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        if self.conv2 is not None:
            features = torch.relu(self.bn2(self.conv2(features)))
        return self.linear(torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1))


V1 = {"ShuffleV1": (ShuffleNet, {"version": 1})}
V2 = {"ShuffleV2": (ShuffleNet, {"version": 2})}
