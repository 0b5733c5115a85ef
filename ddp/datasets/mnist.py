"""MNIST, 60,000 + 10,000 grey images of handwritten digits, 28x28 pixels, from the four idx files in --data-dir.

The files are looked for in --data-dir itself and in MNIST/raw under it, where torchvision puts them, packed or not.
Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", 1998.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddp.idx import idx_sizes, read_idx
from ddp.input_config import InputConfig
from ddp.mistake import require
from ddp.source import Dataset, Shape, Split, array_split, resized

TRAIN_SAMPLES = 60_000
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Images and labels of each split; the files may also be packed, with .gz behind the name."""
NAMES = tuple(name for pair in FILES.values() for name in pair)


@dataclass(frozen=True, kw_only=True)
class IdxSet:
    """What MNIST and the sets in its form differ in."""

    torchvision_name: str
    """The class of torchvision that downloads it; it puts the files into a folder of that name."""
    classes: tuple[str, ...]
    mean: tuple[float]
    """Of the training set's values in [0, 1], over all pixels."""
    std: tuple[float]
    """Of the training set's values in [0, 1], over all pixels."""
    flip: bool
    """Whether a mirrored image is still an image of its class."""

    @property
    def folder(self) -> str:
        """Where torchvision puts the files, under its root."""
        return f"{self.torchvision_name}/raw"

    def files(self, config: InputConfig) -> dict[str, Path]:
        """Path of each of the files that is there, by its name. Raises Mistake without --data-dir."""
        root = config.data_dir
        require(root is not None, f"--data-dir with --data {config.data}", "none", "name the folder of the idx files")
        assert root is not None
        found = {}
        for name in NAMES:
            candidates = [place / (name + end) for place in (root, root / self.folder) for end in ("", ".gz")]
            there = [path for path in candidates if path.is_file()]
            if there:
                found[name] = there[0]
        return found

    def count(self, config: InputConfig) -> int:
        """Training samples, from a header. Raises Mistake if files are missing and may not be downloaded."""
        found = self.files(config)
        missing = [name for name in NAMES if name not in found]
        require(
            config.download or not missing,
            f"the files {', '.join(NAMES)}, or the same with .gz, in {config.data_dir} or its folder {self.folder}",
            f"all but {', '.join(missing)}" if found else "none of them",
            "put them there, or add --download to let torchvision fetch them",
        )
        return TRAIN_SAMPLES if missing else idx_sizes(found[FILES["train"][0]], 3)[0]

    def load(self, config: InputConfig) -> Dataset:
        """The images in their own size unless --image-size says otherwise. Raises Mistake for files that do not fit."""
        self.count(config)
        if len(self.files(config)) < len(NAMES):
            import torchvision.datasets

            getattr(torchvision.datasets, self.torchvision_name)(root=config.data_dir, download=True)
        train, test = (self._split(config, split) for split in FILES)
        shape: Shape = train.read(0).shape
        return Dataset(
            train=train,
            test=test,
            shape=shape,
            stored=shape,
            classes=self.classes,
            mean=self.mean,
            std=self.std,
            flip=self.flip,
        )

    def _split(self, config: InputConfig, name: str) -> Split:
        images_file, labels_file = (self.files(config)[file] for file in FILES[name])
        images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
        again = "take both from the same source"
        require(len(images) > 0, f"images in {images_file}", "none", "download it again")
        require(
            len(images) == len(labels),
            f"{len(images)} labels in {labels_file}, as there are images",
            len(labels),
            again,
        )
        largest = int(np.max(labels))
        require(largest < len(self.classes), f"labels under {len(self.classes)} in {labels_file}", largest, again)
        return array_split(resized(images[:, None], config.image_size), labels)


MNIST = IdxSet(
    torchvision_name="MNIST",
    classes=tuple(str(digit) for digit in range(10)),
    mean=(0.1307,),
    std=(0.3081,),
    flip=False,
)


def count(config: InputConfig) -> int:
    """Training samples. Raises Mistake if the files are missing."""
    return MNIST.count(config)


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """MNIST from --data-dir."""
    return MNIST.load(config)
