"""A whole training run: data, epochs, evaluation after each, checkpoints, and the model at the end."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.epoch import Epoch
from ddp.evaluate import evaluate
from ddp.loader import Loader, make_loaders
from ddp.loop import Trainer, make_trainer
from ddp.metrics import Confusion, classification_report
from ddp.optim import scaled_lr
from ddp.progress import Monitor
from ddp.resume import Checkpoints, find_start
from ddp.sampler import EvalBatches, TrainBatches
from ddp.source import Dataset
from ddp.state import Progress
from ddp.stop import Stop, stop_on_signals
from ddp.syncbn import merge_running_statistics

LARGEST_REPORT = 50
"""Classes up to which the report of every class is shown at the end of a run."""


@dataclass(frozen=True)
class Fit:
    """How a run ended."""

    trainer: Trainer
    epochs: list[dict[str, Any]]
    """Plain numbers of each complete epoch."""
    stopped: bool
    """Whether it was stopped by a signal, after writing a checkpoint if there is an --out."""


def _loaders(dataset: Dataset, config: TrainConfig, ctx: DistContext) -> tuple[Loader, Loader]:
    train = TrainBatches(
        samples=len(dataset.train),
        global_batch=config.global_batch(ctx.world_size),
        rank=ctx.rank,
        world_size=ctx.world_size,
        seed=config.seed,
        drop_last=config.drop_last,
    )
    test = EvalBatches(
        samples=len(dataset.test), batch=config.eval_batch_size, rank=ctx.rank, world_size=ctx.world_size
    )
    return make_loaders(config.input, dataset, (train, test), ctx, seed=config.seed, channels_last=config.channels_last)


def fit(module: nn.Module, dataset: Dataset, config: TrainConfig, ctx: DistContext, monitor: Monitor) -> Fit:
    """Train a model and evaluate it after every epoch, from the beginning or from a checkpoint.

    Raises Mistake if the data cannot be shared among the ranks or the checkpoint is of another run,
    NonFiniteLossError if training diverged.
    """
    start = find_start(config, ctx, monitor.say)
    loaders = _loaders(dataset, config, ctx)
    trainer = make_trainer(module, config, ctx, config.epochs * len(loaders[0]))
    torch.manual_seed(config.seed + 1_000_003 * (ctx.rank + 1))  # dropout differs between ranks
    if config.optim.lr_scaling != "none":
        lr = scaled_lr(config.optim, config.global_batch(ctx.world_size))
        monitor.say(
            f"learning rate {lr:g} = {config.optim.lr:g}, scaled ({config.optim.lr_scaling}) from a batch of "
            f"{config.optim.lr_base_batch} to {config.global_batch(ctx.world_size)}"
        )
    checkpoints = Checkpoints(trainer, dataset)
    progress, sums = Progress(), None
    if start is not None:
        progress, sums = checkpoints.load(start)
        monitor.say(f"resumed from {start}: step {progress.step}, epoch {progress.epoch}")
    with stop_on_signals(ctx, config.timeout_s) as stop:
        while progress.epoch <= config.epochs:
            epoch = _run_epoch(trainer, loaders, checkpoints, (progress, sums), (monitor, stop))
            sums = None
            if epoch.stopped:
                return Fit(trainer, progress.epochs, stopped=True)
    return Fit(trainer, progress.epochs, stopped=False)


def _run_epoch(
    trainer: Trainer,
    loaders: tuple[Loader, Loader],
    checkpoints: Checkpoints,
    start: tuple[Progress, dict[str, Any] | None],
    watch: tuple[Monitor, Stop],
) -> Epoch:
    """Train and evaluate one epoch, or the rest of one; a checkpoint follows. `start`: progress, sums so far."""
    (progress, sums), (monitor, stop) = start, watch
    epoch = Epoch(trainer, monitor, stop, progress)
    if sums is not None:
        epoch.restore(sums)
    loaders[0].set_epoch(progress.epoch, done=progress.samples)
    monitor.start_epoch(progress.epoch, len(loaders[0]))
    epoch.train(loaders[0], lambda: checkpoints.save(epoch))
    if epoch.stopped:
        checkpoints.save(epoch)
        return epoch
    result = {"epoch": progress.epoch, "step": progress.step, **epoch.result()}
    result["lr"] = float(trainer.scheduler.get_last_lr()[0])
    numbers, confusion = _evaluation(trainer, loaders[1])
    result |= numbers
    monitor.end_epoch(progress.step, result)
    classes = loaders[1].dataset.classes
    if progress.epoch == trainer.config.epochs and len(classes) <= LARGEST_REPORT:
        monitor.say(classification_report(confusion, classes))
    progress.epochs.append(result)
    progress.epoch, progress.samples = progress.epoch + 1, 0
    checkpoints.save(Epoch(trainer, monitor, stop, progress))
    return epoch


def _evaluation(trainer: Trainer, loader: Loader) -> tuple[dict[str, Any], Confusion]:
    """The plain numbers of an evaluation, and its confusion matrix."""
    if not trainer.config.sync_bn:
        merge_running_statistics(trainer.module, trainer.ctx.group)
    started = time.perf_counter()
    outcome = evaluate(trainer.module, loader, trainer.ctx, trainer.config.amp)
    numbers = {
        "test_loss": outcome.loss,
        "test_correct": outcome.correct,
        "test_top5_correct": outcome.top5_correct,
        "test_samples": outcome.samples,
        "test_s": time.perf_counter() - started,
    }
    return numbers, outcome.confusion


def save_model(path: Path, module: nn.Module) -> None:
    """Write the weights so that the file is either the old one or the new one, whenever the machine stops."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(module.state_dict(), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
