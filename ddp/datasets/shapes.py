"""Coloured shapes on noisy grounds with a class for every pixel: drawn when read, always the same, nothing to download.

Class 0 is the ground, the others are those of ddp/shapes.py.
"""

from dataclasses import dataclass

import numpy as np

from ddp.input_config import InputConfig
from ddp.mistake import require
from ddp.shapes import CLASSES, SMALLEST_SIZE, draw
from ddp.source import Dataset, Shape, Split, image_shape

TRAIN_SAMPLES, TEST_SAMPLES = 2048, 512
TRAIN, TEST = 0, 1
"""Numbers of the splits, from which pictures are drawn."""


@dataclass(frozen=True)
class _Pictures:
    """Draws the i-th sample of a split; an object, not a function in `load`, so that loader processes can get it."""

    split: int
    size: int

    def __call__(self, index: int) -> np.ndarray:
        """A picture and behind it the class of each pixel, uint8 [4, size, size]."""
        picture, instances = draw(self.split, index, self.size)
        mask = np.zeros((1, self.size, self.size), dtype=np.uint8)
        for instance in instances:
            mask[0, instance.mask] = 1 + instance.number
        return np.concatenate([picture, mask])


def count(config: InputConfig) -> int:
    """Training samples, known without drawing anything. Raises Mistake for a size at which nothing can be told."""
    require(
        config.image_size is None or config.image_size >= SMALLEST_SIZE,
        f"--image-size of at least {SMALLEST_SIZE} with --data {config.data}",
        config.image_size,
        "try 64",
    )
    return TRAIN_SAMPLES


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """Pictures of the model's height, unless --image-size says otherwise."""
    count(config)
    size = config.image_size or image_shape(native)[1]

    def split(number: int, samples: int) -> Split:
        return Split(labels=np.zeros(samples, dtype=np.int64), read=_Pictures(number, size))

    return Dataset(
        train=split(TRAIN, TRAIN_SAMPLES),
        test=split(TEST, TEST_SAMPLES),
        shape=(3, size, size),
        stored=(4, size, size),
        classes=("ground", *CLASSES),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        planes=1,
    )
