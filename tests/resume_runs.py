"""Small runs with every kind of state, which tests stop and resume."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.fit import fit
from ddp.input_config import InputConfig
from ddp.loader import Batch
from ddp.optim_config import OptimConfig
from ddp.progress import Silent
from ddp.source import Dataset, array_split
from ddp.state import random_state
from tests.ranks import run_ranks

SAMPLES, GLOBAL_BATCH = 60, 24
STEPS_PER_EPOCH, EPOCHS = 3, 2

Act = Callable[[int, int, int], None]
"""Told rank, step and micro-batch, in the forward pass; and rank, step and 0 when the step is done."""


class Told(nn.Module):
    """Passes its input on; tells `act` of every training pass."""

    def __init__(self, act: Callable[[int], None]) -> None:
        super().__init__()
        self.act, self.passes = act, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
            self.act(self.passes)
        return x


class Overflow(nn.Module):
    """Makes the gradient of one step infinite, so that with fp16 it is skipped; counts in a buffer."""

    calls: Tensor

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            if int(self.calls) == self.at and x.requires_grad:
                x.register_hook(lambda grad: grad * float("inf"))
        return x


def net(overflow_at: int = 0, act: Callable[[int], None] = lambda call: None) -> nn.Module:
    """Everything that has a state: BatchNorm, dropout, many parameters, so that DDP has several buckets to arrange."""
    torch.manual_seed(0)
    return nn.Sequential(
        Told(act), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), Overflow(overflow_at), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(288, 400), nn.ReLU(), nn.Linear(400, 900), nn.ReLU(), nn.Linear(900, 4),
    )  # fmt: skip


def dataset() -> Dataset:
    """60 random images of four classes."""
    rng = np.random.default_rng(0)
    split = array_split(rng.integers(0, 256, (SAMPLES, 1, 8, 8), dtype=np.uint8), rng.integers(0, 4, SAMPLES))
    return Dataset(
        train=split, test=split, shape=(1, 8, 8), stored=(1, 8, 8), classes=tuple("abcd"), mean=(0.5,), std=(0.3,)
    )  # fmt: skip


def config_of(out: Path, **options: Any) -> TrainConfig:
    optim = options.pop("optim", {})
    return TrainConfig(
        out=out, epochs=EPOCHS, global_batch_size=GLOBAL_BATCH, optim=OptimConfig(lr=0.05, **optim),
        input=InputConfig(cache="none", workers=0), **options,
    )  # fmt: skip


class Ledger(Silent):
    """Writes the samples of each step that was taken, and calls `act(step)`; what is written outlives a SIGKILL."""

    def __init__(self, path: Path, first_step: int, act: Callable[[int], None]) -> None:
        self.file = path.open("a")
        self.steps, self.act = first_step, act

    def step(self, batch: Batch) -> None:
        self.steps += 1
        self.file.write(f"{self.steps} {' '.join(map(str, batch.indices.tolist()))}\n")
        self.file.flush()
        self.act(self.steps)


def newest_step(out: Path) -> int:
    """The step of the newest checkpoint; 0 without any."""
    names = [path.name for path in (out / "checkpoints").glob("step-*") if "." not in path.name]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def run(
    config: TrainConfig,
    world_size: int,
    act: Act = lambda *point: None,
    *,
    overflow_at: int = 0,
    may_die: bool = False,
) -> list[Any]:
    """One launch -> of each rank everything that a run computes; with `may_die`, None of one that was killed."""
    out = config.out
    assert out is not None
    out.mkdir(parents=True, exist_ok=True)
    first_step = newest_step(out)
    launch = len(list(out.glob("ledger-*-0")))

    def work(ctx: DistContext) -> dict[str, Any]:
        def forward(passes: int) -> None:
            act(ctx.rank, first_step + (passes - 1) // config.accumulate + 1, (passes - 1) % config.accumulate + 1)

        ledger = Ledger(out / f"ledger-{launch}-{ctx.rank}", first_step, lambda step: act(ctx.rank, step, 0))
        done = fit(net(overflow_at, forward), dataset(), config, ctx, ledger)
        trainer = done.trainer
        ema = trainer.ema
        return {
            "model": trainer.module.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.scheduler.state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "ema": None if ema is None else [ema.shared_state(), ema.own_state()],
            "strategy": trainer.strategy.own_state(trainer.wrapped),
            "skipped_steps": trainer.skipped_steps,
            "random": random_state(ctx),
            "epochs": [{key: value for key, value in epoch.items() if key[-2:] != "_s"} for epoch in done.epochs],
            "stopped": done.stopped,
        }

    return run_ranks(work, world_size, may_die=may_die)


def ledger(out: Path, launch: int) -> dict[int, list[int]]:
    """Step -> samples that all ranks trained on in it, in one launch."""
    steps: dict[int, list[int]] = {}
    for path in sorted(out.glob(f"ledger-{launch}-*")):
        for line in path.read_text().splitlines():
            step, *ids = map(int, line.split())
            steps.setdefault(step, []).extend(ids)
    return steps


def stop_at(step: int, micro_batch: int, how: str) -> Act:
    """End a launch there: by a signal to one rank, or by SIGKILL to all."""

    def act(rank: int, now: int, part: int) -> None:
        if (now, part) != (step, micro_batch):
            return
        if how == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "SIGTERM" and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    return act


def differing(a: Any, b: Any) -> list[str]:
    """Names of the tensors and values in which two nested states differ, in any bit."""
    if isinstance(a, Tensor):
        return [] if torch.equal(a, b) else ["tensor"]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return ["keys"]
        return [f"{key}.{name}" for key in a for name in differing(a[key], b[key])]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return ["length"]
        return [f"{n}.{name}" for n, pair in enumerate(zip(a, b, strict=True)) for name in differing(*pair)]
    return [] if a == b else [f"{a} {b}"]
