"""Timed blocks of training steps, of several cells that take turns."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import repeat
from typing import Any

import torch

from bench.cell import Cell
from bench.clock import Block, timed_block
from bench.failure import recorded
from bench.guards import Watch, between
from bench.launch_id import KEY, new_id
from bench.options import BenchOptions
from bench.record import Record, append
from bench.steady import LEAST
from bench.warmup import until_settled
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.discover import find
from ddp.loader import Batch
from ddp.loop import train_steps
from ddp.optim_config import OptimConfig
from ddp.task import Task, random_step
from ddp.trainer import Trainer, make_trainer
from models import zoo
from models.spec import ModelSpec

LARGEST_BLOCK = 500
"""Steps in a block at most, so that the records of very fast models stay readable."""
WARMUP_CAP_STEPS, WARMUP_CAP_S = 200, 60.0
"""Steps and seconds after which warming up ends, even if step times have not settled."""


def steps_of_block(step_s: Sequence[float], block_s: float) -> int:
    """How many steps fill a block of that many seconds, by the last steps of warming up."""
    last = sorted(step_s[-2 * LEAST :])
    return max(2, min(LARGEST_BLOCK, math.ceil(block_s / max(last[len(last) // 2], 1e-9))))


def task_of(spec: ModelSpec) -> Task:
    """What the model is for."""
    task: Task = find("ddp.tasks", spec.task, kind="task").TASK
    return task


def synthetic_batch(cell: Cell, ctx: DistContext) -> Batch:
    """One normalised random batch on the device, different on every rank."""
    spec = zoo.find(cell.model)
    return random_step(
        task_of(spec), spec.shape, spec.classes, cell.batch_per_rank, ctx, channels_last=cell.channels_last
    )


def config_of(cell: Cell, lr: float = 1e-3, **more: Any) -> TrainConfig:
    """The options with which `ringmark train` would train a cell, but for a constant learning rate."""
    return TrainConfig(
        model=cell.model,
        strategy=cell.strategy,
        sync_bn=cell.sync_bn,
        amp=cell.amp,
        channels_last=cell.channels_last,
        batch_size=cell.batch_per_rank,
        optim=OptimConfig(lr=lr, schedule="constant", warmup=0),
        **more,
    )


def trainer_for(cell: Cell, ctx: DistContext) -> Trainer:
    """A trainer of the cell, ready to take steps."""
    spec = zoo.find(cell.model)
    torch.manual_seed(0)
    config = config_of(cell)
    task = task_of(spec)
    module = zoo.build(spec, spec.shape, spec.classes, task.output_shape(spec.shape, spec.classes))
    return make_trainer(module, config, ctx, total_steps=1, task=task)


class Subject:
    """One cell, ready to be measured, on a rank that takes part in it."""

    def __init__(self, cell: Cell, ctx: DistContext, *, alone: bool) -> None:
        self.cell, self.ctx, self.alone = cell, ctx, alone
        self.trainer = trainer_for(cell, ctx)
        self.batch = synthetic_batch(cell, ctx)
        self.watch = Watch(ctx.device)
        self.blocks: list[Block] = []
        self.guards: list[dict[str, Any]] = []
        self.skipped: list[int] = []
        self.steps = 1
        self.warmup: dict[str, Any] = {}
        if ctx.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(ctx.device)

    def run(self, steps: int) -> Block:
        """Train that many steps, timed."""
        with timed_block(self.ctx) as (block, mark):
            train_steps(self.trainer, repeat(self.batch, steps), lambda batch, loss: mark())
        return block

    def warm_up(self, options: BenchOptions) -> None:
        """Train until step times settle or a cap is hit, then choose how many steps fill a block: alike on all ranks.

        At most half as long as the blocks will take, so that short measurements stay short.
        """
        self.warmup = until_settled(
            lambda steps: self.run(steps).step_s,
            self.ctx,
            least=options.warmup_steps,
            cap_steps=max(WARMUP_CAP_STEPS, options.warmup_steps),
            cap_s=min(WARMUP_CAP_S, options.rounds * options.block_s / 2),
        )
        self.steps = steps_of_block(self.warmup["step_s"], options.block_s)

    def measure(self) -> None:
        """One more block, and what else the machine did meanwhile."""
        before, skipped = self.watch.read(), self.trainer.skipped_steps
        self.blocks.append(self.run(self.steps))
        self.guards.append(between(before, self.watch.read()) | {"node": self.ctx.node_rank})
        self.skipped.append(self.trainer.skipped_steps - skipped)

    def raw(self) -> dict[str, Any]:
        """Times of all ranks, block by block. Every rank of the cell must call this."""
        own = [[block.wall_s, block.step_s, guard] for block, guard in zip(self.blocks, self.guards, strict=True)]
        parts = self.ctx.gather(own)
        on_gpu = self.ctx.device.type == "cuda"
        peaks = self.ctx.gather(torch.cuda.max_memory_allocated(self.ctx.device) if on_gpu else None)
        return {
            "warmup_steps": self.warmup["steps"],
            "warmup": self.warmup,
            "parameters": sum(parameter.numel() for parameter in self.trainer.module.parameters()),
            "blocks": [
                {
                    "round": number,
                    "samples": self.steps * self.cell.global_batch,
                    "wall_s": [part[number][0] for part in parts],
                    "step_s": [part[number][1] for part in parts],
                    "guards": [part[number][2] for part in parts],
                    "skipped_steps": self.skipped[number],
                }
                for number in range(len(self.blocks))
            ],
            # Cells that take turns hold their weights at the same time: a peak of one cell alone is not known.
            "peak_memory_bytes": None if None in peaks or not self.alone else peaks,
        }


def measure_in_turns(
    options: BenchOptions, cells: list[Cell], ctx: DistContext, environment: dict[str, Any], *, case: str
) -> None:
    """Measure cells round by round, in an order that alternates; rank 0 of each appends its record.

    Ranks that a block does not need wait without using the CPU. An error on any rank is recorded for the cell that it
    happened in, and ends the launch: the other ranks may be waiting inside a collective call, from which there is no
    way back.
    """
    subjects: list[Subject | None] = []
    launch = new_id(ctx)
    for cell in cells:
        group = ctx.first(cell.ranks)
        with recorded(options.out, case, asdict(cell), environment):
            subject = None if group is None else Subject(cell, group, alone=len(cells) == 1)
            if subject is not None:
                subject.warm_up(options)
        ctx.patient.barrier()
        subjects.append(subject)
    for number in range(options.rounds):
        order = range(len(cells)) if number % 2 == 0 else reversed(range(len(cells)))
        for position in order:
            ctx.patient.barrier()
            subject = subjects[position]
            if subject is not None:
                with recorded(options.out, case, asdict(cells[position]), environment):
                    subject.measure()
    for cell, subject in zip(cells, subjects, strict=True):
        if subject is not None:
            raw = {KEY: launch, **subject.raw()}
            if ctx.is_main:
                append(options.out, Record(case=case, cell=asdict(cell), status="ok", raw=raw, environment=environment))
