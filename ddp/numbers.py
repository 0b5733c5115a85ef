"""Data that is numbers instead of images: what of the options means nothing there. Imports no torch."""

from dataclasses import fields

from ddp.augment_config import AugmentConfig
from ddp.config import TrainConfig
from ddp.mistake import require
from ddp.source import Dataset


def check_numbers(config: TrainConfig, dataset: Dataset) -> None:
    """Raise Mistake if options change images, and the data has none."""
    if dataset.train.inputs is None:
        return
    plain, remedy = AugmentConfig(), "omit it, or choose data with images"
    for name in (field.name for field in fields(AugmentConfig)):
        value = getattr(config.augment, name)
        flag = f"--{name.replace('_', '-')}"
        require(value == getattr(plain, name), f"no {flag} with numbers, which are no images", value, remedy)
    shifts, size = config.input.augment, config.input.image_size
    require(shifts in ("auto", "none"), "no --augment with numbers, which are no images", shifts, remedy)
    require(size is None, "no --image-size with numbers, which are no images", size, remedy)
