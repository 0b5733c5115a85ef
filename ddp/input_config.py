"""Options of the data: where samples come from and how they reach the device. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddp.mistake import require


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Where samples come from and how they are prepared."""

    data: str = "synthetic"
    """Data set: a file of ddp/datasets, see `ringmark list data`."""
    data_dir: Path | None = None
    """Folder of a data set that is read from disk."""
    download: bool = False
    """Let torchvision download the data set into --data-dir if it is not there."""
    image_size: int | None = None
    """Height and width of the samples in pixels; by default the model's own."""
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    """Decode images once, into memory shared by the ranks of a node or a file on disk, or at each reading (none).

    auto: into memory if they fit. Data sets that are no image files are in memory with disk, too.
    """
    cache_dir: Path | None = None
    """Folder of `--cache disk`, by default .ringmark-cache in --data-dir; best on a disk of the node.

    What is in it may be deleted at any time.
    """
    cache_gib: float = 8.0
    """What `--cache auto` may put into memory on each node, in GiB."""
    workers: int = 2
    """Loader processes per rank for images that are not held in memory."""
    prefetch: int = 2
    """Batches that are copied to a GPU ahead of their use, while it computes."""
    folds: int = 0
    """Cut the training set into this many folds, train on all but one and test on that one; 0: use the test set."""
    fold: int = 0
    """The fold to test on, counted from 0; matters with --folds only."""
    balance: bool = False
    """Draw training samples with replacement, so that every class is seen equally often.

    An epoch has as many draws as there are samples.
    """
    augment: Literal["auto", "none", "crop", "crop-flip"] = "auto"
    """Random shifts and horizontal flips of training images; auto: what suits the data set."""
    crop_padding: int | None = None
    """Pixels a random crop may shift an image; by default an eighth of its size."""

    def __post_init__(self) -> None:
        require(
            self.image_size is None or self.image_size >= 1,
            "--image-size of at least 1",
            self.image_size,
            "give pixels, such as 32",
        )
        require(self.cache_gib >= 0, "--cache-gib of at least 0", self.cache_gib, "give GiB, such as 8")
        require(self.workers >= 0, "--workers of at least 0", self.workers, "0 decodes in the rank itself")
        require(
            self.crop_padding is None or self.crop_padding >= 0,
            "--crop-padding of at least 0",
            self.crop_padding,
            "0 shifts nothing",
        )
        require(self.prefetch >= 0, "--prefetch of at least 0", self.prefetch, "0 copies each batch when it is used")
        require(
            self.cache_dir is None or self.cache == "disk",
            "--cache disk with --cache-dir",
            f"--cache {self.cache}",
            "add --cache disk",
        )
        require(
            self.folds == 0 or self.folds >= 2,
            "--folds of at least 2, or 0 for the test set",
            self.folds,
            "give a whole number, such as 5",
        )
        require(
            0 <= self.fold < max(1, self.folds),
            f"--fold from 0 to {max(1, self.folds) - 1} with --folds {self.folds}",
            self.fold,
            "folds are counted from 0",
        )
