"""Which samples each rank sees in which step: a pure function of seed and epoch, never of who asks or when."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddp.mistake import Mistake


class Share(NamedTuple):
    """This rank's part of one step's batch."""

    indices: Tensor
    """int64 [samples of this rank]."""
    global_count: int
    """Samples of all ranks in this step: the denominator of the step's mean loss."""
    keys: Tensor
    """int64 [samples of this rank]: what an image is changed at random by.

    The index itself when a sample is drawn for the first time in an epoch, then `samples` more each time, so that a
    sample which is drawn again is changed in another way.
    """


def _balanced(labels: np.ndarray, generator: torch.Generator) -> Tensor:
    """As many draws as there are samples, with replacement, of every class equally many (or one more): int64 [N]."""
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    members = torch.from_numpy(np.argsort(classes, kind="stable"))  # of each class in turn
    sizes = torch.from_numpy(counts)
    starts = sizes.cumsum(0) - sizes
    drawn = torch.randperm(len(labels), generator=generator) % len(counts)
    within = torch.rand(len(labels), generator=generator, dtype=torch.float64) * sizes[drawn]
    return members[starts[drawn] + within.long()]


def _repeats(order: Tensor) -> Tensor:
    """How often each entry of `order`, int64 [N], stands before it: int64 [N]."""
    by_value = torch.argsort(order, stable=True)
    values = order[by_value]
    repeats = torch.empty_like(order)
    repeats[by_value] = torch.arange(len(order)) - torch.searchsorted(values, values)
    return repeats


@dataclass
class TrainBatches:
    """Batches of an epoch: an order drawn from (seed, epoch), cut into global batches, each dealt to the ranks.

    The order is a permutation: every sample is seen exactly once in an epoch, whatever the number of ranks. The last
    batch may be short; if it has fewer samples than there are ranks, it is joined to the batch before it, so that no
    rank ever runs without data. With `drop_last` an incomplete last batch is left out. With `balance` the order is as
    long, but drawn with replacement, so that all classes are equally frequent.
    """

    samples: int
    global_batch: int
    rank: int
    world_size: int
    seed: int
    drop_last: bool = False
    epoch: int = 0
    done: int = 0
    """Samples of the epoch that were dealt before, by this launch or an earlier one; they are left out."""
    balance: np.ndarray | None = None
    """Labels int64 [samples] of the classes to balance."""

    def __post_init__(self) -> None:
        smallest = self.global_batch if self.drop_last else self.world_size
        if self.samples < smallest:
            what = "one full batch (--drop-last)" if self.drop_last else "one sample for each rank"
            raise Mistake(
                f"expected at least {smallest} training samples, {what}, got {self.samples}; "
                "use fewer ranks, a smaller batch, or more data"
            )

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Choose the epoch whose order is dealt next, and how many of its samples have been dealt already."""
        self.epoch, self.done = epoch, done

    def _bounds(self) -> list[tuple[int, int]]:
        full = self.samples // self.global_batch * self.global_batch
        bounds = [(start, start + self.global_batch) for start in range(0, full, self.global_batch)]
        tail = self.samples - full
        if tail and not self.drop_last:
            if tail >= self.world_size or not bounds:
                bounds.append((full, self.samples))
            else:
                bounds[-1] = (bounds[-1][0], self.samples)
        return [(start, end) for start, end in bounds if start >= self.done]

    def __len__(self) -> int:
        return len(self._bounds())

    def _order(self) -> tuple[Tensor, Tensor]:
        """Indices and keys of the whole epoch, int64 [samples] each."""
        entropy = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(entropy >> np.uint64(1)))
        if self.balance is None:
            order = torch.randperm(self.samples, generator=generator)
            return order, order
        order = _balanced(self.balance, generator)
        return order, order + _repeats(order) * self.samples

    def __iter__(self) -> Iterator[Share]:
        order, keys = self._order()
        for start, end in self._bounds():
            mine = slice(start + self.rank, end, self.world_size)
            yield Share(order[mine], end - start, keys[mine])


@dataclass
class EvalBatches:
    """Batches of the test set: cut without regard to the ranks and dealt whole, so each is the same computation at any
    number of ranks and each sample is counted once. A rank may have none."""

    samples: int
    batch: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return len(range(self.rank * self.batch, self.samples, self.batch * self.world_size))

    def __iter__(self) -> Iterator[Share]:
        for start in range(self.rank * self.batch, self.samples, self.batch * self.world_size):
            indices = torch.arange(start, min(start + self.batch, self.samples))
            yield Share(indices, len(indices), indices)
