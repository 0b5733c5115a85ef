"""Models one after another: a few steps, a check that they trained alike on all ranks, timed blocks, memory, FLOP."""

import gc
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import repeat
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from bench.cases.models import ModelCell, Options
from bench.clock import Block, timed_block
from bench.failure import classify
from bench.flops import training_flop
from bench.memory import PeakMemory
from bench.record import Record, append
from bench.train_blocks import LARGEST_BLOCK, task_of
from ddp.config import TrainConfig
from ddp.context import LOST_PEER, DistContext
from ddp.loader import Batch
from ddp.loop import train_steps
from ddp.optim_config import OptimConfig
from ddp.self_check import compare
from ddp.task import random_step
from ddp.trainer import Trainer, make_trainer
from models import zoo
from models.spec import ModelSpec, Shape

CASE = "models"
LEARNING_RATE = 1e-4
"""Small, so that a few steps on noise diverge for no model."""
LASTING = ("CUDA error", "NCCL error")
"""What an error says after which this process can measure nothing more."""
WAITED = ("timed out", "timeout")
"""What an error says of a rank that waited in vain for one that failed."""
Result = TypeVar("Result")


class RanksFailedError(RuntimeError):
    """The ranks failed in different ways, or for good: this launch must end. The record is written already."""


def shape_of(spec: ModelSpec, image_size: int | None) -> Shape:
    """The model's own shape, its height and width made smaller if they are larger than `image_size`."""
    if image_size is None or len(spec.shape) != 3 or max(spec.shape[1:]) <= image_size:
        return spec.shape
    return (spec.shape[0], *(min(size, image_size) for size in spec.shape[1:]))


class Subject:
    """One model, ready to be trained on one random batch that stays on the device."""

    def __init__(self, cell: ModelCell, ctx: DistContext) -> None:
        self.ctx = ctx
        spec = zoo.find(cell.model)
        shape, task = shape_of(spec, cell.image_size), task_of(spec)
        torch.manual_seed(0)
        config = TrainConfig(
            model=cell.model,
            strategy="ddp",
            sync_bn=cell.sync_bn,
            amp=cell.amp,
            channels_last=cell.channels_last,
            compile=cell.compile,
            batch_size=cell.batch_per_rank,
            optim=OptimConfig(lr=LEARNING_RATE, schedule="constant", warmup=0),
        )
        module = zoo.build(spec, shape, spec.classes, task.output_shape(shape, spec.classes))
        self.trainer: Trainer = make_trainer(module, config, ctx, 1, task)
        self.batch: Batch = random_step(
            task, shape, spec.classes, cell.batch_per_rank, ctx, channels_last=cell.channels_last
        )
        self.facts = {"task": spec.task, "shape": list(shape), "classes": spec.classes}
        self.loss_sum: Tensor | None = None

    def run(self, steps: int) -> Block:
        """Train that many steps, timed."""
        with timed_block(self.ctx) as (block, mark):

            def after_step(batch: Batch, loss_sum: Tensor) -> None:
                self.loss_sum = loss_sum
                mark()

            train_steps(self.trainer, repeat(self.batch, steps), after_step)
        return block

    def check(self) -> float:
        """The mean loss of the last step. Raises ValueError unless it is finite and all ranks hold the same model."""
        assert self.loss_sum is not None
        loss = float(self.ctx.sum(self.loss_sum.detach().clone())) / self.batch.global_count
        if not math.isfinite(loss):  # of the last step: on a GPU the loop finds out in the step after it
            raise ValueError(f"expected a finite loss, got {loss}")
        module = self.trainer.module
        state: dict[str, Tensor | float | int] = dict(module.named_parameters())
        if self.trainer.config.equal_buffers:
            state |= dict(module.named_buffers())
        difference = compare(self.ctx, state)
        if difference is not None:
            raise ValueError(f"expected the same bits on every rank, got {difference}")
        return loss

    def measure(self, options: Options, peak: PeakMemory) -> dict[str, Any]:
        """Warm up, check, time -> the raw numbers. Every rank must call this."""
        ctx = self.ctx
        peak.restart()
        self.run(options.warmup_steps - 1)
        slowest_s = max(ctx.gather(self.run(1).wall_s))
        loss = self.check()
        steps = max(2, min(LARGEST_BLOCK, math.ceil(options.block_s / slowest_s)))
        blocks = [self.run(steps) for _ in range(options.rounds)]
        self.check()
        times = ctx.gather([[block.wall_s, block.step_s] for block in blocks])
        peaks = ctx.gather(peak.bytes())
        return self.facts | {
            "parameters": sum(parameter.numel() for parameter in self.trainer.module.parameters()),
            "warmup_steps": options.warmup_steps,
            "loss": loss,
            "identical_ranks": ctx.world_size,
            "peak_memory_bytes": None if None in peaks else peaks,
            "blocks": [
                {
                    "round": number,
                    "samples": steps * self.batch.global_count,
                    "wall_s": [rank[number][0] for rank in times],
                    "step_s": [rank[number][1] for rank in times],
                }
                for number in range(options.rounds)
            ],
        }


def agreed(ctx: DistContext, work: Callable[[], Result]) -> tuple[Result | None, tuple[str, str] | None, bool]:
    """Do the work on every rank -> its result; or the failure, (status, text), and whether the next work can begin.

    It can if all ranks failed in the same way, before or after the same messages to each other. Every rank must call
    this. Raises what says that another rank is gone.
    """
    result: Result | None = None
    mine: tuple[str, str] | None = None
    try:
        result = work()
    except Exception as error:
        if any(words in str(error) for words in LOST_PEER):
            raise
        mine = classify(error)
    told = [None if each is None else tuple(each) for each in ctx.patient.gather(mine)]
    failures = [each for each in told if each is not None]
    if not failures:
        return result, None, True
    # A rank that only waited for another one in vain has less to say.
    status, text = min(failures, key=lambda each: any(words in each[1].lower() for words in WAITED))
    alike = len(failures) == len(told) and (len(set(failures)) == 1 or all(each[0] == "oom" for each in failures))
    lasting = any(words in text for words in LASTING)
    return None, (status, text), alike and not lasting


def _measured(cell: ModelCell, options: Options, ctx: DistContext) -> dict[str, Any]:
    peak = PeakMemory(ctx.device)
    return Subject(cell, ctx).measure(options, peak)


def _free(ctx: DistContext) -> None:
    """Give back what the last model held."""
    torch.compiler.reset()
    gc.collect()
    if ctx.device.type == "cuda":
        torch.cuda.empty_cache()


def _flop(cell: ModelCell) -> float | None:
    spec = zoo.find(cell.model)
    return training_flop(spec, shape_of(spec, cell.image_size), spec.classes)


def _warm_process(cell: ModelCell, ctx: DistContext) -> None:
    """One small model first: what a process loads once is no model's memory."""
    small = replace(cell, model="lenet5", image_size=None, compile="off")
    Subject(small, ctx).run(2)
    _free(ctx)


def measure_one_by_one(options: Options, cells: list[ModelCell], ctx: DistContext, environment: dict[str, Any]) -> None:
    """Measure models one after another; rank 0 appends a record of each, also of those that fail.

    Raises RanksFailedError where ranks failed in different ways: some may be waiting for others, and the models that
    are left need a launch of their own.
    """
    if cells:
        _warm_process(cells[0], ctx)
    for cell in cells:
        raw, failure, goes_on = agreed(ctx, lambda cell=cell: _measured(cell, options, ctx))  # type: ignore[misc]
        _free(ctx)
        if ctx.is_main:
            append(options.out, _record(cell, raw, failure, environment))
            print(f"{cell.model}: {'measured' if failure is None else ': '.join(failure)}", flush=True)
        if not goes_on:
            raise RanksFailedError(f"{cell.model} failed differently on different ranks, or for good: {failure}")
        ctx.patient.barrier()  # rank 0 counts FLOP while the others wait


def _record(
    cell: ModelCell, raw: dict[str, Any] | None, failure: tuple[str, str] | None, environment: dict[str, Any]
) -> Record:
    if failure is not None or raw is None:
        status: Literal["oom", "failed"] = "oom" if failure and failure[0] == "oom" else "failed"
        error = failure[1] if failure else "nothing was measured"
        return Record(case=CASE, cell=asdict(cell), status=status, error=error, environment=environment)
    raw = raw | {"training_flop_per_sample": _flop(cell)}
    return Record(case=CASE, cell=asdict(cell), status="ok", raw=raw, environment=environment)
