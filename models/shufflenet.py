"""ShuffleNets for small images: grouped 1x1 convolutions, with channels shuffled so that groups hear of each other."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torchvision.models import (
    ShuffleNetV2,
    shufflenet_v2_x0_5,
    shufflenet_v2_x1_0,
    shufflenet_v2_x1_5,
    shufflenet_v2_x2_0,
)

from models.layers import conv_bn, mean_and_linear
from models.spec import Shape, model

V1_SOURCE = "Zhang et al., 'ShuffleNet', 2018; CIFAR form of the kuangliu pytorch-cifar zoo"
V2_SOURCE = "Ma et al., 'ShuffleNet V2', 2018; torchvision's, with the CIFAR stem of the kuangliu pytorch-cifar zoo"
STEM = 24
"""Channels of the stem."""


class ChannelShuffle(nn.Module):
    """Deal the channels of each group to all groups in turn: channel j of group i of g becomes channel j g + i.

    [N, C, H, W] -> the same shape; C is a multiple of g.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """The same channels in another order."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class Unit(nn.Module):
    """A bottleneck of a quarter of the channels that it computes, with a ReLU after each BatchNorm but the last.

    With stride 1 the input is added; with stride 2 the input, averaged 3x3, makes up the first of the outputs.
    [N, inputs, H, W] -> [N, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        computed = outputs - inputs if stride == 2 else outputs
        width = computed // 4
        first_groups = 1 if inputs == STEM else groups  # so few channels are not grouped
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.body = nn.Sequential(
            *conv_bn(inputs, width, 1, groups=first_groups),
            nn.ReLU(inplace=True),
            ChannelShuffle(first_groups),
            *conv_bn(width, width, 3, stride=stride, groups=width),
            nn.ReLU(inplace=True),
            *conv_bn(width, computed, 1, groups=groups),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The unit's output."""
        if self.pool is None:
            return relu(self.body(x) + x)
        return relu(torch.cat([self.body(x), self.pool(x)], dim=1))


def _shufflenet(channels: int, widths: tuple[int, int, int], groups: int, classes: int) -> nn.Module:
    """A 1x1 stem, stages of 4, 8 and 4 units, each of which begins with stride 2, a global average and a classifier."""
    layers, inputs = [*conv_bn(channels, STEM, 1), nn.ReLU(inplace=True)], STEM
    for outputs, units in zip(widths, (4, 8, 4), strict=True):
        layers.append(Unit(inputs, outputs, 2, groups))
        layers += [Unit(outputs, outputs, 1, groups) for _ in range(units - 1)]
        inputs = outputs
    return nn.Sequential(*layers, *mean_and_linear(inputs, classes))


def _with_small_stem(build: Callable[..., ShuffleNetV2], shape: Shape, classes: int) -> nn.Module:
    """Replace the stride-2 convolution and the pooling, which take 32x32 pixels down to 8x8, by one of stride 1."""
    net = build(num_classes=classes)
    net.conv1[0] = nn.Conv2d(shape[0], STEM, kernel_size=3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


@model(shape=(3, 32, 32), classes=10, parameters=887_582, source=V1_SOURCE)
def shufflenet_g2(shape: Shape, classes: int) -> nn.Module:
    """ShuffleNet with 2 groups."""
    return _shufflenet(shape[0], (200, 400, 800), 2, classes)


@model(shape=(3, 32, 32), classes=10, parameters=862_768, source=V1_SOURCE)
def shufflenet_g3(shape: Shape, classes: int) -> nn.Module:
    """ShuffleNet with 3 groups."""
    return _shufflenet(shape[0], (240, 480, 960), 3, classes)


@model(shape=(3, 32, 32), classes=10, parameters=352_042, source=V2_SOURCE)
def shufflenet_v2_x05_cifar(shape: Shape, classes: int) -> nn.Module:
    """ShuffleNet V2 of half the width."""
    return _with_small_stem(shufflenet_v2_x0_5, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=1_263_854, source=V2_SOURCE)
def shufflenet_v2_cifar(shape: Shape, classes: int) -> nn.Module:
    """ShuffleNet V2 of width 1."""
    return _with_small_stem(shufflenet_v2_x1_0, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=2_488_874, source=V2_SOURCE)
def shufflenet_v2_x15_cifar(shape: Shape, classes: int) -> nn.Module:
    """ShuffleNet V2 of width 1.5."""
    return _with_small_stem(shufflenet_v2_x1_5, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=5_365_486, source=V2_SOURCE)
def shufflenet_v2_x20_cifar(shape: Shape, classes: int) -> nn.Module:
    """ShuffleNet V2 of width 2."""
    return _with_small_stem(shufflenet_v2_x2_0, shape, classes)
