"""The arms of the loop_cost benchmark: ringmark's whole epoch loop, and the loop one would write by hand, twice."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from bench.cell import Cell
from bench.options import BenchOptions
from bench.record import Record, append
from bench.train_blocks import LARGEST_BLOCK, synthetic_batch, trainer_for
from ddp.context import DistContext
from ddp.epoch import Epoch
from ddp.loader import Batch
from ddp.progress import Display, Silent
from ddp.state import Progress
from ddp.stop import Stop
from models import zoo

Arm = Callable[[int], None]
"""Trains that many steps."""


def _bare(cell: Cell, batch: Batch, ctx: DistContext) -> Arm:
    """The loop as a person writes it: torch's defaults, the mean loss, nothing counted or logged."""
    spec = zoo.find(cell.model)
    torch.manual_seed(0)
    device_ids = [ctx.device.index] if ctx.device.type == "cuda" else None
    module = zoo.build(spec, spec.shape, spec.classes, (spec.classes,)).to(ctx.device)
    model = DistributedDataParallel(module, device_ids=device_ids)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def run(steps: int) -> None:
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = cross_entropy(model(batch.inputs), batch.targets)
            loss.backward()
            optimizer.step()

    return run


def _ringmark(cell: Cell, batch: Batch, ctx: DistContext) -> Arm:
    """What `ringmark train` runs for an epoch: meters, readings of the loss, and the ranks' sums at the end."""
    trainer = trainer_for(cell, ctx)
    monitor = Display(1, None) if ctx.is_main else Silent()
    stop = Stop(ctx, trainer.config.timeout_s)

    def run(steps: int) -> None:
        epoch = Epoch(trainer, monitor, stop, Progress())
        epoch.train([batch] * steps)
        epoch.result()

    return run


def _wall_s(arm: Arm, steps: int, ctx: DistContext) -> float:
    ctx.barrier()
    started = time.perf_counter()
    arm(steps)
    ctx.synchronize()
    return time.perf_counter() - started


def measure_arms(options: BenchOptions, cell: Cell, ctx: DistContext, environment: dict[str, Any]) -> None:
    """Time all arms in turn, round by round; rank 0 appends one record. Every rank must call this."""
    batch = synthetic_batch(cell, ctx)
    arms = {
        "ringmark": _ringmark(cell, batch, ctx),
        "bare": _bare(cell, batch, ctx),
        "bare again": _bare(cell, batch, ctx),
    }
    for arm in arms.values():
        _wall_s(arm, options.warmup_steps, ctx)
    step_s = max(ctx.gather(_wall_s(arms["bare"], 2, ctx) / 2))
    steps = max(2, min(LARGEST_BLOCK, math.ceil(options.block_s / step_s)))
    blocks: list[dict[str, Any]] = []
    names = list(arms)
    for number in range(options.rounds):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        for name in order if number % 2 == 0 else reversed(order):
            wall_s = ctx.gather(_wall_s(arms[name], steps, ctx))
            blocks.append({"round": number, "arm": name, "samples": steps * cell.global_batch, "wall_s": wall_s})
    if ctx.is_main:
        raw = {"warmup_steps": options.warmup_steps, "steps": steps, "blocks": blocks}
        append(options.out, Record(case="loop_cost", cell=asdict(cell), status="ok", raw=raw, environment=environment))
