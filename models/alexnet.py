"""AlexNet for data other than ImageNet; torchvision's `alexnet` is that for 3x224x224."""

from torch import nn

from models.spec import ModelMistake, Shape, model

PAPER = "Krizhevsky et al., 'ImageNet classification with deep convolutional networks', 2012"


SMALLEST = 65
"""Height and width of the images of which the poolings of `alexnet_grey` leave one pixel."""


def _pooled(size: int) -> int:
    """Height after the stem and the three poolings of `alexnet_grey`, in pixels."""
    size = (size + 2 - 11) // 4 + 1
    for _ in range(3):
        size = (size - 3) // 2 + 1
    return size


@model(
    shape=(1, 224, 224),
    classes=10,
    parameters=46_764_746,
    source=f"{PAPER}; the one-column form of 'Dive into deep learning' for Fashion-MNIST",
)
def alexnet_grey(shape: Shape, classes: int) -> nn.Module:
    """AlexNet with 96-256-384-384-256 channels.

    Raises ModelMistake for images under 65x65 pixels, of which its poolings leave nothing.
    """
    channels, height, width = shape
    if min(height, width) < SMALLEST:
        raise ModelMistake(
            f"expected images of at least {SMALLEST}x{SMALLEST} for alexnet-grey, got {height}x{width}; "
            "add --image-size 224"
        )
    return nn.Sequential(
        nn.Conv2d(channels, 96, kernel_size=11, stride=4, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(96, 256, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(256, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Flatten(),
        nn.Linear(256 * _pooled(height) * _pooled(width), 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, classes),
    )


@model(
    shape=(3, 32, 32),
    classes=10,
    parameters=2_472_266,
    source=f"{PAPER}; CIFAR form of the bearpaw pytorch-classification zoo",
)
def alexnet_cifar(shape: Shape, classes: int) -> nn.Module:
    """AlexNet's five convolutions, with smaller poolings, and one linear layer on 256 features."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 64, kernel_size=11, stride=4, padding=5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, classes),
    )
