"""GoogLeNet for small images: a stem of one convolution, inception modules with BatchNorm, and no auxiliary heads."""

import torch
from torch import Tensor, nn

from models.layers import fill_convolutions, mean_and_linear
from models.spec import Shape, model

SOURCE = "Szegedy et al., 'Going deeper with convolutions', 2015; form of the kuangliu pytorch-cifar zoo"
STEM_WIDTH = 192
STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
"""The paper's table 1: per module #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj; a pooling between stages."""


def _conv_bn_relu(inputs: int, outputs: int, kernel_size: int) -> list[nn.Module]:
    """Here convolutions have biases, although BatchNorm takes them away again: the zoo counts them."""
    convolution = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class Inception(nn.Module):
    """Four paths side by side, of which the third has two 3x3 convolutions in place of the paper's 5x5.

    `widths` is a row of STAGES. [N, inputs, H, W] -> [N, sum of the paths' outputs, H, W].
    """

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        point, reduce3, conv3, reduce5, conv5, pooled = widths
        self.paths = nn.ModuleList(
            [
                nn.Sequential(*_conv_bn_relu(inputs, point, 1)),
                nn.Sequential(*_conv_bn_relu(inputs, reduce3, 1), *_conv_bn_relu(reduce3, conv3, 3)),
                nn.Sequential(
                    *_conv_bn_relu(inputs, reduce5, 1),
                    *_conv_bn_relu(reduce5, conv5, 3),
                    *_conv_bn_relu(conv5, conv5, 3),
                ),
                nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *_conv_bn_relu(inputs, pooled, 1)),
            ]
        )
        self.outputs = point + conv3 + conv5 + pooled

    def forward(self, x: Tensor) -> Tensor:
        """The paths' outputs, one behind the other."""
        return torch.cat([path(x) for path in self.paths], dim=1)


@model(shape=(3, 32, 32), classes=10, parameters=6_166_250, source=SOURCE)
def googlenet_cifar(shape: Shape, classes: int) -> nn.Module:
    """Nine inception modules, with a halving of the image after the second and the seventh."""
    layers, width = _conv_bn_relu(shape[0], STEM_WIDTH, 3), STEM_WIDTH
    for stage, modules in enumerate(STAGES):
        if stage > 0:
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        for widths in modules:
            module = Inception(width, widths)
            layers.append(module)
            width = module.outputs
    return fill_convolutions(nn.Sequential(*layers, *mean_and_linear(width, classes)))
