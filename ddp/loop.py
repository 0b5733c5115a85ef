"""The one training loop: what trains a model is what the benchmarks measure."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from ddp.guard import GuardedStep, NonFiniteError
from ddp.loader import Batch
from ddp.optim import add_l1
from ddp.precision import autocast
from ddp.task import Phase
from ddp.trainer import Trainer


def backward(trainer: Trainer, batch: Batch, phase: Phase) -> Tensor:
    """Gradients of the mean loss over all ranks' samples -> losses of this rank's samples, [N].

    With --accumulate the batch is cut into micro-batches, and only the last one's backward pass communicates. All ranks
    cut theirs into the same number, none of them empty, since SyncBN communicates in every one.
    """
    config, ctx = trainer.config, trainer.ctx
    parts = min(config.accumulate, max(1, batch.global_count // ctx.world_size))
    changed = None
    if phase.part is not None:
        changed = [each for each in trainer.module.get_submodule(phase.part).parameters() if each.requires_grad]
    seen = []
    for number, part in enumerate(batch.split(parts) if parts > 1 else [batch], start=1):
        # DDP decides in the forward pass whether the backward pass communicates, so both stand inside.
        with nullcontext() if number == parts else trainer.strategy.without_communication(trainer.wrapped):
            with autocast(config.amp, ctx.device):
                losses = phase.losses(trainer, part)
                total = losses.sum()
                # 1, or NaN if the loss is not finite: then no gradient is, on any rank. An infinite loss may well have
                # finite gradients, from which the other ranks would learn nothing of it.
                one_or_nan = total.detach() * 0 + 1
                loss = total * (ctx.world_size / batch.global_count) * one_or_nan
            trainer.mark("forward")
            trainer.scaler.scale(loss).backward(inputs=changed)
            trainer.mark("backward")
        seen.append(losses.detach())
    return seen[0] if parts == 1 else torch.cat(seen)


@dataclass(frozen=True)
class _Updated:
    """What an update was made of."""

    loss_sum: Tensor
    done: bool
    """False if it was left out because an fp16 gradient overflowed."""


def train_step(trainer: Trainer, batch: Batch) -> Tensor:
    """The updates from one global batch -> sum of this rank's losses, float32 [], on the device, without a wait.

    The loss is the mean over the samples of all ranks, however unequal their shares: DDP averages gradients over
    ranks, so each rank contributes sum(losses) * ranks / global samples. Raises NonFiniteError on all ranks before an
    update by gradients that are not finite; on a GPU in the step after it, with the weights as before it.
    """
    task = trainer.task
    batch = task.prepare(trainer, batch)
    updates = []
    for phase in task.phases:
        updates.append(_update(trainer, batch, phase))
        trainer.mark("optimizer")
    if updates[-1].done:
        trainer.scheduler.step()
        if trainer.ema is not None:
            trainer.ema.update(trainer.module)
    return updates[0].loss_sum if len(updates) == 1 else torch.stack([each.loss_sum for each in updates]).sum()


def _update(trainer: Trainer, batch: Batch, phase: Phase) -> _Updated:
    """One update. What has no gradient afterwards, such as the parts that another phase is for, stays as it is."""
    trainer.optimizer.zero_grad(set_to_none=True)
    losses = backward(trainer, batch, phase)
    optim = trainer.config.optim
    if optim.l1 or optim.clip_norm:
        trainer.scaler.unscale_(trainer.optimizer)  # does nothing without fp16
        add_l1(trainer.optimizer, optim.l1)
    if trainer.scaler.is_enabled():
        trainer.grad_norm = _clip(trainer) if optim.clip_norm else None  # of scaled gradients it means nothing
        return _Updated(losses.sum(), _scaled_update(trainer, batch, losses))
    trainer.grad_norm = norm = _clip(trainer)
    trainer.guard.admit(norm, batch, losses)
    trainer.optimizer.step()
    return _Updated(losses.sum(), done=True)


def _clip(trainer: Trainer) -> Tensor:
    """Clip gradients if asked to -> their norm before that, float32 []."""
    parameters = [each for group in trainer.optimizer.param_groups for each in group["params"] if each.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([each.grad for each in parameters])))
    clip_norm = trainer.config.optim.clip_norm
    if clip_norm:
        clip_grads_with_norm_(parameters, clip_norm, norm, foreach=True)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # with fsdp2 it is one of shards


def _scaled_update(trainer: Trainer, batch: Batch, losses: Tensor) -> bool:
    """Update by scaled gradients -> whether none of them had overflowed, alike on all ranks.

    An overflow only lowers the scale, unless a loss itself is not finite. Raises NonFiniteError on all ranks then.
    """
    scale = trainer.scaler.get_scale()
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    if trainer.scaler.get_scale() >= scale:
        return True
    trainer.skipped_steps += 1
    if trainer.ctx.sum(1 - torch.isfinite(losses).all().float()).item():
        raise NonFiniteError(GuardedStep(batch, losses), at_once=True)
    return False


def train_steps(trainer: Trainer, batches: Iterable[Batch], after_step: Callable[[Batch, Tensor], bool | None]) -> None:
    """Train on every batch, until `after_step(batch, sum of this rank's losses)` returns True.

    It is called when a step has been issued, at the same steps on every rank, and must answer alike on all.
    """
    trainer.train_mode()
    for batch in batches:
        if after_step(batch, train_step(trainer, batch)):
            return
