"""The ResNets that He et al. made for CIFAR-10: stages of 16, 32 and 64 channels, shortcuts without weights."""

from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import conv_bn, fill_convolutions, mean_and_linear
from models.spec import Shape, model

SOURCE = "He et al., 'Deep residual learning', 2015, section 4.2 (option A)"
WIDTHS = (16, 32, 64)


class HeBlock(nn.Module):
    """Two 3x3 convolutions around which the input is carried; with stride 2 it is thinned out and padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_bn(inputs, outputs, 3, stride=stride), nn.ReLU(inplace=True), *conv_bn(outputs, outputs, 3)
        )
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride], rounded up."""
        carried = x[:, :, :: self.stride, :: self.stride]
        return F.relu(self.body(x) + F.pad(carried, (0, 0, 0, 0, 0, self.new_channels)))


def _resnet(depth: int, shape: Shape, classes: int) -> nn.Module:
    """`depth` counts the weighted layers: 6n + 2 for n blocks a stage."""
    blocks, width = [], WIDTHS[0]
    for stage, outputs in enumerate(WIDTHS):
        for block in range((depth - 2) // 6):
            blocks.append(HeBlock(width, outputs, stride=2 if stage > 0 and block == 0 else 1))
            width = outputs
    stem = (*conv_bn(shape[0], WIDTHS[0], 3), nn.ReLU(inplace=True))
    return fill_convolutions(nn.Sequential(*stem, *blocks, *mean_and_linear(width, classes)))


@model(shape=(3, 32, 32), classes=10, parameters=269_722, source=SOURCE)
def resnet20_he(shape: Shape, classes: int) -> nn.Module:
    """20 layers; the paper's test error is 8.75 %."""
    return _resnet(20, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=464_154, source=SOURCE)
def resnet32_he(shape: Shape, classes: int) -> nn.Module:
    """32 layers; the paper's test error is 7.51 %."""
    return _resnet(32, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=658_586, source=SOURCE)
def resnet44_he(shape: Shape, classes: int) -> nn.Module:
    """44 layers; the paper's test error is 7.17 %."""
    return _resnet(44, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=853_018, source=SOURCE)
def resnet56_he(shape: Shape, classes: int) -> nn.Module:
    """56 layers; the paper's test error is 6.97 %."""
    return _resnet(56, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=1_727_962, source=SOURCE)
def resnet110_he(shape: Shape, classes: int) -> nn.Module:
    """110 layers; the paper's test error is 6.43 %, after a warm-up at a tenth of the learning rate."""
    return _resnet(110, shape, classes)
