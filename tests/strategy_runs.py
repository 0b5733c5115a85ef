"""Short trainings by any strategy, in float64 and without BatchNorm, which tests compare with one process."""

from typing import Any

import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.loader import Batch
from ddp.loop import train_step
from ddp.optim_config import OptimConfig
from ddp.parallel_config import ParallelConfig
from ddp.trainer import Trainer, make_trainer

SHAPE = (3, 2, 2)
UNEVEN = {1: [7], 2: [5, 2], 3: [4, 2, 1], 4: [3, 2, 1, 1]}
"""Shares of a step's 7 samples by number of ranks."""


class FlatDouble(nn.Flatten):
    """Images of any precision to rows of float64."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).double()


def net() -> nn.Module:
    """12 -> 40 -> 40 -> 5."""
    torch.manual_seed(1)
    return nn.Sequential(
        FlatDouble(), nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5)
    ).double()


def config(strategy: str, parallel: dict[str, Any] | None = None, **options: Any) -> TrainConfig:
    """AdamW, or the `optimizer` among the options."""
    optim = OptimConfig(optimizer=options.pop("optimizer", "adamw"), lr=0.01, schedule="constant", warmup=0)
    return TrainConfig(
        strategy=strategy, batch_size=4, optim=optim, parallel=ParallelConfig(**(parallel or {})), **options
    )


def trainer_for(ctx: DistContext, options: TrainConfig) -> Trainer:
    """A fresh trainer in training mode."""
    trainer = make_trainer(net(), options, ctx, total_steps=100)
    trainer.train_mode()
    return trainer


def train(trainer: Trainer, first: int, last: int) -> Trainer:
    """Train on steps first..last-1, each a function of its number."""
    ctx = trainer.ctx
    sizes = UNEVEN[ctx.world_size]
    start = sum(sizes[: ctx.rank])
    mine = slice(start, start + sizes[ctx.rank])
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(sum(sizes), *SHAPE, dtype=torch.float64, generator=generator)
        labels = torch.randint(5, (sum(sizes),), generator=generator)
        train_step(trainer, Batch(images[mine], labels[mine], sum(sizes), torch.arange(sum(sizes))[mine]))
    return trainer


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """The whole model, and its last gradients."""
    state = trainer.strategy.model_state(trainer.module)
    grads = {f"grad {name}": parameter.grad for name, parameter in trainer.module.named_parameters()}
    whole = {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in grads.items()}
    return {name: tensor.clone() for name, tensor in {**state, **whole}.items()}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Over all tensors of two models."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
