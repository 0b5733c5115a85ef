"""Squeeze-and-excitation: a pre-activation ResNet whose blocks weigh their channels by what the whole image shows."""

from torch import nn
from torchvision.ops import SqueezeExcitation

from models.layers import conv_bn, fill_convolutions, mean_and_linear
from models.preact_resnet import WIDTHS, preact_blocks, two_convolutions
from models.spec import Shape, model

SOURCE = "Hu et al., 'Squeeze-and-excitation networks', 2018; form of the kuangliu pytorch-cifar zoo"
REDUCTION = 16


def _gate(width: int) -> nn.Module:
    return SqueezeExcitation(width, width // REDUCTION)


@model(shape=(3, 32, 32), classes=10, parameters=11_260_354, source=SOURCE)
def senet18(shape: Shape, classes: int) -> nn.Module:
    """18 layers."""
    stem = (*conv_bn(shape[0], WIDTHS[0], 3), nn.ReLU(inplace=True))
    blocks = preact_blocks((2, 2, 2, 2), two_convolutions, 1, _gate)
    return fill_convolutions(nn.Sequential(*stem, *blocks, *mean_and_linear(WIDTHS[-1], classes)))
