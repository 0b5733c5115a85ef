"""Sine waves, to give the cosine of at every step: made up, deterministic by index, nothing to download.

A wave has a random phase, and a random frequency of 1 to 3 waves a series. At its first step the cosine's sign cannot
be known, so no model explains all: of 50 steps about 99 %.
"""

import numpy as np

from ddp.input_config import InputConfig
from ddp.source import Dataset, Shape, Split, number_split

TRAIN_SAMPLES, TEST_SAMPLES = 2048, 512
STEPS = 50
"""Steps of a series for a model that was not made for series of a length of its own."""
WAVES = (1.0, 3.0)
"""Fewest and most waves in a series."""


def count(config: InputConfig) -> int:
    """Training samples, known without making any."""
    return TRAIN_SAMPLES


def _split(start: int, samples: int, steps: int) -> Split:
    """Sines and cosines, float32 [samples, steps, 1]."""
    draws = np.array([np.random.default_rng(index).random(2) for index in range(start, start + samples)])
    phase = 2 * np.pi * draws[:, :1]
    waves = WAVES[0] + (WAVES[1] - WAVES[0]) * draws[:, 1:]
    angle = phase + 2 * np.pi * waves * np.arange(steps) / steps
    return number_split(np.sin(angle)[:, :, None], np.cos(angle)[:, :, None].astype(np.float32))


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """Series of as many steps as the model was made for."""
    steps = native[0] if len(native) == 2 else STEPS
    return Dataset(
        train=_split(0, TRAIN_SAMPLES, steps),
        test=_split(TRAIN_SAMPLES, TEST_SAMPLES, steps),
        shape=(steps, 1),
        stored=(steps, 1),
        classes=("cos",),
        flip=False,
    )
