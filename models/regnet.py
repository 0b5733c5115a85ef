"""RegNets for small images: four stages of grouped residual blocks, the first two at the full resolution."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import relu
from torchvision.ops import SqueezeExcitation

from models.layers import conv_bn, mean_and_linear
from models.spec import Shape, model

SOURCE = "Radosavovic et al., 'Designing network design spaces', 2020; CIFAR form of the kuangliu pytorch-cifar zoo"
STEM = 64
"""Channels of the stem."""
STRIDES = (1, 1, 2, 2)
"""Of the first block of each stage."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """A point of the design space; the bottleneck is as wide as the block."""

    depths: tuple[int, int, int, int]
    """Blocks of each stage."""
    widths: tuple[int, int, int, int]
    """Output channels of each stage."""
    group_width: int
    """Channels of each group of the 3x3 convolutions."""
    squeeze: float = 0.0
    """Channels of the squeeze-and-excitation's hidden layer, as a share of the block's inputs; 0: none."""


class Block(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions around which the input is carried, fitted where its shape differs.

    [N, inputs, H, W] -> [N, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int, design: Design) -> None:
        super().__init__()
        weigh = [SqueezeExcitation(outputs, round(inputs * design.squeeze))] if design.squeeze else []
        self.body = nn.Sequential(
            *conv_bn(inputs, outputs, 1),
            nn.ReLU(inplace=True),
            *conv_bn(outputs, outputs, 3, stride=stride, groups=outputs // design.group_width),
            nn.ReLU(inplace=True),
            *weigh,
            *conv_bn(outputs, outputs, 1),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return relu(self.body(x) + self.shortcut(x))


def _regnet(shape: Shape, design: Design, classes: int) -> nn.Module:
    layers, inputs = [*conv_bn(shape[0], STEM, 3), nn.ReLU(inplace=True)], STEM
    for depth, outputs, stride in zip(design.depths, design.widths, STRIDES, strict=True):
        for number in range(depth):
            layers.append(Block(inputs, outputs, stride if number == 0 else 1, design))
            inputs = outputs
    return nn.Sequential(*layers, *mean_and_linear(inputs, classes))


@model(shape=(3, 32, 32), classes=10, parameters=2_321_946, source=SOURCE)
def regnet_x_200mf_cifar(shape: Shape, classes: int) -> nn.Module:
    """RegNetX-200MF."""
    design = Design(depths=(1, 1, 4, 7), widths=(24, 56, 152, 368), group_width=8)
    return _regnet(shape, design, classes)


@model(shape=(3, 32, 32), classes=10, parameters=4_779_338, source=SOURCE)
def regnet_x_400mf_cifar(shape: Shape, classes: int) -> nn.Module:
    """RegNetX-400MF."""
    design = Design(depths=(1, 2, 7, 12), widths=(32, 64, 160, 384), group_width=16)
    return _regnet(shape, design, classes)


@model(shape=(3, 32, 32), classes=10, parameters=5_714_362, source=SOURCE)
def regnet_y_400mf_cifar(shape: Shape, classes: int) -> nn.Module:
    """What the zoo calls RegNetY-400MF: its X-400MF with squeeze-and-excitation; the paper's has other widths."""
    design = Design(depths=(1, 2, 7, 12), widths=(32, 64, 160, 384), group_width=16, squeeze=0.25)
    return _regnet(shape, design, classes)
