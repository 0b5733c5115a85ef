"""Fully convolutional networks: classifiers whose last layers slide over the image.

Source: Long, Shelhamer, Darrell, "Fully convolutional networks for semantic segmentation", 2015. The paper pads images
by 100 pixels and crops the centre; here the 7x7 layer is padded, which keeps scores and pixels aligned without that.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models import segmentation

from models.layers import fill_convolutions
from models.segmenter import VGG16, FromTorchvision, require_rgb, vgg_stages
from models.spec import Shape, model

SOURCE = "Long et al., 'Fully convolutional networks', 2015; VGG16 of torchvision"
SOURCE_RESNET = "torchvision.models.segmentation, with the auxiliary head"


class BilinearUpsampling(nn.ConvTranspose2d):
    """A transposed convolution that begins as bilinear interpolation and learns from there.

    [N, classes, h, w] -> [N, classes, factor h, factor w].
    """

    def __init__(self, classes: int, factor: int) -> None:
        super().__init__(classes, classes, kernel_size=2 * factor, stride=factor, padding=factor // 2, bias=False)
        # The weight of a pixel falls linearly to 0 at the centre of the next one, `factor` pixels away.
        ramp = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
        with torch.no_grad():
            self.weight.zero_()
            self.weight[range(classes), range(classes)] = ramp[:, None] * ramp


class FCN(nn.Module):
    """VGG's stages, its fully connected layers as convolutions, and scores joined with those of earlier stages.

    [N, 3, H, W] -> logits [N, classes, H, W], of any size. `stride` of the finest scores: 32, 16 or 8 pixels; `width`
    of the two layers that were fully connected. On a CPU, images smaller than 224 pixels train twenty times slower than
    larger ones: the 7x7 kernel is then larger than what it is slid over, for which oneDNN has plain loops alone.
    """

    def __init__(
        self, widths: Sequence[str | int], classes: int, *, stride: int, width: int = 4096, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(vgg_stages(widths))
        for layer in self.stages.modules():
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True  # what is left over at the right and below is scored, too
        channels = [size for size, after in pairwise(widths) if after == "M"]
        self.score = nn.Sequential(
            *(nn.Conv2d(int(channels[-1]), width, kernel_size=7, padding=3), nn.ReLU(inplace=True)),
            nn.Dropout2d(dropout),
            *(nn.Conv2d(width, width, kernel_size=1), nn.ReLU(inplace=True)),
            nn.Dropout2d(dropout),
            nn.Conv2d(width, classes, kernel_size=1),
        )
        # From the coarsest to the finest: behind the fourth stage at stride 16, behind the third at stride 8.
        skips = {32: [], 16: channels[3:4], 8: channels[3:1:-1]}[stride]
        self.skips = nn.ModuleList(nn.Conv2d(int(inputs), classes, kernel_size=1) for inputs in skips)
        self.doublings = nn.ModuleList(BilinearUpsampling(classes, 2) for _ in skips)
        self.enlarge = BilinearUpsampling(classes, stride)
        fill_convolutions(self.score)
        for parameter in self.skips.parameters():
            nn.init.zeros_(parameter)  # training begins with the coarse scores alone

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        height, width = x.shape[2:]
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        scores = self.score(features.pop())
        for skip, double in zip(self.skips, self.doublings, strict=True):
            finer = skip(features.pop())
            scores = double(scores)[:, :, : finer.shape[2], : finer.shape[3]] + finer
        return self.enlarge(scores)[:, :, :height, :width]


def _vgg16(shape: Shape, classes: int, stride: int) -> nn.Module:
    require_rgb(shape, f"fcn{stride}s-vgg16")
    return FCN(VGG16, classes, stride=stride)


@model(shape=(3, 256, 256), classes=21, parameters=136_152_917, source=SOURCE, task="segmentation")
def fcn32s_vgg16(shape: Shape, classes: int) -> nn.Module:
    """Scores of the last stage alone."""
    return _vgg16(shape, classes, 32)


@model(shape=(3, 256, 256), classes=21, parameters=134_815_994, source=SOURCE, task="segmentation")
def fcn16s_vgg16(shape: Shape, classes: int) -> nn.Module:
    """Scores of the last two stages."""
    return _vgg16(shape, classes, 16)


@model(shape=(3, 256, 256), classes=21, parameters=134_489_759, source=SOURCE, task="segmentation")
def fcn8s_vgg16(shape: Shape, classes: int) -> nn.Module:
    """Scores of the last three stages."""
    return _vgg16(shape, classes, 8)


@model(shape=(3, 320, 320), classes=21, parameters=35_322_218, source=SOURCE_RESNET, task="segmentation")
def fcn_resnet50(shape: Shape, classes: int) -> nn.Module:
    """On a dilated ResNet-50."""
    require_rgb(shape, "fcn-resnet50")
    return FromTorchvision(
        segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=classes, aux_loss=True)
    )


@model(shape=(3, 320, 320), classes=21, parameters=54_314_346, source=SOURCE_RESNET, task="segmentation")
def fcn_resnet101(shape: Shape, classes: int) -> nn.Module:
    """On a dilated ResNet-101."""
    require_rgb(shape, "fcn-resnet101")
    return FromTorchvision(
        segmentation.fcn_resnet101(weights=None, weights_backbone=None, num_classes=classes, aux_loss=True)
    )
