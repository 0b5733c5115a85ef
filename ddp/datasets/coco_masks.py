"""The data of coco.py with a mask of each object, for models that learn masks; takes more memory and time."""

from ddp.datasets import coco
from ddp.input_config import InputConfig
from ddp.source import Dataset, Shape


def count(config: InputConfig) -> int:
    """Training images, from the JSON. Raises Mistake with what is not as expected in it."""
    return coco.count(config, masks=True)


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """The images, and the masks as bits behind their colours; decoded when read."""
    return coco.load(config, native, classes, masks=True)
