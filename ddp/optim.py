"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ddp.config import OptimConfig


def make_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over all parameters that want gradients, in torch's fused form."""
    parameters: list[Any] = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=True,
    )


def lr_factor(config: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """Share of the peak learning rate at a step, counted from 0: a linear rise, then the schedule's fall to zero."""
    warmup_steps = round(config.warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        if config.schedule == "linear":
            return 1 - progress
        if config.schedule == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 1.0

    return factor


def make_scheduler(
    config: OptimConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """A scheduler to be stepped once after every optimizer step that was not skipped."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(config, total_steps))
