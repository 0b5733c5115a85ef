"""A small convolutional net for images of any size, as small as 8x8."""

from torch import nn

from models.spec import Shape, model


def _conv_bn_relu(inputs: int, outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


@model(shape=(1, 8, 8), classes=10, parameters=93_546, source="written for ringmark: the plainest net with BatchNorm")
def convnet(shape: Shape, classes: int) -> nn.Module:
    """Four 3x3 convolutions with BatchNorm, one halving of the image, a global average and a linear layer."""
    return nn.Sequential(
        *_conv_bn_relu(shape[0], 32),
        *_conv_bn_relu(32, 64),
        nn.MaxPool2d(2),
        *_conv_bn_relu(64, 64),
        *_conv_bn_relu(64, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )
