"""Handwritten digits, 8x8 pixels, 1,797 images: comes with scikit-learn, so it needs no download.

Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak, 1998), as sklearn.datasets.load_digits.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ddp.input_config import InputConfig
from ddp.source import Dataset, Shape, array_split, resized

TEST_SAMPLES = 360
TRAIN_SAMPLES = 1797 - TEST_SAMPLES


def count(config: InputConfig) -> int:
    """Training samples, known without loading anything."""
    return TRAIN_SAMPLES


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 8, 8], values 0 to 16, and labels [1797].

    Straight from scikit-learn's own file: to import the library takes each rank over a second.
    """
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not file.exists():  # a version that keeps it elsewhere
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images, digits.target
    rows = np.loadtxt(file, delimiter=",")
    return rows[:, :64].reshape(-1, 8, 8), rows[:, 64].astype(np.int64)


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """The digits, in their own size unless --image-size says otherwise; the last fifth, unshuffled, is the test set."""
    pixels, labels = _read()
    images = np.round(pixels * (255 / 16)).astype(np.uint8)[:, None]
    images = resized(images, config.image_size)
    shape: Shape = (1, images.shape[2], images.shape[3])
    return Dataset(
        train=array_split(images[:TRAIN_SAMPLES], labels[:TRAIN_SAMPLES]),
        test=array_split(images[TRAIN_SAMPLES:], labels[TRAIN_SAMPLES:]),
        shape=shape,
        stored=shape,
        classes=tuple(str(digit) for digit in range(10)),
        mean=(0.305,),
        std=(0.375,),
        flip=False,
    )
