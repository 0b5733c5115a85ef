"""A folder of images: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (or DIR/test/...)."""

import os
from functools import lru_cache
from pathlib import Path

from ddp.images import LARGEST_SMALL_IMAGE as LARGEST_SMALL_IMAGE
from ddp.images import Listing, data_root, image_dataset
from ddp.input_config import InputConfig
from ddp.mistake import Mistake, require
from ddp.source import Dataset, Shape

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


def _classes(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


@lru_cache(maxsize=4)
def _scan(folder: Path) -> tuple[Listing, list[str]]:
    """Files with their labels, and class names of one split. Raises Mistake for a folder that cannot be a split."""
    classes = _classes(folder)
    layout = "put images into one folder per class"
    require(bool(classes), f"class folders in {folder}", "none", layout)
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        with os.scandir(folder / name) as entries:
            found = sorted(entry.name for entry in entries if entry.name.lower().endswith(EXTENSIONS))
        require(bool(found), f"images in {folder / name}", "none", "add some or remove the folder")
        files.extend(f"{name}/{file}" for file in found)
        labels.extend([label] * len(found))
    return Listing(folder, files, labels), classes


def _split_folders(config: InputConfig) -> tuple[Path, Path]:
    root = data_root(config)
    train = root / "train"
    require(train.is_dir(), f"a folder train in {root}", "none", "use DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg")
    for name in ("val", "test"):
        if (root / name).is_dir():
            return train, root / name
    raise Mistake(f"expected a folder val or test in {root}, got neither; use DIR/val/CLASS/*.jpg")


def count(config: InputConfig) -> int:
    """Training images, from a walk through the folders. Raises Mistake if the folders are not as expected."""
    (train, train_classes), (_, test_classes) = (_scan(folder) for folder in _split_folders(config))
    different = ", ".join(sorted(set(train_classes) ^ set(test_classes)))
    require(
        train_classes == test_classes,
        "the same class folders in both splits",
        f"{len(train_classes)} and {len(test_classes)}, different: {different}",
        "rename or remove the others",
    )
    return len(train.names)


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """The images in the model's own size unless --image-size says otherwise; decoded when read."""
    count(config)
    (train, names), (test, _) = (_scan(folder) for folder in _split_folders(config))
    return image_dataset(config, native, (train, test), names)
