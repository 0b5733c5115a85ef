"""COCO's instances: DIR/annotations/instances_train2017.json with DIR/train2017/, and the same of val2017.

Or any data in that format: DIR/train.json and DIR/val.json, whose file names are relative to DIR. Images are scaled so
that the whole fits into a square, whose rest is black. Boxes alone; `coco-masks` gives each object's mask, too.
"""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ddp.coco_ap import CROWD
from ddp.coco_index import Index, read_index
from ddp.images import data_root
from ddp.input_config import InputConfig
from ddp.mistake import Mistake, require
from ddp.source import Dataset, Shape, Split, image_shape

MOST_BOXES = 100
"""Boxes of an image that are kept at most, the largest; COCO's training images have at most 93 objects."""


def _fit(height: int, width: int, size: int) -> tuple[float, int, int]:
    """The scale that fits an image into a square, and where its upper and left edge come to lie."""
    scale = size / max(height, width)
    return scale, (size - round(height * scale)) // 2, (size - round(width * scale)) // 2


@dataclass(frozen=True)
class Images:
    """Reads the i-th image of a split, and its masks as bits behind the colours if `planes` is not 0."""

    root: Path
    index: Index
    size: int
    planes: int

    def __call__(self, index: int) -> np.ndarray:
        """uint8 [3 + planes, size, size]. Raises Mistake with a bad file."""
        from PIL import Image

        path, size = self.root / os.fsdecode(bytes(self.index.names[index])), self.size
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            raise Mistake(
                f"expected an image in {path}, got one that cannot be decoded ({error}); replace it"
            ) from None
        height, width = map(int, self.index.sizes[index])
        require(
            image.size == (width, height),
            f"an image of {width}x{height} pixels in {path}",
            "x".join(map(str, image.size)),
            "replace it, or correct width and height in the JSON",
        )
        scale, top, left = _fit(height, width, size)
        scaled = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        whole = Image.new("RGB", (size, size))
        whole.paste(scaled, (left, top))
        colours = np.asarray(whole).transpose(2, 0, 1)
        return np.ascontiguousarray(np.concatenate([colours, self._masks(index)]) if self.planes else colours)

    def _masks(self, index: int) -> np.ndarray:
        """uint8 [planes, size, size]: bit j of plane k is instance 8 k + j."""
        first, last = self.index.starts[index : index + 2].tolist()
        last = min(last, first + 8 * self.planes)
        planes = np.zeros((self.planes, self.size, self.size), dtype=np.uint8)
        for place in range(last - first):
            mask = _drawn(self.index.outline(first + place), self.index.sizes[index], self.size)
            planes[place // 8] |= mask.astype(np.uint8) << (place % 8)
        return planes

    def identity(self) -> Iterator[bytes]:
        """What the images are made from: each file's name, size and time of change, and the way it is read."""
        import PIL

        yield f"{self.root.resolve()}\nPillow {PIL.__version__}, {self.size} pixels, {self.planes} planes\n".encode()
        yield self.index.text
        for name in map(bytes, self.index.names):
            try:
                found = os.stat(self.root / os.fsdecode(name))
            except OSError as error:
                raise Mistake(f"expected to find every image of {self.root}, got: {error}; start again") from None
            yield b"%s\0%d\0%d\n" % (name, found.st_size, found.st_mtime_ns)


def _drawn(outline: object, file_size: np.ndarray, size: int) -> np.ndarray:
    """The mask of one instance, bool [size, size], from its polygons or its run lengths in a file of that size."""
    from PIL import Image, ImageDraw

    height, width = map(int, file_size)
    scale, top, left = _fit(height, width, size)
    whole = Image.new("L", (size, size))
    if isinstance(outline, dict) and isinstance(outline.get("counts"), list):
        runs = outline["counts"]  # of pixels without and with the object in turn, down the columns
        flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)
        mask = Image.fromarray(flat.reshape(width, height).T * 255)
        whole.paste(mask.resize((round(width * scale), round(height * scale)), Image.Resampling.NEAREST), (left, top))
        return np.asarray(whole) > 0
    draw = ImageDraw.Draw(whole)
    for polygon in outline if isinstance(outline, list) else []:
        # PIL's whole numbers are the middles of pixels, COCO's their edges.
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2) * scale + (left - 0.5, top - 0.5)
        if len(points) > 2:
            draw.polygon([(x, y) for x, y in points.tolist()], fill=1)
    return np.asarray(whole) > 0


def labels_of(index: Index, size: int, most: int) -> np.ndarray:
    """float32 [images, most, 5]: class, x1, y1, x2, y2 in pixels of the scaled image; class -1 where there is no box,
    and a crowd of class c as -2 - c, so that it trains nothing and is neither right nor wrong to find."""
    labels = np.zeros((len(index.names), most, 5), dtype=np.float32)
    labels[:, :, 0] = -1
    for image, (height, width) in enumerate(index.sizes.tolist()):
        scale, top, left = _fit(height, width, size)
        first = int(index.starts[image])
        last = min(int(index.starts[image + 1]), first + most)
        own = labels[image, : last - first]
        own[:, 0] = np.where(index.crowd[first:last], CROWD - index.classes[first:last], index.classes[first:last])
        own[:, 1:] = (index.boxes[first:last] * scale + (left, top, left, top)).clip(0, size)
    return labels


def _files(config: InputConfig) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
    """JSON and folder of images of the training and the test split. Raises Mistake if one is not there."""
    root = data_root(config)
    layouts = [
        [(root / "annotations" / f"instances_{name}2017.json", root / f"{name}2017") for name in ("train", "val")],
        [(root / f"{name}.json", root) for name in ("train", "val")],
    ]
    for train, test in layouts:
        if train[0].is_file():
            require(test[0].is_file(), f"a file {test[0].name} beside {train[0]}", "none", "add it")
            for _, folder in (train, test):
                require(folder.is_dir(), f"a folder of images {folder}", "none", "add it")
            return train, test
    raise Mistake(
        f"expected annotations/instances_train2017.json or train.json in {root}, got neither; "
        "unpack COCO's annotations there"
    )


@lru_cache(maxsize=2)
def _scan(train: Path, test: Path, masks: bool) -> tuple[Index, Index]:
    indexes = read_index(train, outlines=masks), read_index(test, outlines=masks)
    different = sorted(set(indexes[0].categories) ^ set(indexes[1].categories))
    require(
        indexes[0].categories == indexes[1].categories,
        f"the same categories in {train} and {test}",
        f"others: {', '.join(different) or 'in another order'}",
        "replace one",
    )
    return indexes


def count(config: InputConfig, *, masks: bool = False) -> int:
    """Training images, from the JSON. Raises Mistake with what is not as expected in it."""
    (train, _), (test, _) = _files(config)
    indexes = _scan(train, test, masks)
    most = max(index.most for index in indexes)
    if most > MOST_BOXES:
        warnings.warn(f"an image has {most} objects; of each image the {MOST_BOXES} largest are kept", stacklevel=2)
    return len(indexes[0].names)


def load(config: InputConfig, native: Shape, classes: int, *, masks: bool = False) -> Dataset:
    """The images in the model's own size unless --image-size says otherwise; decoded when read."""
    files, size = _files(config), config.image_size or image_shape(native)[1]
    indexes = _scan(files[0][0], files[1][0], masks)
    most = [max(1, min(MOST_BOXES, index.most)) for index in indexes]
    planes = -(-max(most) // 8) if masks else 0
    splits = []
    for (_, root), index, boxes in zip(files, indexes, most, strict=True):
        images = Images(root, index, size, planes)
        splits.append(Split(labels=labels_of(index, size, boxes), read=images, identity=images.identity))
    return Dataset(
        train=splits[0],
        test=splits[1],
        shape=(3, size, size),
        stored=(3 + planes, size, size),
        classes=indexes[0].categories,
        planes=planes,
    )
