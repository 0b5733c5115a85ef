"""ResNets for small images: torchvision's, with a stem that does not shrink the image before the first block."""

from torch import nn
from torchvision.models import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152

from models.spec import Shape, model

SOURCE = "He et al., 'Deep residual learning', 2015; CIFAR stem of the kuangliu pytorch-cifar zoo"


def _with_small_stem(resnet: ResNet, channels: int) -> nn.Module:
    """Replace the 7x7 stride-2 convolution and the pooling, which take 32x32 pixels down to 8x8, by a 3x3 one."""
    resnet.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    resnet.maxpool = nn.Identity()
    return resnet


@model(shape=(3, 32, 32), classes=10, parameters=11_173_962, source=SOURCE)
def resnet18_cifar(shape: Shape, classes: int) -> nn.Module:
    """ResNet-18."""
    return _with_small_stem(resnet18(num_classes=classes), shape[0])


@model(shape=(3, 32, 32), classes=10, parameters=21_282_122, source=SOURCE)
def resnet34_cifar(shape: Shape, classes: int) -> nn.Module:
    """ResNet-34."""
    return _with_small_stem(resnet34(num_classes=classes), shape[0])


@model(shape=(3, 32, 32), classes=10, parameters=23_520_842, source=SOURCE)
def resnet50_cifar(shape: Shape, classes: int) -> nn.Module:
    """ResNet-50, with bottleneck blocks."""
    return _with_small_stem(resnet50(num_classes=classes), shape[0])


@model(shape=(3, 32, 32), classes=10, parameters=42_512_970, source=SOURCE)
def resnet101_cifar(shape: Shape, classes: int) -> nn.Module:
    """ResNet-101, with bottleneck blocks."""
    return _with_small_stem(resnet101(num_classes=classes), shape[0])


@model(shape=(3, 32, 32), classes=10, parameters=58_156_618, source=SOURCE)
def resnet152_cifar(shape: Shape, classes: int) -> nn.Module:
    """ResNet-152, with bottleneck blocks."""
    return _with_small_stem(resnet152(num_classes=classes), shape[0])
