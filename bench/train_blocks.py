"""Timed blocks of training steps, of several cells that take turns."""

import math
from dataclasses import asdict
from itertools import repeat
from typing import Any

import torch

from bench.cell import Cell
from bench.clock import Block, timed_block
from bench.failure import recorded
from bench.options import BenchOptions
from bench.record import Record, append
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


def trainer_for(cell: Cell, ctx: DistContext) -> Trainer:
    """A trainer as `ringmark train` would make it, with a small constant learning rate."""
    spec = zoo.find(cell.model)
    torch.manual_seed(0)
    config = TrainConfig(
        model=cell.model,
        strategy=cell.strategy,
        sync_bn=cell.sync_bn,
        amp=cell.amp,
        channels_last=cell.channels_last,
        batch_size=cell.batch_per_rank,
        optim=OptimConfig(lr=1e-3, schedule="constant", warmup=0),
    )
    task = task_of(spec)
    module = zoo.build(spec, spec.shape, spec.classes, task.output_shape(spec.shape, spec.classes))
    return make_trainer(module, config, ctx, total_steps=1, task=task)


class Subject:
    """One cell, ready to be measured, on a rank that takes part in it."""

    def __init__(self, cell: Cell, ctx: DistContext, *, alone: bool) -> None:
        self.cell, self.ctx, self.alone = cell, ctx, alone
        self.trainer = trainer_for(cell, ctx)
        self.batch = synthetic_batch(cell, ctx)
        self.blocks: list[Block] = []
        self.steps = 1
        if ctx.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(ctx.device)

    def run(self, steps: int) -> Block:
        """Train that many steps, timed."""
        with timed_block(self.ctx) as (block, mark):
            train_steps(self.trainer, repeat(self.batch, steps), lambda batch, loss: mark())
        return block

    def warm_up(self, steps: int, block_s: float) -> None:
        """Take untimed steps, then choose how many fill a block: the same number on every rank."""
        self.run(steps - 1)
        slowest = torch.tensor(self.run(1).wall_s, device=self.ctx.device)
        torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX, group=self.ctx.group)
        self.steps = max(2, min(LARGEST_BLOCK, math.ceil(block_s / float(slowest))))

    def raw(self, warmup_steps: int) -> dict[str, Any]:
        """Times of all ranks, block by block. Every rank of the cell must call this."""
        parts = self.ctx.gather([[block.wall_s, block.step_s] for block in self.blocks])
        on_gpu = self.ctx.device.type == "cuda"
        peaks = self.ctx.gather(torch.cuda.max_memory_allocated(self.ctx.device) if on_gpu else None)
        return {
            "warmup_steps": warmup_steps,
            "parameters": sum(parameter.numel() for parameter in self.trainer.module.parameters()),
            "blocks": [
                {
                    "round": number,
                    "samples": self.steps * self.cell.global_batch,
                    "wall_s": [part[number][0] for part in parts],
                    "step_s": [part[number][1] for part in parts],
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

    An error on any rank is recorded for the cell that it happened in, and ends the launch: the other ranks may be
    waiting inside a collective call, from which there is no way back.
    """
    subjects: list[Subject | None] = []
    for cell in cells:
        group = ctx.first(cell.ranks)
        with recorded(options.out, case, asdict(cell), environment):
            subject = None if group is None else Subject(cell, group, alone=len(cells) == 1)
            if subject is not None:
                subject.warm_up(options.warmup_steps, options.block_s)
        subjects.append(subject)
    for number in range(options.rounds):
        order = range(len(cells)) if number % 2 == 0 else reversed(range(len(cells)))
        for position in order:
            ctx.barrier()
            subject = subjects[position]
            if subject is not None:
                with recorded(options.out, case, asdict(cells[position]), environment):
                    subject.blocks.append(subject.run(subject.steps))
    for cell, subject in zip(cells, subjects, strict=True):
        if subject is not None:
            raw = subject.raw(options.warmup_steps)
            if ctx.is_main:
                append(options.out, Record(case=case, cell=asdict(cell), status="ok", raw=raw, environment=environment))
