"""Folders of small random images, as ImageFolder and ours read them."""

from pathlib import Path

import numpy as np
from PIL import Image


def image_folder(root: Path, count: int, size: int) -> Path:
    """Write `count` JPEG files of size x size pixels for each of two classes and splits; returns the folder."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    return root
