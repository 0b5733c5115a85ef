"""A whole training run: data, epochs, evaluation after each, checkpoints, and the model at the end."""

import os
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.early_stop import best, exhausted, score
from ddp.epoch import Epoch
from ddp.loader import Batch, Loader
from ddp.mistake import Mistake, MistakeOfAll
from ddp.optim import scaled_lr
from ddp.progress import Monitor
from ddp.resume import Checkpoints, find_start
from ddp.source import Dataset
from ddp.state import Progress, seed_generators
from ddp.stop import Stop, stop_on_signals
from ddp.syncbn import merge_running_statistics
from ddp.task import Task
from ddp.trainer import CLASSIFICATION, Trainer, make_trainer
from ddp.warm_up import warm_up


@dataclass(frozen=True)
class Fit:
    """How a run ended."""

    trainer: Trainer
    epochs: list[dict[str, Any]]
    """Plain numbers of each complete epoch."""
    stopped: bool
    """Whether it was stopped by a signal, after writing a checkpoint if there is an --out."""


def fit(
    module: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    ctx: DistContext,
    monitor: Monitor,
    task: Task = CLASSIFICATION,
) -> Fit:
    """Train a model and evaluate it after every epoch, from the beginning or from a checkpoint.

    Raises MistakeOfAll if the options do not fit the ranks, the data or the model, or the checkpoint is of another run;
    NonFiniteLossError if training diverged, RanksDifferError if a comparison of the ranks' state fails.
    """
    try:
        start = find_start(config, ctx, monitor.say)
        loaders = task.make_loaders(config, dataset, ctx, module)
        trainer = make_trainer(module, config, ctx, config.epochs * len(loaders[0]), task)
        seed_generators(config.seed + 1_000_003 * (ctx.rank + 1))  # dropout differs between ranks
        checkpoints = Checkpoints(trainer, dataset, loaders[0])
        progress, sums = Progress(), None
        if start is not None:
            progress, sums = checkpoints.load(start)
    except Mistake as error:
        raise MistakeOfAll(str(error)) from None
    _say_beginning(trainer, progress, start, monitor)
    if start is None and config.compile != "off":
        started = time.perf_counter()
        warm_up(trainer, dataset.shape, len(dataset.classes))
        monitor.say(f"compiled ({config.compile_backend}) in {time.perf_counter() - started:.1f} s, outside all rates")
    with stop_on_signals(ctx, config.timeout_s) as stop:
        while not _complete(progress.epochs, config):
            epoch = _run_epoch(trainer, loaders, checkpoints, (progress, sums), (monitor, stop))
            sums = None
            if epoch.stopped:
                return Fit(trainer, progress.epochs, stopped=True)
    return Fit(trainer, progress.epochs, stopped=False)


def _say_beginning(trainer: Trainer, progress: Progress, start: Path | None, monitor: Monitor) -> None:
    """What a person should know before the first step."""
    config, ctx = trainer.config, trainer.ctx
    if config.optim.lr_scaling != "none":
        lr = scaled_lr(config.optim, config.global_batch(ctx.world_size))
        monitor.say(
            f"learning rate {lr:g} = {config.optim.lr:g}, scaled ({config.optim.lr_scaling}) from a batch of "
            f"{config.optim.lr_base_batch} to {config.global_batch(ctx.world_size)}"
        )
    if config.initial.freeze:
        sizes = [each.numel() for each in trainer.module.parameters() if each.requires_grad]
        monitor.say(f"frozen: {', '.join(config.initial.freeze)}; {sum(sizes):,} parameters are trained")
    if start is not None:
        monitor.resumed(progress.step)
        monitor.say(f"resumed from {start}: step {progress.step}, epoch {progress.epoch}")


def _complete(epochs: list[dict[str, Any]], config: TrainConfig) -> bool:
    return len(epochs) >= config.epochs or exhausted(epochs, config.patience, config.min_delta)


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
    batches: Iterable[Batch] = loaders[0]
    if stop.steps == 0:
        batches = _begun(loaders[0], trainer, monitor)
    epoch.train(batches, lambda: checkpoints.save(epoch))
    if epoch.stopped:
        checkpoints.save(epoch)
        return epoch
    result = {"epoch": progress.epoch, "step": progress.step, **epoch.result()}
    result["lr"] = float(trainer.scheduler.get_last_lr()[0])
    _evaluate(trainer, loaders[1], progress, result, monitor)
    progress.epoch, progress.samples = progress.epoch + 1, 0
    checkpoints.save(Epoch(trainer, monitor, stop, progress))
    return epoch


def _begun(loader: Loader, trainer: Trainer, monitor: Monitor) -> Iterable[Batch]:
    """The loader's batches, after the monitor was told of the first, which may take it a while: outside the clock."""
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        return ()
    monitor.begin(trainer.module, first, loader.dataset)
    return chain([first], batches)


def _evaluate(trainer: Trainer, loader: Loader, progress: Progress, result: dict[str, Any], monitor: Monitor) -> None:
    """Add the results of the epoch to those of the run, and write weights that are the best or the last."""
    config, module = trainer.config, trainer.module
    if isinstance(loader, Loader):  # episodes have no batches
        loader.on_batch = monitor.alive
    if not config.equal_buffers:
        merge_running_statistics(module, trainer.ctx.group)
    with nullcontext() if trainer.ema is None else trainer.ema.applied(module):
        if trainer.ema is not None and not config.equal_buffers:
            merge_running_statistics(module, trainer.ctx.group)
        started = time.perf_counter()
        with trainer.strategy.evaluating(module):
            outcome = trainer.task.evaluate(trainer, loader)
        result |= outcome.numbers | {"test_score": outcome.score, "test_s": time.perf_counter() - started}
        progress.epochs.append(result)
        if config.out is not None and best(progress.epochs) is result:
            save_weights(config.out / "best.pt", trainer)
        if config.out is not None and _complete(progress.epochs, config):
            save_weights(config.out / "model.pt", trainer)
    monitor.end_epoch(progress.step, result, outcome)
    if outcome.confusion is not None:
        monitor.confusion(progress.step, outcome.confusion, loader.dataset.classes)
    if _complete(progress.epochs, config):
        _say_farewell(progress.epochs, outcome.report, trainer, monitor)


def _say_farewell(epochs: list[dict[str, Any]], report: str, trainer: Trainer, monitor: Monitor) -> None:
    """What a person should know at the end of a run."""
    config, task, top = trainer.config, trainer.task, best(epochs)
    if report:
        monitor.say(report)
    if top is not None and len(epochs) < config.epochs:
        where = "" if config.out is None else f", whose weights are in {config.out / 'best.pt'}"
        monitor.say(
            f"stopped early: no better {task.metric} in {config.patience} epochs than {task.shown(score(top))} of "
            f"epoch {top['epoch']}{where}"
        )


def save_weights(path: Path, trainer: Trainer) -> None:
    """Write the model, from rank 0, so that the file is the old one or the new one, whenever the machine stops.

    Every rank must call this.
    """
    state = trainer.strategy.model_state(trainer.module)
    if not trainer.ctx.is_main:
        return
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
