"""The one training loop: what trains a model is what the benchmarks measure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.discover import find
from ddp.loader import Batch
from ddp.optim import make_optimizer, make_scheduler
from ddp.precision import autocast, grad_scaler
from ddp.syncbn import convert_sync_batchnorm


@dataclass
class Trainer:
    """Everything that a training step reads and changes."""

    module: nn.Module
    """The model itself, for evaluation and saving."""
    wrapped: nn.Module
    """The model as the strategy wraps it, for training."""
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    config: TrainConfig
    ctx: DistContext
    skipped_steps: int = 0
    """Steps without an update because an fp16 gradient overflowed."""


def make_trainer(module: nn.Module, config: TrainConfig, ctx: DistContext, total_steps: int) -> Trainer:
    """Put a model on its device and make it data parallel. The order matters: parameters must not move afterwards.

    Raises Mistake if the strategy is unknown or does not fit the number of ranks.
    """
    name = config.strategy
    if name == "auto":
        name = "ddp" if ctx.world_size > 1 else "single"
    strategy = find("ddp.strategies", name, kind="strategy")
    module = module.to(ctx.device)
    if config.channels_last:
        module = module.to(memory_format=torch.channels_last)
    if config.sync_bn:
        module = convert_sync_batchnorm(module, ctx.group, ctx.device)
    wrapped = strategy.wrap(module, ctx)
    optimizer = make_optimizer(config.optim, module)
    return Trainer(
        module=module,
        wrapped=wrapped,
        optimizer=optimizer,
        scheduler=make_scheduler(config.optim, optimizer, total_steps),
        scaler=grad_scaler(config.amp, ctx.device),
        config=config,
        ctx=ctx,
    )


def train_step(trainer: Trainer, batch: Batch) -> Tensor:
    """One update from one global batch -> sum of this rank's losses, float32 [], on the device, without a wait.

    The loss is the mean over the samples of all ranks, however unequal their shares: DDP averages gradients over
    ranks, so each rank contributes sum(losses) * ranks / global samples.
    """
    config, ctx = trainer.config, trainer.ctx
    trainer.optimizer.zero_grad(set_to_none=True)
    with autocast(config.amp, ctx.device):
        logits = trainer.wrapped(batch.images)
        loss_sum = cross_entropy(logits, batch.labels, reduction="sum", label_smoothing=config.optim.label_smoothing)
    loss = loss_sum * (ctx.world_size / batch.global_count)
    trainer.scaler.scale(loss).backward()
    if trainer.scaler.is_enabled():
        scale = trainer.scaler.get_scale()
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
        if trainer.scaler.get_scale() < scale:
            trainer.skipped_steps += 1
            return loss_sum.detach()
    else:
        trainer.optimizer.step()
    trainer.scheduler.step()
    return loss_sum.detach()


def train_steps(trainer: Trainer, batches: Iterable[Batch], after_step: Callable[[Batch, Tensor], None]) -> None:
    """Train on every batch; `after_step(batch, sum of this rank's losses)` is called when a step has been issued."""
    trainer.wrapped.train()
    for batch in batches:
        after_step(batch, train_step(trainer, batch))
