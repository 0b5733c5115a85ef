"""Coloured shapes on noisy grounds with the box and the mask of each: drawn by ddp/shapes.py, nothing to download."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ddp.input_config import InputConfig
from ddp.mistake import require
from ddp.shapes import CLASSES, MOST_SHAPES, draw
from ddp.source import Dataset, Shape, Split, image_shape

TRAIN_SAMPLES, TEST_SAMPLES = 2048, 512
TRAIN, TEST = 0, 1
"""Numbers of the splits."""
PLANES = 1
"""Of the masks: eight instances share a plane, one bit each."""


@dataclass(frozen=True)
class _Pictures:
    """Draws the i-th sample of a split."""

    split: int
    size: int

    def __call__(self, index: int) -> np.ndarray:
        """uint8 [4, size, size]: the picture, and the masks as bits."""
        picture, instances = draw(self.split, index, self.size)
        masks = np.packbits([each.mask for each in instances], axis=0, bitorder="little")
        return np.concatenate([picture, masks])


@lru_cache(maxsize=4)
def _labels(split: int, samples: int, size: int) -> np.ndarray:
    """float32 [samples, M, 5]: class, x1, y1, x2, y2 of each shape; class -1 where there are fewer."""
    labels = np.zeros((samples, MOST_SHAPES, 5), dtype=np.float32)
    labels[:, :, 0] = -1
    for index in range(samples):
        for row, instance in enumerate(draw(split, index, size)[1]):
            labels[index, row] = instance.number, *instance.box
    return labels


def count(config: InputConfig) -> int:
    """Training samples, known without drawing any."""
    return TRAIN_SAMPLES


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """Pictures of the model's own size unless --image-size says otherwise. Raises Mistake for other than colours."""
    channels = image_shape(native)[0]
    require(channels == 3, "a model for images of 3 channels with --data shapes-boxes", channels, "choose another")
    size = config.image_size or image_shape(native)[1]

    def split(number: int, samples: int) -> Split:
        return Split(labels=_labels(number, samples, size), read=_Pictures(number, size))

    return Dataset(
        train=split(TRAIN, TRAIN_SAMPLES),
        test=split(TEST, TEST_SAMPLES),
        shape=(3, size, size),
        stored=(3 + PLANES, size, size),
        classes=CLASSES,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        planes=PLANES,
    )
