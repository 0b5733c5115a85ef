"""PSPNet: averages over the whole image, its halves, thirds and sixths, beside the features of a dilated ResNet.

Source: Zhao, Shi, Qi, Wang, Jia, "Pyramid scene parsing network", 2017.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers import conv_bn
from models.segmenter import RESNET50, RESNET101, DilatedResNet, Logits, enlarged, require_rgb
from models.spec import Shape, model

SOURCE = "Zhao et al., 'Pyramid scene parsing network', 2017; dilated ResNet of torchvision"
BINS = (1, 2, 3, 6)
"""Averages along each side of the image."""


def _conv_relu(inputs: int, outputs: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn(inputs, outputs, kernel_size), nn.ReLU(inplace=True))


class PyramidPooling(nn.Module):
    """[N, inputs, h, w] -> the same features and, beside them, their averages: [N, inputs + 4 outputs, h, w]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), _conv_relu(inputs, outputs, 1)) for bins in BINS
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features to features with their surroundings."""
        return torch.cat([x, *(enlarged(level(x), x) for level in self.levels)], dim=1)


class PSPNet(nn.Module):
    """[N, 3, H, W] -> logits [N, classes, H, W]; in training a dict of these (out) and of an earlier stage's (aux).

    In training each rank needs two samples or more, or --sync-bn: of a sample's overall average, BatchNorm has one
    value.
    """

    def __init__(self, backbone: nn.Module, channels: tuple[int, int], classes: int) -> None:
        """`backbone` gives the features of its last stage and of the one before, which have so many `channels`."""
        super().__init__()
        last, earlier = channels
        self.backbone = backbone
        level = last // len(BINS)
        self.head = nn.Sequential(
            PyramidPooling(last, level),
            _conv_relu(last + len(BINS) * level, level, 3),
            nn.Dropout2d(0.1),
            nn.Conv2d(level, classes, kernel_size=1),
        )
        self.auxiliary = nn.Sequential(
            _conv_relu(earlier, earlier // 4, 3), nn.Dropout2d(0.1), nn.Conv2d(earlier // 4, classes, kernel_size=1)
        )

    def forward(self, x: Tensor) -> Logits:
        """Images to logits."""
        last, earlier = self.backbone(x)
        out = enlarged(self.head(last), x)
        return {"out": out, "aux": enlarged(self.auxiliary(earlier), x)} if self.training else out


def _on_resnet(blocks: Sequence[int], classes: int) -> nn.Module:
    return PSPNet(DilatedResNet(blocks), (2048, 1024), classes)


@model(shape=(3, 473, 473), classes=21, parameters=48_957_802, source=SOURCE, task="segmentation")
def pspnet_resnet50(shape: Shape, classes: int) -> nn.Module:
    """On a dilated ResNet-50."""
    require_rgb(shape, "pspnet-resnet50")
    return _on_resnet(RESNET50, classes)


@model(shape=(3, 473, 473), classes=21, parameters=67_949_930, source=SOURCE, task="segmentation")
def pspnet_resnet101(shape: Shape, classes: int) -> nn.Module:
    """On a dilated ResNet-101."""
    require_rgb(shape, "pspnet-resnet101")
    return _on_resnet(RESNET101, classes)
