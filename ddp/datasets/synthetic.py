"""Noisy patterns, one per class, in the model's own shape: learnable, deterministic by index, nothing to download."""

from dataclasses import dataclass

import numpy as np

from ddp.input_config import InputConfig
from ddp.source import Dataset, Shape, Split, image_shape

TRAIN_SAMPLES, TEST_SAMPLES = 2048, 512


@dataclass(frozen=True)
class _Patterns:
    """Makes the i-th sample of a split; an object, not a function in `load`, so that loader processes can get it."""

    labels: np.ndarray
    shape: Shape
    start: int

    def __call__(self, index: int) -> np.ndarray:
        pattern = np.random.default_rng(self.labels[index]).integers(64, 192, self.shape, dtype=np.int16)
        noise = np.random.default_rng((self.start, index)).integers(-64, 64, self.shape, dtype=np.int16)
        return (pattern + noise).astype(np.uint8)


def count(config: InputConfig) -> int:
    """Training samples, known without loading anything."""
    return TRAIN_SAMPLES


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """Samples of the model's shape (or of --image-size pixels) and number of classes."""
    channels, height, width = image_shape(native)
    if config.image_size is not None:
        height = width = config.image_size
    shape: Shape = (channels, height, width)

    def split(start: int, samples: int) -> Split:
        labels = np.arange(start, start + samples, dtype=np.int64) % classes
        return Split(labels=labels, read=_Patterns(labels, shape, start))

    return Dataset(
        train=split(0, TRAIN_SAMPLES),
        test=split(TRAIN_SAMPLES, TEST_SAMPLES),
        shape=shape,
        stored=shape,
        classes=tuple(f"pattern {number}" for number in range(classes)),
        mean=(0.5,) * channels,
        std=(0.2,) * channels,
        flip=False,
    )
