"""What a checkpoint costs: time to write one so that it survives a power failure, time to load it, and its size.

What is written is what `ringmark train` writes: weights, optimizer, generators and buffers of every rank, with
checksums, synced to the disk and committed by a rename.
"""

import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.cell import key_of
from bench.options import BenchOptions
from ddp.mistake import require
from models import zoo

if TYPE_CHECKING:
    from ddp.context import DistContext
    from ddp.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class CheckpointCell:
    """One model's checkpoint."""

    model: str
    ranks: int
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "adagrad", "asgd"]

    @property
    def key(self) -> str:
        """What stands for this cell in records."""
        return key_of(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Measure writing and loading a checkpoint."""

    model: str = "resnet18-cifar"
    """Model: a name from `ringmark list models`, or path/to/file.py:factory."""
    ranks: int = 2
    """Processes."""
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "adagrad", "asgd"] = "sgd"
    """Optimizer, whose state is stored as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        zoo.check_name(self.model)
        require(self.ranks >= 1, "--ranks of at least 1", self.ranks, "try 2")


def world_size(options: Options) -> int:
    """Processes to start."""
    return options.ranks


def cells(options: Options) -> list[CheckpointCell]:
    """One."""
    return [CheckpointCell(model=options.model, ranks=options.ranks, optimizer=options.optimizer)]


def measure(options: Options, wanted: list[CheckpointCell], ctx: "DistContext", environment: dict[str, Any]) -> None:
    """Write and load in turn, in a temporary folder under --out; rank 0 appends the record.

    Every rank must call this.
    """
    from bench.failure import recorded
    from bench.record import Record, append

    for cell in wanted:
        with recorded(options.out, "checkpoint", asdict(cell), environment):
            raw = _measure(options, cell, ctx)
        if ctx.is_main:
            append(
                options.out,
                Record(case="checkpoint", cell=asdict(cell), status="ok", raw=raw, environment=environment),
            )


def _trainer(cell: CheckpointCell, ctx: "DistContext") -> "Trainer":
    """A trainer after three steps, so that the optimizer has all the state that it will have."""
    import torch

    from bench.train_blocks import task_of
    from ddp.config import TrainConfig
    from ddp.loop import train_steps
    from ddp.optim_config import OptimConfig
    from ddp.task import random_step
    from ddp.trainer import make_trainer

    spec = zoo.find(cell.model)
    task = task_of(spec)
    torch.manual_seed(0)
    module = zoo.build(spec, spec.shape, spec.classes, task.output_shape(spec.shape, spec.classes))
    optim = OptimConfig(optimizer=cell.optimizer, lr=1e-3, schedule="constant", warmup=0)
    trainer = make_trainer(module, TrainConfig(model=cell.model, optim=optim), ctx, 1, task)
    batch = random_step(task, spec.shape, spec.classes, 2, ctx)
    train_steps(trainer, repeat(batch, 3), lambda batch, loss: None)
    return trainer


def _measure(options: Options, cell: CheckpointCell, ctx: "DistContext") -> dict[str, Any]:
    """Write and load again and again, each time another checkpoint -> the raw times of every rank, and the size."""
    from ddp import checkpoint
    from ddp.state import Progress, own_state, restore, shared_state

    trainer = _trainer(cell, ctx)
    folder = _temporary(options.out, ctx)
    repeats: list[list[float]] = []
    try:
        for step in range(1, options.rounds + 2):
            ctx.patient.barrier()
            started = time.perf_counter()
            shared, own = shared_state(trainer, Progress()), own_state(trainer, {})
            path = checkpoint.write(folder, step, checkpoint.Content(shared, own, {}), ctx.patient, keep=1)
            save_s = time.perf_counter() - started
            _forget(path)
            ctx.patient.barrier()
            started = time.perf_counter()
            manifest, shared, mine = checkpoint.load(path, ctx.rank)
            restore(trainer, shared, mine)
            ctx.synchronize()
            repeats.append([save_s, time.perf_counter() - started])
        ctx.patient.barrier()
    finally:
        if ctx.is_main:
            shutil.rmtree(folder, ignore_errors=True)
    parts = ctx.gather(repeats[1:])  # the first one warms up
    sizes_bytes = {name: entry.size_bytes for name, entry in manifest.files.items()}
    return {
        "parameters": sum(parameter.numel() for parameter in trainer.module.parameters()),
        "file_bytes": sizes_bytes,
        "repeats": [
            {
                "round": number,
                "save_s": [part[number][0] for part in parts],
                "load_s": [part[number][1] for part in parts],
            }
            for number in range(options.rounds)
        ],
    }


def _temporary(out: Path, ctx: "DistContext") -> Path:
    """A new folder under --out, the same on every rank."""
    name = None
    if ctx.is_main:
        out.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(prefix="checkpoint-", dir=out)
    return Path(ctx.gather(name)[0])


def _forget(path: Path) -> None:
    """Ask the system to forget what it holds of these files in memory, so that loading reads the disk; it may not."""
    for file in path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
