"""A whole training run: data, epochs, evaluation after each, and the model at the end."""

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.evaluate import evaluate
from ddp.loader import Batch, make_loaders
from ddp.loop import Trainer, make_trainer, train_steps
from ddp.progress import Monitor
from ddp.sampler import EvalBatches, TrainBatches
from ddp.source import Dataset
from ddp.syncbn import merge_running_statistics


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number."""


class Meter:
    """Sums losses on the device; only `read` waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.samples = 0

    def add(self, loss_sum: Tensor, samples: int) -> None:
        """Add the losses of one step."""
        self.total += loss_sum
        self.samples += samples

    def read(self) -> float:
        """Mean loss over the samples added so far."""
        return float(self.total) / self.samples


def train_epoch(trainer: Trainer, batches: Iterable[Batch], monitor: Monitor, first_step: int) -> dict[str, Any]:
    """Train on every batch once -> the epoch's mean loss over all ranks, samples and seconds of the slowest rank."""
    ctx = trainer.ctx
    epoch_meter, window = Meter(ctx.device), Meter(ctx.device)
    steps = 0

    def after_step(batch: Batch, loss_sum: Tensor) -> None:
        nonlocal window, steps
        steps += 1
        for meter in (epoch_meter, window):
            meter.add(loss_sum, len(batch.labels))
        monitor.step()
        if steps % trainer.config.log_every == 0:
            monitor.reading(first_step + steps, window.read(), float(trainer.scheduler.get_last_lr()[0]))
            window = Meter(ctx.device)

    ctx.barrier()
    started = time.perf_counter()
    train_steps(trainer, batches, after_step)
    ctx.synchronize()
    elapsed_s = time.perf_counter() - started
    parts = ctx.gather([float(epoch_meter.total), epoch_meter.samples, elapsed_s])
    samples = sum(part[1] for part in parts)
    return {
        "train_loss": math.fsum(part[0] for part in parts) / samples,
        "train_samples": samples,
        "train_s": max(part[2] for part in parts),
    }


def fit(
    module: nn.Module, dataset: Dataset, config: TrainConfig, ctx: DistContext, monitor: Monitor
) -> tuple[Trainer, list[dict[str, Any]]]:
    """Train a model and evaluate it after every epoch -> the trainer, and one dict of plain numbers per epoch.

    Raises Mistake if the data cannot be shared among the ranks, NonFiniteLossError if training diverged.
    """
    shares = (
        TrainBatches(
            samples=len(dataset.train),
            global_batch=config.global_batch(ctx.world_size),
            rank=ctx.rank,
            world_size=ctx.world_size,
            seed=config.seed,
            drop_last=config.drop_last,
        ),
        EvalBatches(samples=len(dataset.test), batch=config.eval_batch_size, rank=ctx.rank, world_size=ctx.world_size),
    )
    loaders = make_loaders(config.input, dataset, shares, ctx, seed=config.seed, channels_last=config.channels_last)
    steps_per_epoch = len(loaders[0])
    trainer = make_trainer(module, config, ctx, config.epochs * steps_per_epoch)
    torch.manual_seed(config.seed + 1_000_003 * (ctx.rank + 1))  # dropout differs between ranks
    epochs: list[dict[str, Any]] = []
    for epoch in range(1, config.epochs + 1):
        loaders[0].set_epoch(epoch)
        monitor.start_epoch(epoch, steps_per_epoch)
        first_step = (epoch - 1) * steps_per_epoch
        result = {"epoch": epoch, **train_epoch(trainer, loaders[0], monitor, first_step)}
        if not math.isfinite(result["train_loss"]):
            raise NonFiniteLossError(
                f"expected a finite training loss, got {result['train_loss']} in epoch {epoch}; "
                "lower --lr, lengthen --warmup, or use --amp bf16 or off"
            )
        result["lr"] = float(trainer.scheduler.get_last_lr()[0])
        if not config.sync_bn:
            merge_running_statistics(trainer.module, ctx.group)
        started = time.perf_counter()
        outcome = evaluate(trainer.module, loaders[1], ctx, config.amp)
        result |= {
            "test_loss": outcome.loss,
            "test_correct": outcome.correct,
            "test_samples": outcome.samples,
            "test_s": time.perf_counter() - started,
        }
        monitor.end_epoch(first_step + steps_per_epoch, result)
        epochs.append(result)
    return trainer, epochs


def save_model(path: Path, module: nn.Module) -> None:
    """Write the weights so that the file is either the old one or the new one, whenever the machine stops."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(module.state_dict(), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
