"""Handwritten digits, 8x8 pixels, 1,797 images: comes with scikit-learn, so it needs no download.

Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak, 1998), as sklearn.datasets.load_digits.
"""

import numpy as np

from ddp.input_config import InputConfig
from ddp.source import Dataset, Shape, array_split, resized

TEST_SAMPLES = 360
TRAIN_SAMPLES = 1797 - TEST_SAMPLES


def count(config: InputConfig) -> int:
    """Training samples, known without loading anything."""
    return TRAIN_SAMPLES


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """The digits, in their own size unless --image-size says otherwise; the last fifth, unshuffled, is the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    images = resized(images, config.image_size)
    shape: Shape = (1, images.shape[2], images.shape[3])
    return Dataset(
        train=array_split(images[:TRAIN_SAMPLES], digits.target[:TRAIN_SAMPLES]),
        test=array_split(images[TRAIN_SAMPLES:], digits.target[TRAIN_SAMPLES:]),
        shape=shape,
        stored=shape,
        classes=tuple(str(digit) for digit in range(10)),
        mean=(0.305,),
        std=(0.375,),
        flip=False,
    )
