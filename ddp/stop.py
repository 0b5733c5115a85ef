"""Stopping on a signal: a flag in the handler, and an agreement of all ranks at a step edge."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from ddp.context import DistContext

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
INTERRUPTED = 130


class Stop:
    """Whether to stop, agreed on by all ranks.

    Each step sends this rank's flag to the others without waiting, and reads the answer of the step before: all ranks
    read the same answers in the same steps, one step late, and no step waits. The flags travel on the CPU, in a group
    of their own, so that a GPU is never waited for.
    """

    def __init__(self, ctx: DistContext, timeout_s: float) -> None:
        self.signalled = 0
        self.steps = 0
        """Step edges of this launch so far."""
        self._flag = torch.zeros(1, dtype=torch.uint8)
        self._pending: dist.Work | None = None
        ranks = list(range(ctx.world_size))
        group = dist.new_group(ranks, backend="gloo", timeout=timedelta(seconds=timeout_s))
        assert isinstance(group, dist.ProcessGroup)
        self._group = group

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; a second Ctrl-C ends this rank at once, without saving."""
        if number == signal.SIGINT and self.signalled == signal.SIGINT:
            os._exit(INTERRUPTED)
        self.signalled = number

    def agreed(self) -> bool:
        """Whether any rank had been told to stop when the step before ended. Every rank must call it in every step."""
        self.steps += 1
        answer = False
        if self._pending is not None:
            self._pending.wait()
            answer = bool(self._flag.item())
        if not answer:
            self._flag.fill_(self.signalled != 0)
            self._pending = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer


@contextmanager
def stop_on_signals(ctx: DistContext, timeout_s: float) -> Iterator[Stop]:
    """Handle SIGTERM, SIGUSR1 and SIGINT by stopping at a step edge, for the length of a `with` block.

    After a signal the handlers stay: a launcher repeats itself when the first rank ends, and must not kill the others.
    """
    stop = Stop(ctx, timeout_s)
    before = {number: signal.signal(number, stop.handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        if not stop.signalled:
            for number, handler in before.items():
                signal.signal(number, handler)
