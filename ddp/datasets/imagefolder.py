"""A folder of images: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (or DIR/test/...)."""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np

from ddp.config import InputConfig, Mistake, require
from ddp.source import Dataset, Shape, Split

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
LARGEST_SMALL_IMAGE = 64
"""Images up to this size are kept as they are; larger ones are stored with a margin of a seventh for random crops."""


def _classes(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


@lru_cache(maxsize=4)
def _scan(folder: Path) -> tuple[list[Path], list[int], list[str]]:
    """Files, labels and class names of one split. Raises Mistake for a folder that cannot be a split."""
    classes = _classes(folder)
    layout = "put images into one folder per class"
    require(bool(classes), f"class folders in {folder}", "none", layout)
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        with os.scandir(folder / name) as entries:
            found = sorted(entry.name for entry in entries if entry.name.lower().endswith(EXTENSIONS))
        require(bool(found), f"images in {folder / name}", "none", "add some or remove the folder")
        files.extend(folder / name / file for file in found)
        labels.extend([label] * len(found))
    return files, labels, classes


def _split_folders(config: InputConfig) -> tuple[Path, Path]:
    require(config.data_dir is not None, "--data-dir with --data imagefolder", "none", "name the folder of the images")
    assert config.data_dir is not None
    root = config.data_dir
    require(root.is_dir(), "an existing folder in --data-dir", str(root), "check the path")
    train = root / "train"
    require(train.is_dir(), f"a folder train in {root}", "none", "use DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg")
    for name in ("val", "test"):
        if (root / name).is_dir():
            return train, root / name
    raise Mistake(f"expected a folder val or test in {root}, got neither; use DIR/val/CLASS/*.jpg")


def count(config: InputConfig) -> int:
    """Training images, from a walk through the folders. Raises Mistake if the folders are not as expected."""
    train, test = (_scan(folder) for folder in _split_folders(config))
    require(
        train[2] == test[2],
        "the same class folders in both splits",
        f"{len(train[2])} and {len(test[2])}, different: {', '.join(sorted(set(train[2]) ^ set(test[2])))}",
        "rename or remove the others",
    )
    return len(train[0])


def _decode(path: Path, size: int) -> np.ndarray:
    """One image as uint8 [3, size, size]: shorter side scaled to `size`, centre kept. Mistake names a bad file."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise Mistake(f"expected an image in {path}, got a file that cannot be decoded ({error}); replace it") from None
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """The images in the model's own size unless --image-size says otherwise; decoded when read."""
    count(config)
    size = config.image_size or native[1]
    stored = size if size <= LARGEST_SMALL_IMAGE else size + size // 7
    splits = []
    for folder in _split_folders(config):
        files, labels, names = _scan(folder)
        splits.append(
            Split(
                labels=np.array(labels, dtype=np.int64),
                read=lambda index, files=files: _decode(files[index], stored),  # type: ignore[misc]
            )
        )
    return Dataset(
        train=splits[0], test=splits[1], shape=(3, size, size), stored=(3, stored, stored), classes=tuple(names)
    )
