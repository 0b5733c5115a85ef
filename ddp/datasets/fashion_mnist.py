"""Fashion-MNIST, 60,000 + 10,000 grey images of clothes, 28x28 pixels, from four idx files, as ddp/datasets/mnist.py.

Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST", 2017.
"""

from ddp.datasets.mnist import IdxSet
from ddp.input_config import InputConfig
from ddp.source import Dataset, Shape

FASHION_MNIST = IdxSet(
    torchvision_name="FashionMNIST",
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    mean=(0.2860,),
    std=(0.3530,),
    flip=True,
)


def count(config: InputConfig) -> int:
    """Training samples. Raises Mistake if the files are missing."""
    return FASHION_MNIST.count(config)


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """Fashion-MNIST from --data-dir."""
    return FASHION_MNIST.load(config)
