"""Timed blocks of training steps whose phases are marked: with communication, without it, of several cells in turn."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from itertools import islice, repeat
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from bench.cases.train_step import RESIDENT, Options, StepCell
from bench.clock import timed_block
from bench.failure import recorded
from bench.flops import training_flop
from bench.guards import Watch, between
from bench.launch_id import KEY, new_id
from bench.memory import PeakMemory
from bench.peaks import matmul_ceiling_flop_per_s
from bench.phases import DATA, LOCAL, NO_SYNC, STEP, TRAIN
from bench.probe import PLACES, MarkedCopier, Probe
from bench.record import Record, append
from bench.train_blocks import config_of, steps_of_block, task_of
from bench.warmup import until_settled
from ddp.context import DistContext
from ddp.discover import find
from ddp.input_config import InputConfig
from ddp.loader import Batch, Loader
from ddp.loop import train_steps
from ddp.syncbn import convert_sync_batchnorm, revert_sync_batchnorm
from ddp.task import random_step
from ddp.trainer import make_trainer
from models import zoo

CASE = "train_step"
LEARNING_RATE = 1e-12
"""Weights stand still: without communication each rank would go its own way, and the ranks would part."""


def arms(cell: StepCell) -> tuple[str, ...]:
    """The kinds of blocks that tell something about a cell."""
    if cell.ranks == 1:
        return (TRAIN,)
    return (TRAIN, NO_SYNC, LOCAL) if cell.sync_bn else (TRAIN, NO_SYNC)


def _endless(loader: Loader) -> Iterator[Batch]:
    for epoch in range(1_000_000_000):
        loader.set_epoch(epoch)
        yield from loader


class Subject:
    """One cell, ready to be measured, on a rank that takes part in it."""

    def __init__(self, cell: StepCell, ctx: DistContext) -> None:
        self.cell, self.ctx = cell, ctx
        self.probe, self.watch = Probe(ctx.device), Watch(ctx.device)
        self.peak = PeakMemory(ctx.device)
        self.blocks: list[dict[str, Any]] = []
        self.steps = 1
        self.warmup: dict[str, Any] = {}
        self.peak_bytes: int | None = None
        self._build()
        self.trainer.mark = self.probe.mark
        wrapped = self.trainer.wrapped
        if ctx.world_size > 1 and isinstance(wrapped, DistributedDataParallel):
            wrapped.register_comm_hook(ctx.group, self.probe.comm_hook)

    def _build(self) -> None:
        """The trainer, as `ringmark train` would make it but for its learning rate, and an endless row of batches."""
        cell, ctx = self.cell, self.ctx
        spec = zoo.find(cell.model)
        task, shape, classes = task_of(spec), spec.shape, spec.classes
        resident = cell.data == RESIDENT
        source = InputConfig() if resident else InputConfig(data=cell.data, data_dir=cell.data_dir)  # type: ignore[arg-type]
        config = config_of(cell, LEARNING_RATE, drop_last=True, input=source)
        self.batches: Iterator[Batch]
        dataset = None
        if cell.data != RESIDENT:
            dataset = find("ddp.datasets", cell.data, kind="data set").load(config.input, shape, classes)
            task.check(config, dataset)
            shape, classes = dataset.shape, len(dataset.classes)
        torch.manual_seed(0)
        module = zoo.build(spec, shape, classes, task.output_shape(shape, classes))
        if dataset is None:
            batch = random_step(task, shape, classes, cell.batch_per_rank, ctx, channels_last=cell.channels_last)
            self.batches = repeat(batch)
        else:
            loader, _ = task.make_loaders(config, dataset, ctx, module)
            loader.copier = MarkedCopier(ctx.device, self.probe)
            self.batches = _endless(loader)
        self.trainer = make_trainer(module, config, ctx, 1, task)
        self.shape, self.classes = shape, classes

    def _marked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.probe.mark(DATA)
            yield batch

    def run(self, arm: str, steps: int) -> dict[str, Any]:
        """Train that many steps -> this rank's wall time, phases, and what else the machine did."""
        trainer, ctx, probe = self.trainer, self.ctx, self.probe
        alone: AbstractContextManager[None] = nullcontext()
        if arm != TRAIN:
            alone = trainer.strategy.without_communication(trainer.wrapped)
        if arm == LOCAL:
            revert_sync_batchnorm(trainer.module)
        before, skipped = self.watch.read(), trainer.skipped_steps
        with timed_block(ctx) as (block, _), alone:
            probe.start()
            train_steps(trainer, self._marked(islice(self.batches, steps)), lambda batch, loss: probe.mark(STEP))
        guard = between(before, self.watch.read()) | {"node": ctx.node_rank}
        if arm == LOCAL:
            convert_sync_batchnorm(trainer.module, ctx.group, ctx.device)
        skipped = trainer.skipped_steps - skipped
        return {"wall_s": block.wall_s, "phase_s": probe.phases(), "guard": guard, "skipped_steps": skipped}

    def warm_up(self, options: Options) -> None:
        """Train until step times settle or a cap is hit, alike on all ranks; then choose how many steps fill a block.

        The other kinds of blocks take a few steps each as well.
        """

        def own_s(steps: int) -> list[float]:
            phases = self.run(TRAIN, steps)["phase_s"]
            return [round(math.fsum(times), PLACES) for times in zip(*phases.values(), strict=True)]

        self.warmup = until_settled(
            own_s,
            self.ctx,
            least=options.warmup_steps,
            cap_steps=options.warmup_cap_steps,
            cap_s=options.warmup_cap_s,
        )
        self.steps = steps_of_block(self.warmup["step_s"], options.block_s)
        for arm in arms(self.cell)[1:]:
            self.run(arm, 2)

    def raw(self) -> dict[str, Any]:
        """Times of all ranks, block by block. Every rank of the cell must call this."""
        ctx = self.ctx
        parts = ctx.gather(self.blocks)
        peaks = ctx.gather(self.peak_bytes)
        ceilings = ctx.gather(matmul_ceiling_flop_per_s(ctx.device, self.cell.amp))
        flop = None
        if ctx.is_main:
            flop = training_flop(zoo.find(self.cell.model), self.shape, self.classes)
        ctx.patient.barrier()
        return {
            "warmup": self.warmup,
            "parameters": sum(parameter.numel() for parameter in self.trainer.module.parameters()),
            "training_flop_per_sample": flop,
            "matmul_flop_per_s": None if None in ceilings else ceilings,
            "peak_memory_bytes": None if None in peaks else peaks,
            "blocks": [_merged([part[number] for part in parts]) for number in range(len(self.blocks))],
        }

    def prepare(self, options: Options) -> None:
        """Warm up, and note the peak of memory before other cells need some of it."""
        self.warm_up(options)
        self.peak_bytes = self.peak.bytes()


def _merged(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One block as all ranks saw it. A phase that some rank never had took no time there."""
    names = list(dict.fromkeys(name for rank in ranks for name in rank["phase_s"]))
    none = [0.0] * len(next(iter(ranks[0]["phase_s"].values())))
    return {
        **{name: ranks[0][name] for name in ("round", "arm", "samples", "skipped_steps")},
        "wall_s": [rank["wall_s"] for rank in ranks],
        "phase_s": {name: [rank["phase_s"].get(name, none) for rank in ranks] for name in names},
        "guards": [rank["guard"] for rank in ranks],
    }


def _warm_process(cell: StepCell, ctx: DistContext) -> None:
    """One small model first: what a process loads once is no cell's memory."""
    small = replace(
        cell, model="lenet5", ranks=ctx.world_size, batch_per_rank=2, strategy="ddp", sync_bn=False, data=RESIDENT
    )
    Subject(small, ctx).run(TRAIN, 2)


def measure_steps(options: Options, cells: list[StepCell], ctx: DistContext, environment: dict[str, Any]) -> None:
    """Measure kinds of blocks and cells in turns, in an order that alternates; rank 0 of each appends its record.

    Ranks that a block does not need wait without using the CPU. An error on any rank is recorded for its cell and ends
    the launch, since the other ranks may be waiting inside a collective call.
    """
    subjects: list[Subject | None] = []
    launch = new_id(ctx)
    if cells:
        _warm_process(cells[0], ctx)
    for cell in cells:
        group = ctx.first(cell.ranks)
        with recorded(options.out, CASE, asdict(cell), environment):
            subject = None if group is None else Subject(cell, group)
            if subject is not None:
                subject.prepare(options)
        ctx.patient.barrier()
        subjects.append(subject)
    turns = [(place, arm) for place, cell in enumerate(cells) for arm in arms(cell)]
    for number in range(options.rounds):
        for place, arm in turns if number % 2 == 0 else reversed(turns):
            ctx.patient.barrier()
            subject, cell = subjects[place], cells[place]
            if subject is not None:
                with recorded(options.out, CASE, asdict(cell), environment):
                    found = subject.run(arm, subject.steps)
                samples = subject.steps * cell.global_batch
                subject.blocks.append({"round": number, "arm": arm, "samples": samples, **found})
    for cell, subject in zip(cells, subjects, strict=True):
        if subject is not None:
            raw = {KEY: launch, **subject.raw()}
            if ctx.is_main:
                append(options.out, Record(case=CASE, cell=asdict(cell), status="ok", raw=raw, environment=environment))
