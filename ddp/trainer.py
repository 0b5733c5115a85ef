"""What a training step reads and changes, and how it is put together."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.discover import find
from ddp.ema import Ema
from ddp.freeze import freeze, hold_still
from ddp.guard import Guard, can_defer
from ddp.mistake import require
from ddp.optim import make_optimizer, make_scheduler, scaled_lr
from ddp.parts import InParts
from ddp.precision import grad_scaler, set_tf32
from ddp.refusals import check_pairs
from ddp.strategy import Strategy
from ddp.syncbn import convert_sync_batchnorm, node_group
from ddp.task import Task
from ddp.tasks.classification import TASK as CLASSIFICATION

BY_PARTS = ("ddp", "ddp-spawn", "single")
"""Strategies that can wrap the parts of a model by themselves."""


def unmarked(name: str) -> None:
    """What `Trainer.mark` is where nobody measures."""


@dataclass
class Trainer:
    """Everything that a training step reads and changes."""

    module: nn.Module
    """The model itself, for evaluation and saving."""
    wrapped: nn.Module
    """The model as the strategy wraps it."""
    forward: Callable[..., Any]
    """What a training step calls: `wrapped`, compiled if asked for."""
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    config: TrainConfig
    ctx: DistContext
    strategy: Strategy
    guard: Guard
    task: Task
    ema: Ema | None = None
    skipped_steps: int = 0
    """Steps without an update because an fp16 gradient overflowed."""
    grad_norm: Tensor | None = None
    """Norm of the last step's gradients before clipping, float32 [], on the device; None if they were scaled."""
    mark: Callable[[str], None] = unmarked
    """Called with `forward`, `backward` or `optimizer` when that part of a step has been issued."""

    def train_mode(self) -> None:
        """Put the model into training mode."""
        self.wrapped.train()
        hold_still(self.module, self.config.initial.freeze)


def make_trainer(
    module: nn.Module, config: TrainConfig, ctx: DistContext, total_steps: int, task: Task = CLASSIFICATION
) -> Trainer:
    """Put a model on its device and make it data parallel. The order matters: parameters must not move afterwards.

    Raises Mistake if the strategy is unknown or does not fit the number of ranks or the task.
    """
    name = config.strategy
    if name == "auto":
        name = "ddp" if ctx.world_size > 1 else "single"
    check_pairs(config, ctx.world_size)
    strategy: Strategy = find("ddp.strategies", name, kind="strategy").STRATEGY
    if task.parts:
        require(name in BY_PARTS, f"--strategy {' or '.join(BY_PARTS)} for a model of several parts", name, "omit it")
        strategy = InParts(strategy, task.parts)
    set_tf32(config.tf32)
    if config.initial.freeze:
        freeze(module, config.initial.freeze)
    module = module.to(ctx.device)
    if config.channels_last:
        module = module.to(memory_format=torch.channels_last)
    if config.sync_bn:
        group = node_group(ctx) if config.parallel.sync_bn_scope == "node" else ctx.group
        module = convert_sync_batchnorm(module, group, ctx.device)
    wrapped, forward = _wrapped(module, strategy, config, ctx)
    optim = replace(config.optim, lr=scaled_lr(config.optim, config.global_batch(ctx.world_size)), lr_scaling="none")
    optimizer = make_optimizer(optim, module)
    return Trainer(
        module=module,
        wrapped=wrapped,
        forward=forward,
        optimizer=optimizer,
        scheduler=make_scheduler(optim, optimizer, total_steps),
        scaler=grad_scaler(config.amp, ctx.device),
        config=config,
        ctx=ctx,
        strategy=strategy,
        guard=Guard(optimizer, deferred=can_defer(optimizer, ctx.device)),
        task=task,
        ema=Ema(module, optim.ema_decay) if optim.ema_decay else None,
    )


def _wrapped(
    module: nn.Module, strategy: Strategy, config: TrainConfig, ctx: DistContext
) -> tuple[nn.Module, Callable[..., Any]]:
    """The model in its wrapper, and what to call. Evaluation and checkpoints use the model itself, not compiled."""
    backend = config.compile_backend
    inner = cast("nn.Module", torch.compile(module, backend=backend)) if config.compile == "inside" else module
    wrapped = strategy.wrap(inner, ctx, config)
    return wrapped, torch.compile(wrapped, backend=backend) if config.compile == "outside" else wrapped
