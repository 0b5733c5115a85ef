"""VGG for small images: torchvision's convolutions with BatchNorm, and one linear layer instead of three."""

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from models.layers import fill_convolutions, mean_and_linear
from models.spec import Shape, model

SOURCE = "Simonyan, Zisserman, 'Very deep convolutional networks', 2014; CIFAR form of the kuangliu pytorch-cifar zoo"


def _vgg(widths: str, shape: Shape, classes: int) -> nn.Module:
    """The configuration `widths` is a letter of the paper's table 1. Five poolings need 32 pixels each way."""
    features = make_layers(cfgs[widths], batch_norm=True)
    features[0] = nn.Conv2d(shape[0], 64, kernel_size=3, padding=1)  # torchvision's takes three channels only
    return fill_convolutions(nn.Sequential(features, *mean_and_linear(512, classes)))


@model(shape=(3, 32, 32), classes=10, parameters=9_231_114, source=SOURCE)
def vgg11_cifar(shape: Shape, classes: int) -> nn.Module:
    """VGG-11 with BatchNorm."""
    return _vgg("A", shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=9_416_010, source=SOURCE)
def vgg13_cifar(shape: Shape, classes: int) -> nn.Module:
    """VGG-13 with BatchNorm."""
    return _vgg("B", shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=14_728_266, source=SOURCE)
def vgg16_cifar(shape: Shape, classes: int) -> nn.Module:
    """VGG-16 with BatchNorm."""
    return _vgg("D", shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=20_040_522, source=SOURCE)
def vgg19_cifar(shape: Shape, classes: int) -> nn.Module:
    """VGG-19 with BatchNorm."""
    return _vgg("E", shape, classes)
