"""Dual path networks for small images: some channels are added as in a ResNet, others appended as in a DenseNet."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import conv_bn, fill_convolutions, mean_and_linear
from models.spec import Shape, model

SOURCE = "Chen et al., 'Dual path networks', 2017; form of the kuangliu pytorch-cifar zoo"
STEM_WIDTH, GROUPS = 64, 32


@dataclass(frozen=True)
class Stage:
    """One stage of blocks."""

    blocks: int
    width: int
    """Channels of the grouped 3x3 convolution."""
    residual: int
    """Channels that are added."""
    growth: int
    """Channels that each block appends."""


class DualPathBlock(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions; their first `residual` outputs are added to the input, the rest appended.

    The first block of a stage (`first`) brings its input to the stage's shape by a 1x1 convolution.
    """

    def __init__(self, inputs: int, stage: Stage, stride: int, *, first: bool) -> None:
        super().__init__()
        self.residual = stage.residual
        outputs = stage.residual + stage.growth
        self.body = nn.Sequential(
            *conv_bn(inputs, stage.width, 1),
            nn.ReLU(inplace=True),
            *conv_bn(stage.width, stage.width, 3, stride=stride, groups=GROUPS),
            nn.ReLU(inplace=True),
            *conv_bn(stage.width, outputs, 1),
        )
        self.shortcut = nn.Sequential(*conv_bn(inputs, outputs, 1, stride=stride)) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, carried + growth, H / stride, W / stride], where a first block carries
        residual + growth channels and another one its inputs.
        """
        carried, new = self.shortcut(x), self.body(x)
        summed = carried[:, : self.residual] + new[:, : self.residual]
        return F.relu(torch.cat([summed, carried[:, self.residual :], new[:, self.residual :]], dim=1))


def _dpn(stages: tuple[Stage, ...], shape: Shape, classes: int) -> nn.Module:
    """Each stage but the first halves the image."""
    blocks, inputs = [], STEM_WIDTH
    for number, stage in enumerate(stages):
        for block in range(stage.blocks):
            blocks.append(DualPathBlock(inputs, stage, 2 if number > 0 and block == 0 else 1, first=block == 0))
            inputs = stage.residual + (block + 2) * stage.growth
    stem = (*conv_bn(shape[0], STEM_WIDTH, 3), nn.ReLU(inplace=True))
    return fill_convolutions(nn.Sequential(*stem, *blocks, *mean_and_linear(inputs, classes)))


@model(shape=(3, 32, 32), classes=10, parameters=11_574_842, source=SOURCE)
def dpn26(shape: Shape, classes: int) -> nn.Module:
    """26 layers: DPN-92 with two blocks a stage."""
    stages = (Stage(2, 96, 256, 16), Stage(2, 192, 512, 32), Stage(2, 384, 1024, 24), Stage(2, 768, 2048, 128))
    return _dpn(stages, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=34_236_634, source=SOURCE)
def dpn92(shape: Shape, classes: int) -> nn.Module:
    """92 layers."""
    stages = (Stage(3, 96, 256, 16), Stage(4, 192, 512, 32), Stage(20, 384, 1024, 24), Stage(3, 768, 2048, 128))
    return _dpn(stages, shape, classes)
