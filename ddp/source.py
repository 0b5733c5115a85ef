"""What a data set is: labels, and a way to read one image. Imports numpy only; the files of ddp/datasets make these."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, ...]
"""Of one sample: channels, height, width of an image; steps, features of a sequence; features of a row of a table."""

PLAIN_IMAGE = (3, 32, 32)
"""Size of images for a model that says none, since it is made for series or rows of numbers."""
UNKNOWN = 255
"""Value of a mask where the class is not known; losses and scores leave it out."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB values in [0, 1]. Source: torchvision's ImageNet weights, transforms of the recipe."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Samples with what belongs to them: `read(i)` gives the i-th image, uint8 [channels, height, width]."""

    labels: np.ndarray
    """[samples, ...]: classes, int64 [samples]; boxes, numbers, or whatever else the task compares with."""
    read: Callable[[int], np.ndarray]
    """Can be pickled: loader processes on GPU machines are not forked."""
    identity: Callable[[], Iterator[bytes]] | None = None
    """Gives pieces of text, one of which changes when a file behind the images does; None where there are no files."""
    whole: "Split | None" = None
    """The split that this one is a part of."""
    rows: np.ndarray | None = None
    """int64 [samples], with `whole`: where the samples are in it."""
    inputs: np.ndarray | None = None
    """float32 [samples, ...]: numbers instead of images, such as tables and series; nothing is read then."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Two splits of samples and how to prepare them."""

    train: Split
    test: Split
    shape: Shape
    """What the model sees."""
    stored: Shape
    """What `read` gives: `shape`, or larger by a margin for random crops; and the planes."""
    classes: tuple[str, ...]
    mean: tuple[float, ...] = field(default=IMAGENET_MEAN)
    """Per channel, of values in [0, 1]."""
    std: tuple[float, ...] = field(default=IMAGENET_STD)
    """Per channel, of values in [0, 1]."""
    flip: bool = True
    """Whether a mirrored image is still an image of its class."""
    planes: int = 0
    """Channels of a stored sample behind those of the image, which hold masks."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all images, decoded."""
        return (len(self.train) + len(self.test)) * int(np.prod(self.stored))


def image_shape(native: Shape) -> tuple[int, int, int]:
    """The images that a model was made for; a model that takes none is refused later, by its task, in its own words."""
    channels, height, width = native if len(native) == 3 else PLAIN_IMAGE
    return channels, height, width


def array_split(images: np.ndarray, labels: Any) -> Split:
    """A split whose images are in memory. images uint8 [samples, channels, height, width]."""
    return Split(labels=np.asarray(labels, dtype=np.int64), read=images.__getitem__)


@dataclass(frozen=True)
class _ReadRows:
    read: Callable[[int], np.ndarray]
    rows: np.ndarray

    def __call__(self, index: int) -> np.ndarray:
        return self.read(int(self.rows[index]))


def part_of(split: Split, rows: np.ndarray) -> Split:
    """A split of the samples `rows`, int64 [samples], of another."""
    return Split(
        labels=split.labels[rows],
        read=_ReadRows(split.read, rows),
        identity=split.identity,
        whole=split,
        rows=rows,
        inputs=None if split.inputs is None else split.inputs[rows],
    )


def _nothing(index: int) -> np.ndarray:
    raise RuntimeError(f"expected no image to be read from a split of numbers, got a call for sample {index}")


def number_split(inputs: np.ndarray, labels: np.ndarray) -> Split:
    """A split of numbers instead of images. inputs float32 [samples, ...], labels [samples, ...]."""
    return Split(labels=labels, read=_nothing, inputs=np.ascontiguousarray(inputs, dtype=np.float32))


def resized(images: np.ndarray, size: int | None) -> np.ndarray:
    """Images [N, C, H, W] uint8, scaled bilinearly to size x size pixels; unchanged if that is None or their size."""
    if size is None or images.shape[2:] == (size, size):
        return images
    import torch
    from torch.nn.functional import interpolate

    scaled = interpolate(torch.from_numpy(images).float(), (size, size), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8).numpy()
