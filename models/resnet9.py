"""Nine-layer residual nets that learn CIFAR-10 in minutes, also on a CPU."""

import torch
from torch import Tensor, nn

from models.spec import Shape, model

SOURCE = "after Page, 'How to train your ResNet', 2018 (DAWNBench); stride-2 stem for CPUs"


def _conv_bn(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    pooling = [nn.MaxPool2d(2)] if pool else []
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, *pooling, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two convolutions around which the input is carried unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv_bn(width, width), _conv_bn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, H, W] -> the same shape."""
        return x + self.body(x)


class ResNet9(nn.Module):
    """A stem at half resolution, two stages of one residual block each, a global maximum and a linear layer.

    [N, C, H, W] with H, W >= 8 -> logits [N, classes], scaled by 1/8 to keep the first losses small.
    """

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            _conv_bn(width, 2 * width, pool=True),
            Residual(2 * width),
            _conv_bn(2 * width, 4 * width, pool=True),
            Residual(4 * width),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(torch.amax(self.features(x), dim=(2, 3))) * 0.125


@model(shape=(3, 32, 32), classes=10, parameters=117_226, source=SOURCE)
def resnet9_w16(shape: Shape, classes: int) -> nn.Module:
    """Width 16."""
    return ResNet9(shape[0], 16, classes)


@model(shape=(3, 32, 32), classes=10, parameters=464_842, source=SOURCE)
def resnet9_w32(shape: Shape, classes: int) -> nn.Module:
    """Width 32."""
    return ResNet9(shape[0], 32, classes)
