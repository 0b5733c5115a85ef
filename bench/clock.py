"""The clock of the benchmarks: a mark after every step, read when the block is over, so that no step waits for it."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from ddp.context import DistContext


@dataclass
class Block:
    """One rank's times of a run of consecutive steps."""

    wall_s: float = 0.0
    """From all ranks ready and idle to this rank's device idle again."""
    step_s: list[float] = field(default_factory=list)
    """Of each step, on this rank; on a GPU as its own clock saw it."""


@contextmanager
def timed_block(ctx: DistContext) -> Iterator[tuple[Block, Callable[[], None]]]:
    """Yields (block, mark); call mark() after each step. The block is filled in at the end of the `with` statement.

    Garbage collection is off inside. On a GPU a mark is an event in the stream, read when the device is idle.
    """
    block = Block()
    events: list[torch.cuda.Event] = []
    times: list[float] = []

    def mark_gpu() -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        events.append(event)

    def mark_cpu() -> None:
        times.append(time.perf_counter())

    mark = mark_gpu if ctx.device.type == "cuda" else mark_cpu
    gc.collect()
    gc.disable()
    try:
        ctx.barrier()
        started = time.perf_counter()
        mark()
        yield block, mark
        ctx.synchronize()
        block.wall_s = time.perf_counter() - started
    finally:
        gc.enable()
    if events:
        block.step_s = [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)]
    else:
        block.step_s = [after - before for before, after in pairwise(times)]
