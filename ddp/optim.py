"""Optimizers, penalties and learning-rate schedules."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ddp.optim_config import OptimConfig

Groups = list[dict[str, Any]]

ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 1e4
"""Shares of the peak learning rate. Source: OneCycleLR with div_factor 25 and final_div_factor 1e4 / 25."""


def parameter_groups(config: OptimConfig, module: nn.Module) -> Groups:
    """All parameters that want gradients, in one group, or in two if biases and normalisation do not decay."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if config.decay_norm_and_bias:
        return [{"params": parameters, "weight_decay": config.weight_decay}]
    groups = [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _sgd(config: OptimConfig, groups: Groups, fast: dict[str, Any]) -> torch.optim.Optimizer:
    nesterov = config.nesterov and config.momentum > 0  # torch refuses it without momentum, where it changes nothing
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, **fast)


def _betas(config: OptimConfig) -> tuple[float, float]:
    first, second = config.betas
    return first, second


FOREACH: dict[str, Any] = {"foreach": True}
# torch has no fused form of rmsprop and asgd.
OPTIMIZERS: dict[str, Callable[[OptimConfig, Groups, dict[str, Any]], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": lambda config, groups, fast: torch.optim.Adam(groups, lr=config.lr, betas=_betas(config), **fast),
    "adamw": lambda config, groups, fast: torch.optim.AdamW(groups, lr=config.lr, betas=_betas(config), **fast),
    "rmsprop": lambda config, groups, fast: torch.optim.RMSprop(groups, lr=config.lr, **FOREACH),
    "adagrad": lambda config, groups, fast: torch.optim.Adagrad(groups, lr=config.lr, **fast),
    "asgd": lambda config, groups, fast: torch.optim.ASGD(groups, lr=config.lr, **FOREACH),
}


def make_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over all parameters that want gradients, in torch's fused form where there is one.

    Sharded parameters (fsdp2) get the form for lists of tensors: not every fused one knows them.
    """
    sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())
    return OPTIMIZERS[config.optimizer](
        config, parameter_groups(config, module), FOREACH if sharded else {"fused": True}
    )


@torch.no_grad()
def add_l1(optimizer: torch.optim.Optimizer, l1: float) -> None:
    """Add the gradient of `l1 * sum(|p|)` to every gradient, in place; those of fp16 must be unscaled before."""
    if l1 == 0:
        return
    parameters = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
    if parameters:
        torch._foreach_add_([each.grad for each in parameters], torch._foreach_sign(parameters), alpha=l1)


def scaled_lr(config: OptimConfig, global_batch: int) -> float:
    """The peak learning rate for that many samples of all ranks in a step, by --lr-scaling.

    Source: Goyal et al. 2017, section 2.1 (linear); Krizhevsky 2014, section 5 (square root).
    """
    ratio = global_batch / config.lr_base_batch
    return config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.lr_scaling]


# Share of the peak after the warm-up, of the run since then in [0, 1], and of the whole run in (0, 1).
CURVES: dict[str, Callable[[OptimConfig, float, float], float]] = {
    "linear": lambda config, since, done: 1 - since,
    "cosine": lambda config, since, done: (1 + math.cos(math.pi * since)) / 2,
    "constant": lambda config, since, done: 1.0,
    "step": lambda config, since, done: config.lr_gamma ** int(done / config.lr_step),
    "multistep": lambda config, since, done: config.lr_gamma ** sum(share <= done for share in config.lr_milestones),
}


def _one_cycle(step: int, warmup_steps: int, total_steps: int) -> float:
    """Half a cosine up to the peak at the end of the warm-up, and half a cosine down to the last step."""
    peak, last = warmup_steps - 1, total_steps - 1
    if step < peak:
        start, end, share = ONE_CYCLE_START, 1.0, step / peak
    else:
        start, end, share = 1.0, ONE_CYCLE_END, min(1.0, (step - peak) / max(1, last - peak))
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def lr_factor(config: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """Share of the peak learning rate at a step, counted from 0: a rise, then the schedule's fall.

    It depends on nothing but the step, so that a resumed run goes on exactly.
    """
    warmup_steps = round(config.warmup * total_steps)
    last = max(1, total_steps) - 1

    def factor(step: int) -> float:
        if config.schedule == "one-cycle":
            return _one_cycle(step, warmup_steps, total_steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        since = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        done = (min(step, last) + 0.5) / (last + 1)  # a step's middle, so that a drop falls on the nearest step
        return CURVES[config.schedule](config, since, done)

    return factor


def make_scheduler(
    config: OptimConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """A scheduler to be stepped once after every optimizer step that was not skipped."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(config, total_steps))
