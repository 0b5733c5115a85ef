"""Batches on the device, from uint8 images that a store gives."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddp.augment import Augment, normalize_for
from ddp.mixing import Mixing
from ddp.prefetch import Copier, Copies, ahead
from ddp.sampler import EvalBatches, Share, TrainBatches
from ddp.source import Dataset
from ddp.stores import Store


class Mix(NamedTuple):
    """The other sample that each image of a batch is blended with."""

    labels: Tensor
    """int64 [N], of the other samples."""
    share: Tensor
    """float32 [N], of the other samples in the images and in the labels."""


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step, on its device."""

    images: Tensor
    """float32 [N, C, H, W]."""
    labels: Tensor
    """int64 [N]."""
    global_count: int
    """Samples of all ranks in this step."""
    indices: Tensor
    """int64 [N], on the CPU: which samples of the split these are."""
    mix: Mix | None = None
    """Set where the images are blends of two samples."""

    def split(self, parts: int) -> "list[Batch]":
        """Cut into micro-batches of nearly equal size, which keep the whole step's count."""
        fields = [each.tensor_split(parts) for each in (self.images, self.labels, self.indices)]
        mixes: list[Mix | None] = [None] * parts
        if self.mix is not None:
            pairs = zip(self.mix.labels.tensor_split(parts), self.mix.share.tensor_split(parts), strict=True)
            mixes = [Mix(*pair) for pair in pairs]
        return [
            Batch(images, labels, self.global_count, indices, mix)
            for images, labels, indices, mix in zip(*fields, mixes, strict=True)
        ]


@dataclass
class Loader:
    """Iterates over one split's batches on the device; `set_epoch` chooses order and augmentation."""

    store: Store
    labels: Tensor
    shares: TrainBatches | EvalBatches
    augment: Augment
    dataset: Dataset
    copier: Copier
    memory_format: torch.memory_format
    mixing: Mixing | None = None
    prefetch: int = 0
    """Batches that are copied ahead of their use, if the device is a GPU."""
    epoch: int = 0

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Choose the epoch that is iterated next, without its first `done` samples."""
        self.epoch = epoch
        if isinstance(self.shares, TrainBatches):
            self.shares.set_epoch(epoch, done)

    def __len__(self) -> int:
        return len(self.shares)

    def _copies(self, epoch: int) -> Iterator[tuple[Share, Copies]]:
        """Stored images, labels and keys of each share, on their way to the device; with mixing, partners follow."""
        shares = list(self.shares)
        rows, keys = [share.indices for share in shares], [share.keys for share in shares]
        if self.mixing is not None:
            partners = [self.mixing.partners(key, epoch) for key in keys]
            rows, keys = ([torch.cat(pair) for pair in zip(own, partners, strict=True)] for own in (rows, keys))
        for share, row, key, stored in zip(shares, rows, keys, self.store.read(rows), strict=True):
            yield share, self.copier.start((stored, self.labels[row], key))

    def __iter__(self) -> Iterator[Batch]:
        epoch, device = self.epoch, self.copier.device
        normalize = normalize_for(self.dataset, device, self.memory_format)
        for share, copies in ahead(self._copies(epoch), self.prefetch if device.type == "cuda" else 0):
            stored, labels, keys = self.copier.finish(copies)
            images = normalize(self.augment(stored, keys, epoch))
            own, mix = len(share.indices), None
            if self.mixing is not None:
                images, portion = self.mixing.blend(images[:own], images[own:], share.keys, epoch)
                mix = Mix(labels[own:], portion)
            yield Batch(images, labels[:own], share.global_count, share.indices, mix)
