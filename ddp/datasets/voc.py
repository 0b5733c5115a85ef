"""PASCAL VOC 2012, a class for every pixel: 1,464 + 1,449 photographs from --data-dir.

DIR/VOCdevkit/VOC2012, or DIR itself, holds JPEGImages, SegmentationClass and ImageSets/Segmentation, as in the
official archive. What is trained and tested on are squares from the middle of each photograph, so a score here is not
one of the challenge, which is on whole photographs.
Source: Everingham et al., "The PASCAL visual object classes challenge: a retrospective", 2015.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ddp.images import LARGEST_SMALL_IMAGE, data_root
from ddp.input_config import InputConfig
from ddp.mistake import Mistake, require
from ddp.source import UNKNOWN, Dataset, Shape, Split, image_shape

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""In the order of the numbers in the masks."""
LAYOUT = "unpack the archive VOCtrainval_11-May-2012.tar there"


def _square(image: Image.Image, size: int, resampling: Image.Resampling) -> np.ndarray:
    """Shorter side scaled to `size`, centre kept. -> uint8 [size, size] or [size, size, 3]."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.resize((width, height), resampling).crop((left, top, left + size, top + size)))


@dataclass(frozen=True)
class _Photographs:
    """Reads the i-th photograph and its mask; small, since each loader process gets one."""

    root: Path
    names: np.ndarray
    """bytes [samples]."""
    size: int
    """Height and width of what is read, in pixels."""

    def _files(self, index: int) -> tuple[Path, Path]:
        name = os.fsdecode(bytes(self.names[index]))
        return self.root / "JPEGImages" / f"{name}.jpg", self.root / "SegmentationClass" / f"{name}.png"

    def __call__(self, index: int) -> np.ndarray:
        """Image, and behind it each pixel's number of class, uint8 [4, size, size]. Mistake names a bad file."""
        file, mask_file = self._files(index)
        try:
            with Image.open(file) as image, Image.open(mask_file) as mask:
                require(
                    mask.mode in ("P", "L"),
                    f"numbers of classes (a palette) in {mask_file}",
                    f"an image of mode {mask.mode}",
                    "replace it by that of the archive",
                )
                require(image.size == mask.size, f"the size of {file} in {mask_file}", mask.size, "replace one of them")
                pixels = _square(image.convert("RGB"), self.size, Image.Resampling.BILINEAR)
                numbers = _square(mask, self.size, Image.Resampling.NEAREST)
        except OSError as error:
            raise Mistake(
                f"expected an image in {file} and {mask_file}, got one that cannot be decoded ({error}); replace it"
            ) from None
        largest = int(numbers.max(where=numbers != UNKNOWN, initial=0))
        require(
            largest < len(CLASSES),
            f"numbers below {len(CLASSES)}, or {UNKNOWN}, in {mask_file}",
            largest,
            "replace it by that of the archive",
        )
        return np.concatenate([pixels.transpose(2, 0, 1), numbers[None]])

    def identity(self) -> Iterator[bytes]:
        """What the samples are made from: each file's name, size and time of change, and the way it is decoded."""
        import PIL

        yield os.fsencode(self.root.resolve()) + f"\nPillow {PIL.__version__}, {self.size} pixels\n".encode()
        for index, name in enumerate(map(bytes, self.names)):
            try:
                for found in map(os.stat, self._files(index)):
                    yield b"%s\0%d\0%d\n" % (name, found.st_size, found.st_mtime_ns)
            except OSError as error:
                raise Mistake(f"expected to find every image of {self.root}, got: {error}; start again") from None


def _root(config: InputConfig) -> Path:
    folder = data_root(config)
    for root in (folder / "VOCdevkit" / "VOC2012", folder):
        if (root / "ImageSets" / "Segmentation").is_dir():
            return root
    raise Mistake(f"expected VOCdevkit/VOC2012/ImageSets/Segmentation in {folder}, got no such folder; {LAYOUT}")


@lru_cache(maxsize=4)
def _names(root: Path, split: str) -> tuple[str, ...]:
    """Names of one split's photographs. Raises Mistake with the first whose files are not there."""
    table = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    require(table.is_file(), f"the file {table}", "none", LAYOUT)
    names = tuple(table.read_text(encoding="utf-8").split())
    require(bool(names), f"names of photographs in {table}", "none", LAYOUT)
    for folder, ending in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        there = set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
        missing = next((name for name in names if name + ending not in there), None)
        require(missing is None, f"the file {folder}/{missing}{ending} of {table} in {root}", "none", LAYOUT)
    return names


def count(config: InputConfig) -> int:
    """Training samples. Raises Mistake if a folder or a file that a split names is missing."""
    root = _root(config)
    _names(root, "val")
    return len(_names(root, "train"))


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """Squares of the model's size unless --image-size says otherwise, with a margin for random crops."""
    root, size = _root(config), config.image_size or image_shape(native)[1]
    stored = size if size <= LARGEST_SMALL_IMAGE else size + size // 7

    def split(name: str) -> Split:
        names = _names(root, name)
        photographs = _Photographs(root, np.array([os.fsencode(each) for each in names]), stored)
        labels = np.zeros(len(names), dtype=np.int64)
        return Split(labels=labels, read=photographs, identity=photographs.identity)

    return Dataset(
        train=split("train"),
        test=split("val"),
        shape=(3, size, size),
        stored=(4, stored, stored),
        classes=CLASSES,
        planes=1,
    )
