"""Rows of numbers and what a linear function of them gives, plus noise: made up, deterministic, nothing to download.

The best that a model can do is R2 = 1 / (1 + NOISE**2) = 0.990.
"""

import math

import numpy as np

from ddp.input_config import InputConfig
from ddp.source import Dataset, Shape, Split, number_split

TRAIN_SAMPLES, TEST_SAMPLES = 2048, 512
NOISE = 0.1
"""Standard deviation of what is added to targets, whose own is 1."""
INTERCEPT = 0.5
_WEIGHTS_SEED = 2**32
"""Behind the seeds of all samples."""


def count(config: InputConfig) -> int:
    """Training samples, known without making any."""
    return TRAIN_SAMPLES


def weights_of(features: int, outputs: int) -> np.ndarray:
    """The true weights, float64 [features, outputs]; those of each output are of length 1."""
    weights = np.random.default_rng(_WEIGHTS_SEED).standard_normal((features, outputs))
    unit: np.ndarray = weights / np.linalg.norm(weights, axis=0)
    return unit


def _split(start: int, samples: int, features: int, outputs: int) -> Split:
    """Normal inputs float32 [samples, features] and targets float32 [samples, outputs]."""
    indices = range(start, start + samples)
    draws = np.array([np.random.default_rng(index).standard_normal(features + outputs) for index in indices])
    inputs, noise = draws[:, :features], draws[:, features:]
    targets = inputs @ weights_of(features, outputs) + INTERCEPT + NOISE * noise
    return number_split(inputs, targets.astype(np.float32))


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """Rows of as many features, and targets, as the model was made for."""
    features = math.prod(native)
    return Dataset(
        train=_split(0, TRAIN_SAMPLES, features, classes),
        test=_split(TRAIN_SAMPLES, TEST_SAMPLES, features, classes),
        shape=(features,),
        stored=(features,),
        classes=tuple(f"y{number}" for number in range(classes)),
        flip=False,
    )
