"""Collective operations, timed as nccl-tests times them, and their data checked.

A barrier, two calls of every size to warm up, then for each size one call that is not timed and a block of calls back
to back. On a GPU the host waits for none of them; on the CPU, where the library keeps no order among calls that run at
the same time, each begins when the one before has ended. A block ends when every rank has what it was to receive, and
takes as long as its slowest rank.
"""

import gc
import time
from dataclasses import asdict
from itertools import repeat
from typing import Any

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from bench.cases.collectives import CollectiveCell, Options
from bench.cell import Cell
from bench.clock import Block, timed_block
from bench.collective_bandwidth import ITEM_BYTES, calls_in_block
from bench.collective_check import wrong_elements
from bench.collective_ops import CALLS, make_buffers
from bench.model_cells import WAITED, RanksFailedError, agreed
from bench.record import Record, append
from bench.train_blocks import synthetic_batch, trainer_for
from ddp.context import DistContext
from ddp.loop import train_steps

CASE = "collectives"
UNSUPPORTED = "unsupported"
"""How the reason begins where the communication library does not offer an operation for a data type."""
Failure = tuple[str, str]
"""Status and reason, as a record holds them."""


class _Subject:
    """One operation, data type and size, and what is known of it so far."""

    def __init__(self, cell: CollectiveCell, ctx: DistContext, seed: int) -> None:
        self.cell, self.ctx, self.seed = cell, ctx, seed
        self.calls = 0
        self.blocks: list[Block] = []
        self.wrong: int | None = None
        self.checked = 0
        self.failure: Failure | None = None

    def attempt(self, work: Any) -> None:
        """Do this work on every rank, or note why it failed on all of them. Raises RanksFailedError if on some only."""
        if self.failure is not None:
            return
        _, self.failure, goes_on = agreed(self.ctx, work)
        if not goes_on:
            raise RanksFailedError(f"{self.cell.op} failed differently on different ranks, or for good: {self.failure}")

    def warm_up(self, block_s: float) -> None:
        """Two calls, of which the second tells how many fill a block: the same number on every rank."""
        call, buffers = CALLS[self.cell.op], self._buffers()
        call(buffers, self.ctx)
        self.ctx.barrier()
        started = time.perf_counter()
        call(buffers, self.ctx)
        self.ctx.synchronize()
        slowest_s = max(self.ctx.gather(time.perf_counter() - started))
        self.calls = calls_in_block(slowest_s, block_s)

    def run(self) -> None:
        """One timed block."""
        call, buffers = CALLS[self.cell.op], self._buffers()
        call(buffers, self.ctx)
        with timed_block(self.ctx) as (block, mark):
            for _ in range(self.calls):
                call(buffers, self.ctx)
                mark()
        self.blocks.append(block)

    def check(self) -> None:
        """One more call, on numbers that tell who sent what."""
        cell = self.cell
        self.wrong, self.checked = wrong_elements(cell.op, cell.dtype, cell.size_bytes, self.ctx, self.seed)

    def _buffers(self) -> Any:
        return make_buffers(self.cell.op, self.cell.dtype, self.cell.size_bytes, self.ctx)

    def raw(self) -> dict[str, Any]:
        """Times of all ranks, block by block. Every rank must call this."""
        mine = [[block.wall_s, [round(call_s, 9) for call_s in block.step_s]] for block in self.blocks]
        parts = self.ctx.gather(mine)
        return {
            "calls_per_block": self.calls,
            "wrong_elements": self.wrong,
            "checked_elements": self.checked,
            "blocks": [
                {
                    "round": number,
                    "wall_s": [part[number][0] for part in parts],
                    "call_s": [part[number][1] for part in parts],
                }
                for number in range(len(self.blocks))
            ],
        }


def unsupported(op: str, dtype: str, ctx: DistContext) -> str | None:
    """Why the communication library cannot do this at all, or None: one call of one element per rank, on every rank.

    Raises RanksFailedError if it fails for another reason than that.
    """
    size_bytes = ITEM_BYTES[dtype] * ctx.world_size

    def probe() -> None:
        CALLS[op](make_buffers(op, dtype, size_bytes, ctx), ctx)
        ctx.synchronize()

    _, failure, goes_on = agreed(ctx, probe)
    if failure is None:
        return None
    if not goes_on or any(words in failure[1].lower() for words in WAITED):
        raise RanksFailedError(f"{op} of {dtype} failed on one element per rank: {failure[1]}")
    return f"{UNSUPPORTED} by {ctx.backend} of torch {torch.__version__}: {failure[1]}"


def bucket_bytes(model: str, ctx: DistContext) -> list[int]:
    """Sizes of the buckets that DDP sums a model's gradients in, in the order in which they are sent.

    Taken from the last of three training steps, since DDP arranges its buckets anew after the first. Every rank must
    call this.
    """
    cell = Cell(model=model, ranks=ctx.world_size, batch_per_rank=2)
    trainer = trainer_for(cell, ctx)
    seen: list[int] = []

    def hook(group: dist.ProcessGroup, bucket: dist.GradBucket) -> Future[torch.Tensor]:
        seen.append(bucket.buffer().nbytes)
        work = dist.all_reduce(bucket.buffer().div_(ctx.world_size), group=group, async_op=True)
        assert work is not None
        return work.get_future().then(lambda future: future.value()[0])

    for part in trainer.wrapped.modules():
        if isinstance(part, DistributedDataParallel):
            part.register_comm_hook(ctx.group, hook)
    batch = synthetic_batch(cell, ctx)
    for _ in range(3):
        seen.clear()
        train_steps(trainer, repeat(batch, 1), lambda batch, loss: None)
    return seen


def measure_collectives(
    options: Options, cells: list[CollectiveCell], ctx: DistContext, environment: dict[str, Any]
) -> None:
    """Measure all cells round by round in alternating order; rank 0 appends their records. Every rank must call this.

    What the library does not offer, and what arrived wrong, is a record that says so.
    """
    gc.freeze()  # every block begins with a collection, which would look at all that was ever imported
    try:
        _measure_in_turns(options, cells, ctx, environment)
    finally:
        gc.unfreeze()


def _measure_in_turns(
    options: Options, cells: list[CollectiveCell], ctx: DistContext, environment: dict[str, Any]
) -> None:
    ddp = {"ddp_model": options.model, "ddp_bucket_bytes": bucket_bytes(options.model, ctx)} if options.model else {}
    subjects = [_Subject(cell, ctx, seed) for seed, cell in enumerate(cells)]
    reasons = {
        (op, dtype): unsupported(op, dtype, ctx) for op, dtype in dict.fromkeys((cell.op, cell.dtype) for cell in cells)
    }
    for subject in subjects:
        reason = reasons[(subject.cell.op, subject.cell.dtype)]
        subject.failure = None if reason is None else ("failed", reason)
    for subject in subjects:
        subject.attempt(lambda subject=subject: subject.warm_up(options.block_s))
    for number in range(options.rounds):
        for subject in subjects if number % 2 == 0 else reversed(subjects):
            subject.attempt(subject.run)
            if number == options.rounds - 1:
                subject.attempt(subject.check)
                record = _record(subject, ddp, environment)
                if ctx.is_main:
                    append(options.out, record)


def _record(subject: _Subject, ddp: dict[str, Any], environment: dict[str, Any]) -> Record:
    """A cell's record, on every rank, since all of them tell their times."""
    cell = asdict(subject.cell)
    if subject.failure is not None:
        status, error = subject.failure
        return Record(
            case=CASE, cell=cell, status="oom" if status == "oom" else "failed", error=error, environment=environment
        )
    raw = subject.raw() | ddp
    if subject.wrong:
        error = f"{subject.wrong:,} of {subject.checked:,} elements arrived wrong"
        return Record(case=CASE, cell=cell, status="failed", error=error, raw=raw, environment=environment)
    return Record(case=CASE, cell=cell, status="ok", raw=raw, environment=environment)
