"""DenseNet for small images: torchvision's, with a stem that does not shrink the image before the first block."""

from torch import nn
from torchvision.models import densenet121

from models.spec import Shape, model

SOURCE = "Huang et al., 'Densely connected convolutional networks', 2017; CIFAR stem of the kuangliu pytorch-cifar zoo"


@model(shape=(3, 32, 32), classes=10, parameters=6_956_298, source=SOURCE)
def densenet121_cifar(shape: Shape, classes: int) -> nn.Module:
    """DenseNet-121: growth 32, blocks of 6, 12, 24 and 16 layers."""
    densenet = densenet121(num_classes=classes)
    densenet.features.conv0 = nn.Conv2d(shape[0], 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(densenet.features.conv0.weight)  # torchvision's start for this family, by the inputs
    for name in ("norm0", "relu0", "pool0"):  # the first dense layer normalises its input itself
        setattr(densenet.features, name, nn.Identity())
    return densenet
