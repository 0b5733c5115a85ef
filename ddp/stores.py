"""Where the stored images of a split come from: memory, a file on disk, or loader processes that decode them."""

import atexit
import multiprocessing
import os
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddp.context import DistContext
from ddp.decode import decode_together
from ddp.disk_cache import images_on_disk
from ddp.input_config import InputConfig
from ddp.mistake import Mistake
from ddp.shared import shared_uint8
from ddp.source import Dataset, Split
from ddp.stop import SIGNALS

CACHE_FOLDER = ".ringmark-cache"


class Store(Protocol):
    """Where a split's stored samples come from."""

    def read(self, batches: list[Tensor]) -> Iterator[Tensor]:
        """The samples int64 [N] of each batch, images as uint8 [N, C, H, W], on the CPU."""
        ...


def _gather(images: Tensor, indices: Tensor, *, pin: bool) -> Tensor:
    """Copies of images, in memory that a GPU can read by itself if `pin`.

    index_select copies whole images, which indexing does several times slower.
    """
    out = torch.empty((len(indices), *images.shape[1:]), dtype=torch.uint8, pin_memory=pin)
    return torch.index_select(images, 0, indices, out=out)


class NumberStore:
    """A split of numbers, which each rank holds for itself: float32 [N, ...] takes the place of images."""

    def __init__(self, inputs: np.ndarray) -> None:
        self.inputs = torch.from_numpy(inputs)

    def read(self, batches: list[Tensor]) -> Iterator[Tensor]:
        """One gather per batch."""
        for indices in batches:
            yield self.inputs[indices]


class MemoryStore:
    """A split decoded once into memory that all ranks of the node share. Every rank must make one."""

    def __init__(self, split: Split, dataset: Dataset, ctx: DistContext, label: str) -> None:
        self.images = shared_uint8((len(split), *dataset.stored), ctx, label)
        self.pin = ctx.device.type == "cuda"
        decode_together(split, range(ctx.local_rank, len(split), ctx.local_world_size), self._put, ctx)

    def _put(self, index: int, image: np.ndarray) -> None:
        self.images[index] = torch.from_numpy(image)

    def read(self, batches: list[Tensor]) -> Iterator[Tensor]:
        """One gather per batch."""
        for indices in batches:
            yield _gather(self.images, indices, pin=self.pin)


class DiskStore:
    """A split decoded once into a file that all ranks of the node map. Every rank must make one.

    A part of a split reads the file of the whole, so that all folds of a training set share one.
    """

    def __init__(self, split: Split, dataset: Dataset, folder: Path, ctx: DistContext) -> None:
        self.images = images_on_disk(split if split.whole is None else split.whole, dataset.stored, folder, ctx)
        self.rows = None if split.rows is None else torch.from_numpy(split.rows)
        self.pin = ctx.device.type == "cuda"

    def read(self, batches: list[Tensor]) -> Iterator[Tensor]:
        """One gather per batch."""
        for indices in batches:
            rows = indices if self.rows is None else self.rows[indices]
            yield _gather(self.images, rows, pin=self.pin)


class _Reader(torch.utils.data.Dataset[Any]):
    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitems__(self, indices: list[int]) -> Tensor | str:
        """Images uint8 [N, C, H, W], or what is wrong with one, which as an exception would bring its traceback."""
        try:
            return torch.stack([torch.from_numpy(self.split.read(index)) for index in indices])
        except Mistake as mistake:
            return str(mistake)


class _Batches:
    """What the loader processes are to read: one object for their whole life, with other contents in each epoch."""

    def __init__(self) -> None:
        self.indices: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


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
    """A split decoded anew each time it is read, by loader processes that live as long as the store."""

    def __init__(self, split: Split, workers: int, device: torch.device) -> None:
        # A forked worker inherits this rank's CUDA and network handles, which neither survives; on the CPU it is safe.
        start_method = "forkserver" if device.type == "cuda" else "fork"
        self._batches = _Batches()
        self._calls = 0
        self._end: weakref.finalize[..., Any] | None = None
        self._loader: DataLoader[Any] = DataLoader(
            _Reader(split),
            batch_sampler=self._batches,
            num_workers=workers,
            collate_fn=_as_is,
            generator=torch.Generator(),  # or each iteration draws from the generator that dropout draws from
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            multiprocessing_context=multiprocessing.get_context(start_method) if workers else None,
            persistent_workers=workers > 0,
        )

    def _iterator(self) -> Iterator[Any]:
        """The loader's iterator, begun anew; it is the same one every time if there are workers."""
        iterator: Any = iter(self._loader)
        if self._end is None and self._loader.num_workers:
            # Python ends child processes by SIGTERM at its exit and waits for them: these would let it wait for ever.
            self._end = weakref.finalize(self, iterator._shutdown_workers)
            atexit.register(self._end)  # before torch's own, after which it shuts nothing down
        return iterator

    def read(self, batches: list[Tensor]) -> Iterator[Tensor]:
        """Decoded ahead by the workers. A new call ends the one before it, and what that left is thrown away."""
        if not batches:
            return
        self._calls += 1
        call = self._calls
        self._batches.indices = [indices.tolist() for indices in batches]
        for images in self._iterator():
            if call != self._calls:
                raise RuntimeError("expected one reader of a split at a time, got a second one before this had ended")
            if isinstance(images, str):
                raise Mistake(images)
            yield images


def _available_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def held_in_memory(config: InputConfig, dataset: Dataset) -> bool:
    """Whether the decoded images are kept: if asked for, or if they fit the budget and half of the free memory."""
    if config.cache != "auto":
        return config.cache == "memory"
    return dataset.size_bytes <= min(config.cache_gib * 2**30, _available_bytes() / 2)


def make_stores(config: InputConfig, dataset: Dataset, ctx: DistContext) -> tuple[Store, Store]:
    """The stores of the training and the test split. Every rank must call this: it may decode, and share what it got.

    Raises Mistake on all ranks if an image cannot be decoded or a cache cannot be written.
    """
    in_memory = all(ctx.gather(held_in_memory(config, dataset)))
    folder = config.cache_dir if config.data_dir is None else config.cache_dir or config.data_dir / CACHE_FOLDER

    def make(split: Split, label: str) -> Store:
        if split.inputs is not None:
            return NumberStore(split.inputs)
        if config.cache == "disk" and split.identity is not None and folder is not None:
            return DiskStore(split, dataset, folder, ctx)
        if in_memory or config.cache == "disk":
            return MemoryStore(split, dataset, ctx, label)
        return StreamStore(split, config.workers, ctx.device)

    return make(dataset.train, "train"), make(dataset.test, "test")
