"""CIFAR-10 in torchvision's files, 50,000 + 10,000 colour images of 32x32 pixels.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from typing import Any

import numpy as np

from ddp.input_config import InputConfig
from ddp.mistake import require
from ddp.source import Dataset, Shape, array_split, resized

FOLDER = "cifar-10-batches-py"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of the training set's values in [0, 1], over all pixels: computed, not the widespread wrong std of 0.20."""


def check_folder(config: InputConfig, folder: str) -> None:
    """Raise Mistake unless torchvision's files are there or may be downloaded."""
    require(
        config.data_dir is not None, f"--data-dir with --data {config.data}", "none", f"name the folder of {folder}"
    )
    assert config.data_dir is not None
    require(
        config.download or (config.data_dir / folder).is_dir(),
        f"the folder {folder} in {config.data_dir}",
        "none",
        "unpack torchvision's archive there, or add --download to let torchvision fetch it",
    )


def from_torchvision(config: InputConfig, factory: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Dataset:
    """A torchvision CIFAR class as a Dataset."""
    splits = []
    for train in (True, False):
        source = factory(root=config.data_dir, train=train, download=config.download)
        images = resized(np.ascontiguousarray(source.data.transpose(0, 3, 1, 2)), config.image_size)
        splits.append(array_split(images, source.targets))
        shape: Shape = images.shape[1:]
    return Dataset(
        train=splits[0], test=splits[1], shape=shape, stored=shape, classes=tuple(source.classes), mean=mean, std=std
    )


def count(config: InputConfig) -> int:
    """Training samples. Raises Mistake if the files are missing."""
    check_folder(config, FOLDER)
    return 50_000


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """CIFAR-10 from --data-dir, in its own size unless --image-size says otherwise."""
    from torchvision.datasets import CIFAR10

    return from_torchvision(config, CIFAR10, MEAN, STD)
