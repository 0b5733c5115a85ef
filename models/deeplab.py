"""DeepLab: convolutions with holes see far without losing resolution.

Sources: Chen et al., "Semantic image segmentation with deep convolutional nets and fully connected CRFs", 2015 (v1,
LargeFOV); "DeepLab: semantic image segmentation with deep convolutional nets, atrous convolution, and fully connected
CRFs", 2017 (v2); "Rethinking atrous convolution for semantic image segmentation", 2017 (v3). The CRFs, which refine a
prediction without being trained along with it, are left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models import segmentation
from torchvision.models.segmentation.deeplabv3 import ASPP

from models.segmenter import RESNET101, VGG16, DilatedResNet, FromTorchvision, enlarged, require_rgb, vgg_stages
from models.spec import Shape, model

SOURCE_V1 = "Chen et al., 'Semantic image segmentation with deep convolutional nets', 2015: DeepLab-LargeFOV"
SOURCE_V2 = "Chen et al., 'DeepLab', 2017; dilated ResNet of torchvision"
SOURCE_V3 = "torchvision.models.segmentation, with the auxiliary head"
SOURCE_SMALL = "after Chen et al., 'Rethinking atrous convolution', 2017, on a small residual net of its own"
V2_RATES = (6, 12, 18, 24)
"""Distances of a 3x3 kernel's taps, in pixels of the features."""


class LargeFOV(nn.Module):
    """VGG without its last two reductions, and a 3x3 layer with holes of 12 in place of the 7x7 one.

    [N, 3, H, W] -> logits [N, classes, H, W]. `width` of the two layers that were fully connected.
    """

    def __init__(self, widths: Sequence[str | int], classes: int, *, width: int = 1024) -> None:
        super().__init__()
        *stages, fourth, fifth = vgg_stages(widths)
        for stage in (*stages, fourth, fifth):
            stage[-1] = nn.MaxPool2d(3, stride=1 if stage in (fourth, fifth) else 2, padding=1)
        for layer in fifth:
            if isinstance(layer, nn.Conv2d):  # what pooling no longer skips, its kernels do
                layer.dilation = layer.padding = (2, 2)
        channels = int([size for size in widths if size != "M"][-1])
        self.features = nn.Sequential(*stages, fourth, fifth, nn.AvgPool2d(3, stride=1, padding=1))
        self.head = nn.Sequential(
            *(nn.Conv2d(channels, width, kernel_size=3, padding=12, dilation=12), nn.ReLU(inplace=True)),
            nn.Dropout2d(0.5),
            *(nn.Conv2d(width, width, kernel_size=1), nn.ReLU(inplace=True)),
            nn.Dropout2d(0.5),
            nn.Conv2d(width, classes, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return enlarged(self.head(self.features(x)), x)


class SummedASPP(nn.Module):
    """DeepLab v2's head: 3x3 convolutions of several rates, summed. [N, inputs, h, w] -> logits [N, classes, h, w]."""

    def __init__(self, inputs: int, classes: int, rates: Sequence[int] = V2_RATES) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(inputs, classes, kernel_size=3, padding=rate, dilation=rate) for rate in rates
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features to logits."""
        return torch.stack([branch(x) for branch in self.branches]).sum(dim=0)


class DeepLabV2(nn.Module):
    """[N, 3, H, W] -> logits [N, classes, H, W]. `backbone` gives features of so many `channels`, and earlier ones."""

    def __init__(self, backbone: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = SummedASPP(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return enlarged(self.head(self.backbone(x)[0]), x)


def _conv_bn(inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    """Two convolutions around which the input is carried unchanged."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv_bn(width, width, dilation=dilation), _conv_bn(width, width, dilation=dilation))

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, h, w] -> the same shape."""
        return x + self.body(x)


class SmallDeepLabV3(nn.Module):
    """DeepLab v3's head, an eighth as wide or so, on a residual net that stops shrinking at a quarter of the size.

    [N, channels, H, W] -> logits [N, classes, H, W]. In training each rank needs two samples or more, or --sync-bn:
    of a sample's overall average, BatchNorm has one value.
    """

    def __init__(self, channels: int, classes: int, *, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv_bn(channels, width, stride=2),
            _Residual(width, dilation=1),
            _conv_bn(width, 2 * width, stride=2),
            _Residual(2 * width, dilation=1),
            _conv_bn(2 * width, 4 * width, dilation=2),
            _Residual(4 * width, dilation=2),
        )
        self.head = nn.Sequential(
            ASPP(4 * width, [2, 4, 6], 2 * width),
            _conv_bn(2 * width, 2 * width),
            nn.Conv2d(2 * width, classes, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return enlarged(self.head(self.features(x)), x)


@model(shape=(3, 321, 321), classes=21, parameters=20_505_429, source=SOURCE_V1, task="segmentation")
def deeplab_v1_largefov(shape: Shape, classes: int) -> nn.Module:
    """On VGG16."""
    require_rgb(shape, "deeplab-v1-largefov")
    return LargeFOV(VGG16, classes)


@model(shape=(3, 321, 321), classes=21, parameters=44_048_532, source=SOURCE_V2, task="segmentation")
def deeplab_v2_resnet101(shape: Shape, classes: int) -> nn.Module:
    """Four rates summed, on a dilated ResNet-101."""
    require_rgb(shape, "deeplab-v2-resnet101")
    return DeepLabV2(DilatedResNet(RESNET101), 2048, classes)


@model(shape=(3, 513, 513), classes=21, parameters=42_004_074, source=SOURCE_V3, task="segmentation")
def deeplab_v3_resnet50(shape: Shape, classes: int) -> nn.Module:
    """On a dilated ResNet-50."""
    require_rgb(shape, "deeplab-v3-resnet50")
    return FromTorchvision(
        segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes, aux_loss=True)
    )


@model(shape=(3, 513, 513), classes=21, parameters=60_996_202, source=SOURCE_V3, task="segmentation")
def deeplab_v3_resnet101(shape: Shape, classes: int) -> nn.Module:
    """On a dilated ResNet-101."""
    require_rgb(shape, "deeplab-v3-resnet101")
    return FromTorchvision(
        segmentation.deeplabv3_resnet101(weights=None, weights_backbone=None, num_classes=classes, aux_loss=True)
    )


@model(shape=(3, 513, 513), classes=21, parameters=11_029_328, source=SOURCE_V3, task="segmentation")
def deeplab_v3_mobilenet_v3_large(shape: Shape, classes: int) -> nn.Module:
    """On a dilated MobileNetV3."""
    require_rgb(shape, "deeplab-v3-mobilenet-v3-large")
    return FromTorchvision(
        segmentation.deeplabv3_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=classes, aux_loss=True
        )
    )


@model(shape=(3, 64, 64), classes=5, parameters=195_253, source=SOURCE_SMALL, task="segmentation")
def deeplab_v3_small(shape: Shape, classes: int) -> nn.Module:
    """For small images on a CPU."""
    return SmallDeepLabV3(shape[0], classes, width=16)
