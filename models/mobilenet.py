"""MobileNets for small images: neither stem nor early stages shrink 32x32 pixels as those for 224x224 do."""

from torch import Tensor, nn

from models.layers import conv_bn, mean_and_linear
from models.spec import Shape, model

V1_SOURCE = "Howard et al., 'MobileNets', 2017; CIFAR form of the kuangliu pytorch-cifar zoo"
V2_SOURCE = "Sandler et al., 'MobileNetV2', 2018; CIFAR form of the kuangliu pytorch-cifar zoo"

V1_STAGES = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Output channels and stride of each block."""
V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, output channels, blocks and stride of the first of them, for each stage."""


def _pixelwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [*conv_bn(inputs, outputs, 1), nn.ReLU(inplace=True)]


def _depthwise(width: int, stride: int) -> list[nn.Module]:
    return [*conv_bn(width, width, 3, stride=stride, groups=width), nn.ReLU(inplace=True)]


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """One 3x3 filter for each channel, then a 1x1 convolution that mixes the channels."""
    return nn.Sequential(*_depthwise(inputs, stride), *_pixelwise(inputs, outputs))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project back without ReLU; with stride 1, the input is added.

    Where the channels change, a 1x1 convolution fits the input to them: the zoo's form, the paper adds nothing there.
    [N, inputs, H, W] -> [N, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = expansion * inputs
        self.body = nn.Sequential(*_pixelwise(inputs, width), *_depthwise(width, stride), *conv_bn(width, outputs, 1))
        self.shortcut: nn.Module | None = None
        if stride == 1:
            self.shortcut = nn.Identity() if inputs == outputs else nn.Sequential(*conv_bn(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return self.body(x) if self.shortcut is None else self.body(x) + self.shortcut(x)


@model(shape=(3, 32, 32), classes=10, parameters=3_217_226, source=V1_SOURCE)
def mobilenet_v1_cifar(shape: Shape, classes: int) -> nn.Module:
    """MobileNet of width 1, with a stem of stride 1."""
    layers, inputs = [*conv_bn(shape[0], 32, 3), nn.ReLU(inplace=True)], 32
    for outputs, stride in V1_STAGES:
        layers.append(_separable(inputs, outputs, stride))
        inputs = outputs
    return nn.Sequential(*layers, *mean_and_linear(inputs, classes))


@model(shape=(3, 32, 32), classes=10, parameters=2_296_922, source=V2_SOURCE)
def mobilenet_v2_cifar(shape: Shape, classes: int) -> nn.Module:
    """MobileNetV2 of width 1, with stride 1 in the stem and in the second stage."""
    layers, inputs = [*conv_bn(shape[0], 32, 3), nn.ReLU(inplace=True)], 32
    for expansion, outputs, blocks, stride in V2_STAGES:
        for number in range(blocks):
            layers.append(InvertedResidual(inputs, outputs, expansion, stride if number == 0 else 1))
            inputs = outputs
    layers += _pixelwise(inputs, 1280)
    return nn.Sequential(*layers, *mean_and_linear(1280, classes))
