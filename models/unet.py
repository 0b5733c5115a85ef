"""U-Nets: a contracting path, and an expanding one that joins it again at each scale.

Source: Ronneberger, Fischer, Brox, "U-Net: convolutional networks for biomedical image segmentation", 2015. As is usual
today, convolutions are padded, so that the logits have the size of the image, and are followed by BatchNorm.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from models.layers import conv_bn
from models.spec import Shape, model

SOURCE = "Ronneberger et al., 'U-Net', 2015; padded convolutions with BatchNorm, as in milesial's Pytorch-UNet"
DEPTH = 4
"""Times that height and width are halved."""


def _two_convolutions(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    first, second = conv_bn(inputs, middle, 3), conv_bn(middle, outputs, 3)
    return nn.Sequential(*first, nn.ReLU(inplace=True), *second, nn.ReLU(inplace=True))


class _Join(nn.Module):
    """Double the size of the features below and join them with those of the contracting path."""

    def __init__(self, below: int, skip: int, outputs: int, *, bilinear: bool) -> None:
        super().__init__()
        self.enlarge: nn.Module
        if bilinear:
            self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.join = _two_convolutions(below + skip, (below + skip) // 2, outputs)
        else:
            self.enlarge = nn.ConvTranspose2d(below, below // 2, kernel_size=2, stride=2)
            self.join = _two_convolutions(below // 2 + skip, outputs, outputs)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """[N, below, h, w] and [N, skip, H, W], where h is H // 2 -> [N, outputs, H, W]."""
        x = self.enlarge(below)
        height, width = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = pad(x, (0, width, 0, height))  # a row and a column where the skip's sides are odd
        return self.join(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    """[N, channels, H, W] -> logits [N, classes, H, W], for H and W of at least 16.

    Enlarged by transposed convolutions, which halve the width, or bilinearly, with half the width at the bottom.
    """

    def __init__(self, channels: int, classes: int, *, width: int = 64, bilinear: bool = False) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(DEPTH + 1)]
        if bilinear:
            widths[-1] //= 2
        self.top = _two_convolutions(channels, width, width)
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), _two_convolutions(inputs, outputs, outputs))
            for inputs, outputs in pairwise(widths)
        )
        self.up = nn.ModuleList()
        below = widths[-1]
        for level in reversed(range(DEPTH)):
            outputs = widths[level] // 2 if bilinear and level else widths[level]
            self.up.append(_Join(below, widths[level], outputs, bilinear=bilinear))
            below = outputs
        self.head = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        skips = [self.top(x)]
        for shrink in self.down:
            skips.append(shrink(skips[-1]))
        x = skips.pop()
        for join in self.up:
            x = join(x, skips.pop())
        return self.head(x)


@model(shape=(3, 256, 256), classes=2, parameters=31_037_698, source=SOURCE, task="segmentation")
def unet(shape: Shape, classes: int) -> nn.Module:
    """Enlarges by transposed convolutions."""
    return UNet(shape[0], classes)


@model(shape=(3, 256, 256), classes=2, parameters=17_263_042, source=SOURCE, task="segmentation")
def unet_bilinear(shape: Shape, classes: int) -> nn.Module:
    """Enlarges bilinearly."""
    return UNet(shape[0], classes, bilinear=True)


@model(shape=(3, 64, 64), classes=5, parameters=486_589, source=SOURCE, task="segmentation")
def unet_small(shape: Shape, classes: int) -> nn.Module:
    """An eighth of the width, for small images on a CPU."""
    return UNet(shape[0], classes, width=8)
