"""The one training loop: what trains a model is what the benchmarks measure."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.discover import find
from ddp.loader import Batch
from ddp.optim import add_l1, make_optimizer, make_scheduler, scaled_lr
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

    def without_communication(self) -> AbstractContextManager[None]:
        """A context in which backward passes add to this rank's gradients only."""
        if isinstance(self.wrapped, DistributedDataParallel):
            return self.wrapped.no_sync()
        return nullcontext()


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
    optim = replace(config.optim, lr=scaled_lr(config.optim, config.global_batch(ctx.world_size)), lr_scaling="none")
    optimizer = make_optimizer(optim, module)
    return Trainer(
        module=module,
        wrapped=wrapped,
        optimizer=optimizer,
        scheduler=make_scheduler(optim, optimizer, total_steps),
        scaler=grad_scaler(config.amp, ctx.device),
        config=config,
        ctx=ctx,
    )


def _backward(trainer: Trainer, batch: Batch) -> Tensor:
    """Gradients of the mean loss over all ranks' samples -> sum of this rank's losses, float32 [].

    With --accumulate the batch is cut into micro-batches, and only the last one's backward pass communicates. All ranks
    cut theirs into the same number, none of them empty, since SyncBN communicates in every one.
    """
    config, ctx = trainer.config, trainer.ctx
    parts = min(config.accumulate, max(1, batch.global_count // ctx.world_size))
    images, labels = batch.images.tensor_split(parts), batch.labels.tensor_split(parts)
    total = torch.zeros((), device=ctx.device)
    for part in range(parts):
        # DDP decides in the forward pass whether the backward pass communicates, so both stand inside.
        with nullcontext() if part == parts - 1 else trainer.without_communication():
            with autocast(config.amp, ctx.device):
                loss_sum = cross_entropy(
                    trainer.wrapped(images[part]),
                    labels[part],
                    reduction="sum",
                    label_smoothing=config.optim.label_smoothing,
                )
            trainer.scaler.scale(loss_sum * (ctx.world_size / batch.global_count)).backward()
        total += loss_sum.detach()
    return total


def train_step(trainer: Trainer, batch: Batch) -> Tensor:
    """One update from one global batch -> sum of this rank's losses, float32 [], on the device, without a wait.

    The loss is the mean over the samples of all ranks, however unequal their shares: DDP averages gradients over
    ranks, so each rank contributes sum(losses) * ranks / global samples.
    """
    trainer.optimizer.zero_grad(set_to_none=True)
    loss_sum = _backward(trainer, batch)
    optim = trainer.config.optim
    if optim.l1:
        trainer.scaler.unscale_(trainer.optimizer)  # does nothing without fp16
        add_l1(trainer.optimizer, optim.l1)
    if trainer.scaler.is_enabled():
        scale = trainer.scaler.get_scale()
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
        if trainer.scaler.get_scale() < scale:
            trainer.skipped_steps += 1
            return loss_sum
    else:
        trainer.optimizer.step()
    trainer.scheduler.step()
    return loss_sum


def train_steps(trainer: Trainer, batches: Iterable[Batch], after_step: Callable[[Batch, Tensor], bool | None]) -> None:
    """Train on every batch, until `after_step(batch, sum of this rank's losses)` returns True.

    It is called when a step has been issued, at the same steps on every rank, and must answer alike on all.
    """
    trainer.wrapped.train()
    for batch in batches:
        if after_step(batch, train_step(trainer, batch)):
            return
