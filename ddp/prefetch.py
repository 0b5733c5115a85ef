"""Batches on their way to the device, ahead of their use."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """The items in their order, each handed out when `count` later ones have been taken from `items`."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


class Copies(NamedTuple):
    """Tensors that are being copied to the device."""

    tensors: list[Tensor]
    done: torch.cuda.Event | None
    """When the copies are there; None where they are already."""


class Copier:
    """Copies tensors to the device: to a GPU in a stream of its own, while the GPU computes.

    One for the life of a loader, since each stream has a memory pool of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, tensors: Sequence[Tensor]) -> Copies:
        """Begin to copy tensors from the CPU, without waiting for it where the device is a GPU."""
        if self._stream is None:
            return Copies([tensor.to(self.device) for tensor in tensors], None)
        # Only copies from pinned memory run on their own; its allocator keeps that memory until they are done.
        pinned = [tensor if tensor.is_pinned() else tensor.pin_memory() for tensor in tensors]
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self.device, non_blocking=True) for tensor in pinned]
            return Copies(copies, self._stream.record_event())

    def finish(self, copies: Copies) -> list[Tensor]:
        """The tensors on the device, safe to use in its current stream; the GPU waits for them, the CPU does not."""
        if copies.done is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(copies.done)
            for tensor in copies.tensors:
                tensor.record_stream(stream)  # the memory belongs to the copier's stream, which may not reuse it before
        return copies.tensors
