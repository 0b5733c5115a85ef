"""Batches on the device, from uint8 images that a store gives."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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

    inputs: Tensor
    """float32 [N, C, H, W] of images, or [N, ...] of what else the model takes."""
    targets: Tensor
    """[N, ...]: what the task compares with, such as classes, int64 [N]."""
    global_count: int
    """Samples of all ranks in this step."""
    indices: Tensor
    """int64 [N], on the CPU: which samples of the split these are."""
    mix: Mix | None = None
    """Set where the images are blends of two samples."""
    masks: Tensor | None = None
    """uint8 [N, planes, H, W], changed by augmentation as the images are."""
    weight: Tensor | None = None
    """float [N]: what a task multiplies each sample's loss by, if it does."""

    def split(self, parts: int) -> "list[Batch]":
        """Cut into micro-batches of nearly equal size, which keep the whole step's count."""

        def cut(tensor: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * parts if tensor is None else tensor.tensor_split(parts)

        mixes: Sequence[Mix | None] = [None] * parts
        if self.mix is not None:
            pairs = zip(self.mix.labels.tensor_split(parts), self.mix.share.tensor_split(parts), strict=True)
            mixes = [Mix(*pair) for pair in pairs]
        fields = [each.tensor_split(parts) for each in (self.inputs, self.targets, self.indices)]
        return [
            Batch(inputs, targets, self.global_count, indices, mix, masks, weight)
            for inputs, targets, indices, mix, masks, weight in zip(
                *fields, mixes, cut(self.masks), cut(self.weight), strict=True
            )
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
    on_batch: Callable[[], None] = lambda: None
    """Called with each batch, for who wants to know that something moves."""

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Choose the epoch that is iterated next, without its first `done` samples."""
        self.epoch = epoch
        if isinstance(self.shares, TrainBatches):
            self.shares.set_epoch(epoch, done)

    def __len__(self) -> int:
        return len(self.shares)

    def check_counted(self, samples: int) -> None:
        """Raise RuntimeError unless all ranks together saw each sample of the split once."""
        if samples != len(self.labels):
            raise RuntimeError(f"expected to evaluate {len(self.labels)} samples once each, counted {samples}")

    def own_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of this rank's loader: nothing, since samples follow from seed and epoch."""
        return {}

    def load_own(self, state: dict[str, Any]) -> None:
        """Undo `own_state`."""

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
            self.on_batch()
            stored, labels, keys = self.copier.finish(copies)
            if stored.is_floating_point():  # numbers, not images
                yield Batch(stored, labels, share.global_count, share.indices)
                continue
            images, masks = self.augment(stored, keys, epoch), None
            if self.dataset.planes:
                images, masks = images.tensor_split([images.size(1) - self.dataset.planes], dim=1)
            inputs = normalize(images)
            own, mix = len(share.indices), None
            if self.mixing is not None:
                inputs, portion = self.mixing.blend(inputs[:own], inputs[own:], share.keys, epoch)
                mix = Mix(labels[own:], portion)
            yield Batch(inputs, labels[:own], share.global_count, share.indices, mix, masks)
