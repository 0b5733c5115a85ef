"""PNASNets for small images: cells that were found by search, in two sizes."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from models.layers import conv_bn, mean_and_linear
from models.spec import Shape, model

SOURCE = "Liu et al., 'Progressive neural architecture search', 2018; CIFAR form of the kuangliu pytorch-cifar zoo"
CELLS = 6
"""Cells of each of the three resolutions."""


def _grouped(inputs: int, outputs: int, kernel_size: int, stride: int) -> nn.Sequential:
    """Filters that see one input channel each, without the 1x1 convolution of a separable one."""
    return nn.Sequential(*conv_bn(inputs, outputs, kernel_size, stride=stride, groups=inputs))


def _pooled(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3x3 maximum, fitted to the output channels where the cell halves the image."""
    pool = nn.MaxPool2d(3, stride=stride, padding=1)
    if stride == 1:
        return nn.Sequential(pool)
    return nn.Sequential(pool, *conv_bn(inputs, outputs, 1))


class CellA(nn.Module):
    """7x7 filters plus a maximum. [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.filtered = _grouped(inputs, outputs, 7, stride)
        self.pooled = _pooled(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The cell's output."""
        return relu(self.filtered(x) + self.pooled(x))


class CellB(nn.Module):
    """7x7 plus 3x3 filters, and 5x5 filters plus a maximum; a 1x1 convolution makes one of both.

    [N, inputs, H, W] -> [N, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.large = _grouped(inputs, outputs, 7, stride)
        self.small = _grouped(inputs, outputs, 3, stride)
        self.middle = _grouped(inputs, outputs, 5, stride)
        self.pooled = _pooled(inputs, outputs, stride)
        self.join = nn.Sequential(*conv_bn(2 * outputs, outputs, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """The cell's output."""
        one = relu(self.large(x) + self.small(x))
        other = relu(self.pooled(x) + self.middle(x))
        return self.join(torch.cat([one, other], dim=1))


def _pnasnet(cell: type[CellA] | type[CellB], width: int, shape: Shape, classes: int) -> nn.Module:
    """A 3x3 stem, then cells at full, half and quarter resolution, of `width`, twice and four times that."""
    layers = [*conv_bn(shape[0], width, 3), nn.ReLU(inplace=True)]
    for number, outputs in enumerate((width, 2 * width, 4 * width)):
        if number:
            layers.append(cell(outputs // 2, outputs, 2))
        layers += [cell(outputs, outputs, 1) for _ in range(CELLS)]
    return nn.Sequential(*layers, *mean_and_linear(4 * width, classes))


@model(shape=(3, 32, 32), classes=10, parameters=130_646, source=SOURCE)
def pnasnet_a(shape: Shape, classes: int) -> nn.Module:
    """Cells A of width 44."""
    return _pnasnet(CellA, 44, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=451_626, source=SOURCE)
def pnasnet_b(shape: Shape, classes: int) -> nn.Module:
    """Cells B of width 32."""
    return _pnasnet(CellB, 32, shape, classes)
