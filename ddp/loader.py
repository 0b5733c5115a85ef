"""Batches on the device: from uint8 images held in memory, or decoded by loader processes."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddp.augment import Augment, normalize_for
from ddp.config import InputConfig
from ddp.context import DistContext
from ddp.sampler import EvalBatches, Share, TrainBatches
from ddp.shared import shared_uint8
from ddp.source import Dataset, Split
from ddp.stop import SIGNALS


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step, on its device."""

    images: Tensor
    """float32 [N, C, H, W]."""
    labels: Tensor
    """int64 [N]."""
    global_count: int
    """Samples of all ranks in this step."""


class Store(Protocol):
    """Where a split's stored images come from."""

    def batches(self, shares: TrainBatches | EvalBatches) -> Iterator[tuple[Share, Tensor]]:
        """The images of each share, uint8 [N, C, H, W], on the CPU."""
        ...


class MemoryStore:
    """A split decoded once into memory that all ranks of the node share."""

    def __init__(self, split: Split, dataset: Dataset, ctx: DistContext, label: str) -> None:
        self.images = shared_uint8((len(split), *dataset.stored), ctx, label)
        for index in range(ctx.local_rank, len(split), ctx.local_world_size):
            self.images[index] = torch.from_numpy(split.read(index))
        ctx.barrier()

    def batches(self, shares: TrainBatches | EvalBatches) -> Iterator[tuple[Share, Tensor]]:
        """One gather per batch; index_select copies whole images, which indexing does several times slower."""
        for share in shares:
            yield share, self.images.index_select(0, share.indices)


class _Reader(torch.utils.data.Dataset[Tensor]):
    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.stack([torch.from_numpy(self.split.read(int(index))) for index in indices])


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    """Signals are for the rank, which ends its workers itself; decoding in one thread leaves the cores to others.

    torchrun signals the whole process group: a worker that obeyed would kill the run before its checkpoint is written.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


class StreamStore:
    """A split decoded anew each time it is read, by loader processes."""

    def __init__(self, split: Split, workers: int, device: torch.device) -> None:
        self.split, self.workers, self.device = split, workers, device

    def batches(self, shares: TrainBatches | EvalBatches) -> Iterator[tuple[Share, Tensor]]:
        """Images in the order of the shares, decoded ahead by the workers."""
        # A forked worker inherits this rank's CUDA and network handles, which neither survives; on the CPU it is safe.
        start_method = "forkserver" if self.device.type == "cuda" else "fork"
        dealt = list(shares)
        loader = DataLoader(
            _Reader(self.split),
            batch_sampler=[share.indices.tolist() for share in dealt],
            num_workers=self.workers,
            collate_fn=_as_is,
            generator=torch.Generator(),  # or each iteration draws from the generator that dropout draws from
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_start_worker,
            multiprocessing_context=multiprocessing.get_context(start_method) if self.workers else None,
        )
        yield from zip(dealt, loader, strict=True)


@dataclass
class Loader:
    """Iterates over one split's batches on the device; `set_epoch` chooses order and augmentation."""

    store: Store
    labels: Tensor
    shares: TrainBatches | EvalBatches
    augment: Augment
    dataset: Dataset
    device: torch.device
    memory_format: torch.memory_format
    epoch: int = 0

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Choose the epoch that is iterated next, without its first `done` samples."""
        self.epoch = epoch
        if isinstance(self.shares, TrainBatches):
            self.shares.set_epoch(epoch, done)

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[Batch]:
        normalize = normalize_for(self.dataset, self.device, self.memory_format)
        for share, stored in self.store.batches(self.shares):
            images = stored.to(self.device, non_blocking=True)
            indices = share.indices.to(self.device, non_blocking=True)
            labels = self.labels[share.indices].to(self.device, non_blocking=True)
            cropped = self.augment.crop(images, indices, self.epoch)
            yield Batch(normalize(cropped), labels, share.global_count)


def _available_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def held_in_memory(config: InputConfig, dataset: Dataset) -> bool:
    """Whether the decoded images are kept: if asked for, or if they fit the budget and half of the free memory."""
    if config.cache != "auto":
        return config.cache == "memory"
    return dataset.size_bytes <= min(config.cache_gib * 2**30, _available_bytes() / 2)


def augment_for(config: InputConfig, dataset: Dataset, seed: int, *, train: bool) -> Augment:
    """The augmentation that the options ask for; `auto` is what suits the data set."""
    size, stored = dataset.shape[1], dataset.stored[1]
    default_padding = size // 8 if stored == size else 0
    padding = default_padding if config.crop_padding is None else config.crop_padding
    wants_flip = config.augment == "crop-flip" or (config.augment == "auto" and dataset.flip)
    return Augment(size=size, padding=padding, flip=wants_flip, random=train and config.augment != "none", seed=seed)


def make_loaders(
    config: InputConfig,
    dataset: Dataset,
    shares: tuple[TrainBatches, EvalBatches],
    ctx: DistContext,
    *,
    seed: int,
    channels_last: bool,
) -> tuple[Loader, Loader]:
    """Loaders of the training and the test split. Every rank must call this: it may decode into shared memory."""
    stores: list[Store] = []
    in_memory = all(ctx.gather(held_in_memory(config, dataset)))
    for split, label in ((dataset.train, "train"), (dataset.test, "test")):
        if in_memory:
            stores.append(MemoryStore(split, dataset, ctx, label))
        else:
            stores.append(StreamStore(split, config.workers, ctx.device))
    train, test = (
        Loader(
            store=store,
            labels=torch.from_numpy(split.labels),
            shares=shares[position],
            augment=augment_for(config, dataset, seed, train=position == 0),
            dataset=dataset,
            device=ctx.device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )
        for position, (store, split) in enumerate(zip(stores, (dataset.train, dataset.test), strict=True))
    )
    return train, test
