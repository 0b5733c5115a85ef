"""Models that are one linear layer: regression, and classification in its two textbook forms."""

import math

import torch
from torch import Tensor, nn

from models.spec import Shape, model


class LogOdds(nn.Module):
    """One linear function, the log-odds of class 1: [N, ...] -> logits [N, 2], of which the first is 0."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits whose softmax is the logistic function of the log-odds."""
        log_odds = self.linear(x.flatten(1))
        return torch.cat([torch.zeros_like(log_odds), log_odds], dim=1)


@model(shape=(13,), classes=1, parameters=14, source="the textbook w x + b", task="regression")
def linear_regression(shape: Shape, classes: int) -> nn.Module:
    """Linear regression: a row of numbers [N, features] -> one number for each thing to predict, [N, classes]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


@model(
    shape=(1, 28, 28), classes=10, parameters=7_850, source="the textbook; with two classes, w x + b is the log-odds"
)
def logistic_regression(shape: Shape, classes: int) -> nn.Module:
    """Logistic regression: with two classes one weight for each feature, as the log-odds need; with more, it is softmax
    regression."""
    if classes == 2:
        return LogOdds(math.prod(shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


@model(shape=(1, 28, 28), classes=10, parameters=7_850, source="the textbook 784-10")
def softmax_regression(shape: Shape, classes: int) -> nn.Module:
    """Softmax regression: weights for each class, also where there are two."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
