"""Marks at the edges of a step's phases. No step waits for a clock: on a GPU a mark is an event in the stream."""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.phases import BACKWARD, DATA, H2D, ISSUE, STEP, WAIT, by_step
from ddp.prefetch import Copier, Copies

PLACES = 9
"""Decimals of recorded seconds."""


def averaging(group: dist.ProcessGroup, bucket: dist.GradBucket) -> dist.Work:
    """Begin what DDP does without a hook, to the bit: multiply by 1 / ranks, which is no division where they are 3.

    The group is called directly: checks and logs of torch.distributed take longer.
    """
    return group.allreduce([bucket.buffer().mul_(1 / group.size())])


class Probe:
    """Marks of one rank's steps, in the order in which they were made."""

    def __init__(self, device: torch.device) -> None:
        self.hook = averaging
        """What hands a bucket of gradients over; called between two marks."""
        self._on_gpu = device.type == "cuda"
        self._names: list[str] = []
        self._stamps: list[Any] = []
        self._issued = False

    def _stamp(self, name: str) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._stamps.append(event)
        else:
            self._stamps.append(time.perf_counter())
        self._names.append(name)

    def start(self) -> None:
        """Forget all marks; what follows is counted from here."""
        self._names, self._stamps, self._issued = [], [], False
        self._stamp(STEP)

    def mark(self, name: str) -> None:
        """Something ends here. The end of a backward pass is a wait for the buckets that were handed over in it."""
        self._stamp(WAIT if name == BACKWARD and self._issued else name)
        if name == BACKWARD:
            self._issued = False

    def comm_hook(self, group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """DDP's hook: marks when a bucket is ready on this rank, and when it was handed over."""
        self._stamp(BACKWARD)
        work = self.hook(group, bucket)
        self._stamp(ISSUE)
        self._issued = True
        if self._on_gpu or not bucket.is_last():
            return work.get_future().then(lambda done: done.value()[0])
        # Nothing is left to compute meanwhile, and gloo's thread takes 0.07 ms to call something of Python's.
        work.wait()
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def phases(self) -> dict[str, list[float]]:
        """Phase -> seconds in each step. The device must be idle."""
        if self._on_gpu:
            seconds = [before.elapsed_time(after) / 1e3 for before, after in pairwise(self._stamps)]
        else:
            seconds = [after - before for before, after in pairwise(self._stamps)]
        found = by_step(self._names[1:], seconds)
        return {name: [round(value, PLACES) for value in times] for name, times in found.items()}


class MarkedCopier(Copier):
    """Tells a probe when copies to the device begin and end."""

    def __init__(self, device: torch.device, probe: Probe) -> None:
        super().__init__(device)
        self.probe = probe

    def start(self, tensors: Sequence[Tensor]) -> Copies:
        """As a Copier, marked."""
        self.probe.mark(DATA)
        copies = super().start(tensors)
        self.probe.mark(H2D)
        return copies

    def finish(self, copies: Copies) -> list[Tensor]:
        """As a Copier, marked."""
        self.probe.mark(DATA)
        tensors = super().finish(copies)
        self.probe.mark(H2D)
        return tensors
