"""Image files as samples: how they are decoded, and what tells whether one has changed. Imports no torch."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddp.input_config import InputConfig
from ddp.mistake import Mistake, require
from ddp.source import Dataset, Shape, Split, image_shape

LARGEST_SMALL_IMAGE = 64
"""Images up to this size are kept as they are; larger ones are stored with a margin of a seventh for random crops."""


@dataclass(frozen=True)
class Listing:
    """The files of one split and their labels."""

    root: Path
    names: Sequence[str]
    """Paths of the files, relative to `root`."""
    labels: Sequence[int]


@dataclass(frozen=True)
class ImageFiles:
    """Reads the i-th of many image files; a loader process gets it whole, so it is small and can be pickled."""

    root: Path
    names: np.ndarray
    """bytes [samples]: one block of memory, which forked loader processes do not copy by counting references."""
    size: int
    """Height and width of what is read, in pixels."""

    def __call__(self, index: int) -> np.ndarray:
        """Image uint8 [3, size, size]."""
        return decode(self.root / os.fsdecode(bytes(self.names[index])), self.size)

    def identity(self) -> Iterator[bytes]:
        """What the images are made from: each file's name, size and time of change, and the way it is decoded."""
        import PIL

        folder = os.fsencode(self.root.resolve())  # train and val may hold files of the same names, sizes and times
        yield folder + f"\nPillow {PIL.__version__}, {self.size} pixels\n".encode()
        for name in map(bytes, self.names):
            try:
                found = os.stat(os.path.join(folder, name))
            except OSError as error:
                raise Mistake(f"expected to find every image of {self.root}, got: {error}; start again") from None
            yield b"%s\0%d\0%d\n" % (name, found.st_size, found.st_mtime_ns)


def decode(path: Path, size: int) -> np.ndarray:
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


def data_root(config: InputConfig) -> Path:
    """The folder in --data-dir. Raises Mistake unless it is given and exists."""
    require(config.data_dir is not None, f"--data-dir with --data {config.data}", "none", "name the folder of the data")
    assert config.data_dir is not None
    require(config.data_dir.is_dir(), "an existing folder in --data-dir", str(config.data_dir), "check the path")
    return config.data_dir


def image_dataset(
    config: InputConfig, native: Shape, listings: tuple[Listing, Listing], classes: Sequence[str]
) -> Dataset:
    """Training and test images in the model's own size unless --image-size says otherwise; decoded when read."""
    size = config.image_size or image_shape(native)[1]
    stored = size if size <= LARGEST_SMALL_IMAGE else size + size // 7
    splits = []
    for listing in listings:
        names = np.array([os.fsencode(name) for name in listing.names])
        files = ImageFiles(listing.root, names, stored)
        splits.append(
            Split(labels=np.array(listing.labels, dtype=np.int64), read=files, identity=files.identity)
        )  # fmt: skip
    return Dataset(
        train=splits[0], test=splits[1], shape=(3, size, size), stored=(3, stored, stored), classes=tuple(classes)
    )
