"""CIFAR-100 in torchvision's files, 50,000 + 10,000 colour images of 32x32 pixels.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from ddp.datasets.cifar10 import check_folder, from_torchvision
from ddp.input_config import InputConfig
from ddp.source import Dataset, Shape

FOLDER = "cifar-100-python"
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
"""Of the training set's values in [0, 1], over all pixels."""


def count(config: InputConfig) -> int:
    """Training samples. Raises Mistake if the files are missing."""
    check_folder(config, FOLDER)
    return 50_000


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """CIFAR-100 from --data-dir, in its own size unless --image-size says otherwise."""
    from torchvision.datasets import CIFAR100

    return from_torchvision(config, CIFAR100, MEAN, STD)
