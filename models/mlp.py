"""A multilayer perceptron."""

import math

from torch import nn

from models.spec import Shape, model


@model(shape=(1, 28, 28), classes=10, parameters=203_530, source="the textbook 784-256-10")
def mlp(shape: Shape, classes: int) -> nn.Module:
    """One hidden layer of 256 units, on images of any size."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), 256),
        nn.ReLU(inplace=True),
        nn.Linear(256, classes),
    )
