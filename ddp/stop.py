"""Stopping on a signal: a flag in the handler, and an agreement of all ranks at a step edge."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from ddp.context import DistContext, new_group

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
INTERRUPTED = 130


INTERVAL_S = 0.1
"""How often ranks ask each other, about; a message in every step would cost small models a few percent."""
FIRST_STEPS = 20
"""Steps that are all followed by a message: their time says little."""
LARGEST_PAUSE = 50
"""Steps between two messages at most."""


class Stop:
    """Whether to stop, agreed on by all ranks.

    At a step edge each rank sends its flag to the others without waiting, and reads the answer at the next edge: all
    ranks read the same answers at the same steps, and no step waits. How many steps pass until they send again follows
    from the slowest rank's time of a step, which travels with the flag, so that it is the same on all of them. The
    flags travel on the CPU, in a group of their own, so that a GPU is never waited for.
    """

    def __init__(self, ctx: DistContext, timeout_s: float) -> None:
        self.signalled = 0
        self.steps = 0
        """Step edges of this launch so far."""
        self._asked_at, self._asked_s = 0, time.perf_counter()
        self._pause = 1
        self._message = torch.zeros(2)  # flag, seconds per step
        self._pending: dist.Work | None = None
        group = new_group(list(range(ctx.world_size)), timeout_s, "gloo")
        assert group is not None
        self._group = group

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; a second Ctrl-C ends this rank at once, without saving."""
        if number == signal.SIGINT and self.signalled == signal.SIGINT:
            os._exit(INTERRUPTED)
        self.signalled = number

    def agreed(self) -> bool:
        """Whether any rank had been told to stop when they last asked. Every rank must call it at every step edge."""
        self.steps += 1
        answer = self._pending is not None and self._answer()
        if not answer and self.steps >= self._asked_at + self._pause:
            self._ask()
        return answer

    def _ask(self) -> None:
        now = time.perf_counter()
        step_s = (now - self._asked_s) / (self.steps - self._asked_at)
        self._asked_at, self._asked_s = self.steps, now
        self._message[0], self._message[1] = self.signalled != 0, step_s
        self._pending = dist.all_reduce(self._message, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _answer(self) -> bool:
        assert self._pending is not None
        self._pending.wait()
        self._pending = None
        flag, step_s = self._message.tolist()
        if self.steps > FIRST_STEPS:
            self._pause = max(1, min(LARGEST_PAUSE, int(INTERVAL_S / step_s)))
        return bool(flag)


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
