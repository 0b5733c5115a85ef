"""What several image classifiers share: a convolution with BatchNorm, the usual head, and He's first weights."""

from torch import nn


def conv_bn(inputs: int, outputs: int, kernel_size: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, padded so that stride 1 keeps the size, and BatchNorm."""
    convolution = nn.Conv2d(
        inputs, outputs, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    return [convolution, nn.BatchNorm2d(outputs)]


def mean_and_linear(width: int, classes: int) -> list[nn.Module]:
    """The mean over all pixels and a linear layer: [N, width, H, W] -> logits [N, classes]."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def fill_convolutions(module: nn.Module) -> nn.Module:
    """Fill the kernels of all convolutions as He et al. 2015 do, by their outputs, with biases of zero; returns it."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module
