"""Deep layer aggregation for small images: trees of residual blocks, whose roots join what the branches found."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from models.layers import conv_bn, mean_and_linear
from models.spec import Shape, model

SOURCE = "Yu et al., 'Deep layer aggregation', 2018; CIFAR form of the kuangliu pytorch-cifar zoo"
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 1, 2))
"""Output channels, levels and stride of each tree."""


def _conv_bn_relu(inputs: int, outputs: int, kernel_size: int) -> list[nn.Module]:
    return [*conv_bn(inputs, outputs, kernel_size), nn.ReLU(inplace=True)]


def _block(inputs: int, outputs: int, stride: int) -> BasicBlock:
    """ResNet's block of two 3x3 convolutions."""
    fit = None
    if stride != 1 or inputs != outputs:
        fit = nn.Sequential(*conv_bn(inputs, outputs, 1, stride=stride))
    return BasicBlock(inputs, outputs, stride, fit)


class SimpleTree(nn.Module):
    """Two subtrees, the second upon the first, and a root that joins both.

    [N, inputs, H, W] -> [N, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, levels: int, stride: int) -> None:
        super().__init__()
        if levels == 1:
            self.left: nn.Module = _block(inputs, outputs, stride)
            self.right: nn.Module = _block(outputs, outputs, 1)
        else:
            self.left = SimpleTree(inputs, outputs, levels - 1, stride)
            self.right = SimpleTree(outputs, outputs, levels - 1, 1)
        self.root = nn.Sequential(*_conv_bn_relu(2 * outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The root's output."""
        left = self.left(x)
        return self.root(torch.cat([left, self.right(left)], dim=1))


class Tree(nn.Module):
    """A tree of one or two levels, whose root joins all below it.

    One level: two blocks. Two levels: a block on the input, a tree of one level, and two blocks upon that tree.

    [N, inputs, H, W] -> [N, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, levels: int, stride: int) -> None:
        super().__init__()
        self.first = _block(inputs, outputs, stride) if levels == 2 else None
        self.inner = Tree(inputs, outputs, 1, stride) if levels == 2 else None
        self.left = _block(outputs, outputs, 1) if levels == 2 else _block(inputs, outputs, stride)
        self.right = _block(outputs, outputs, 1)
        self.root = nn.Sequential(*_conv_bn_relu((4 if levels == 2 else 2) * outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The root's output."""
        found = []
        if self.first is not None and self.inner is not None:
            first, x = self.first(x), self.inner(x)
            found = [first, x]
        left = self.left(x)
        return self.root(torch.cat([*found, left, self.right(left)], dim=1))


def _dla(tree: type[Tree] | type[SimpleTree], shape: Shape, classes: int) -> nn.Module:
    """Three convolutions at full resolution, four trees, a global average and a classifier."""
    layers = [*_conv_bn_relu(shape[0], 16, 3), *_conv_bn_relu(16, 16, 3), *_conv_bn_relu(16, 32, 3)]
    inputs = 32
    for outputs, levels, stride in STAGES:
        layers.append(tree(inputs, outputs, levels, stride))
        inputs = outputs
    return nn.Sequential(*layers, *mean_and_linear(inputs, classes))


@model(shape=(3, 32, 32), classes=10, parameters=16_291_386, source=SOURCE)
def dla(shape: Shape, classes: int) -> nn.Module:
    """DLA-34's layout, in which the root of a tree also sees the trees below it."""
    return _dla(Tree, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=15_142_970, source=SOURCE)
def simple_dla(shape: Shape, classes: int) -> nn.Module:
    """The same with plain binary trees."""
    return _dla(SimpleTree, shape, classes)
