"""LeNet-5 in its two common forms: 28x28 grey (padded to 32) and 32x32 colour."""

from torch import nn

from models.spec import ModelMistake, Shape, model

SOURCE = "LeCun et al., 'Gradient-based learning applied to document recognition', 1998; ReLU and max pooling"


@model(shape=(3, 32, 32), classes=10, parameters=62_006, source=SOURCE)
def lenet5(shape: Shape, classes: int) -> nn.Module:
    """LeNet-5. Raises ModelMistake unless images are 28 or 32 pixels high and wide."""
    channels, height, width = shape
    if height != width or height not in (28, 32):
        raise ModelMistake(f"expected images of 28x28 or 32x32 for lenet5, got {height}x{width}; add --image-size 32")
    return nn.Sequential(
        nn.Conv2d(channels, 6, kernel_size=5, padding=(32 - height) // 2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(inplace=True),
        nn.Linear(120, 84),
        nn.ReLU(inplace=True),
        nn.Linear(84, classes),
    )
