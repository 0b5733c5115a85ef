"""Steps of any task on any number of ranks, in float64, which tests compare with one process."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.loader import Batch
from ddp.loop import backward, train_step
from ddp.optim_config import OptimConfig
from ddp.source import Dataset, array_split
from ddp.task import Outcome, Task
from ddp.trainer import Trainer, make_trainer
from tests.ranks import run_ranks

SHARES = {1: [7], 2: [5, 2], 3: [4, 2, 1], 4: [3, 2, 1, 1]}
"""Shares of a step's 7 samples by number of ranks."""
OPTIM = OptimConfig(lr=0.05, schedule="constant", warmup=0)

Build = Callable[[], nn.Module]


def images(train: int = 50, test: int = 37, size: int = 16) -> Dataset:
    """Random grey images, normalised by a mean and a deviation that are easy to tell from others."""
    rng = np.random.default_rng(0)

    def split(samples: int) -> Any:
        pixels = rng.integers(0, 256, (samples, 1, size, size), dtype=np.uint8)
        return array_split(pixels, np.zeros(samples, dtype=np.int64))

    return Dataset(
        train=split(train), test=split(test), shape=(1, size, size), stored=(1, size, size), classes=("one",),
        mean=(0.3,), std=(0.4,), flip=False,
    )  # fmt: skip


def trainer_for(ctx: DistContext, task: Task, build: Build, **options: Any) -> Trainer:
    """A fresh trainer of a float64 model, in training mode, with the same weights on every rank."""
    torch.manual_seed(0)
    config = TrainConfig(batch_size=4, optim=options.pop("optim", OPTIM), **options)
    trainer = make_trainer(build().double(), config, ctx, 100, task)
    trainer.train_mode()
    return trainer


def shared_batch(ctx: DistContext, task: Task, shape: tuple[int, ...], classes: int = 2, seed: int = 1) -> Batch:
    """This rank's share of 7 random samples."""
    sizes = SHARES[ctx.world_size]
    start = sum(sizes[: ctx.rank])
    mine = slice(start, start + sizes[ctx.rank])
    inputs, targets, _ = task.random_batch(shape, classes, 7, torch.Generator().manual_seed(seed))
    targets = targets.double() if targets.is_floating_point() else targets
    return Batch(inputs.double()[mine], targets[mine], 7, torch.arange(7)[mine])


def steps(ranks: int, task: Task, build: Build, shape: tuple[int, ...], **options: Any) -> list[dict[str, Tensor]]:
    """Of each rank: the gradients of each phase at the first weights, and all state after two steps."""

    def work(ctx: DistContext) -> dict[str, Tensor]:
        trainer = trainer_for(ctx, task, build, **options)
        found: dict[str, Tensor] = {}
        before = {name: buffer.clone() for name, buffer in trainer.module.named_buffers()}
        for number, phase in enumerate(task.phases):
            trainer.optimizer.zero_grad(set_to_none=True)
            backward(trainer, shared_batch(ctx, task, shape), phase)
            for name, parameter in trainer.module.named_parameters():
                if parameter.grad is not None:
                    found[f"gradient {number} {name}"] = parameter.grad.clone()
        for name, buffer in trainer.module.named_buffers():
            buffer.copy_(before[name])
        for seed in (2, 3):
            train_step(trainer, shared_batch(ctx, task, shape, seed=seed))
        return found | {name: value.clone() for name, value in trainer.module.state_dict().items()}

    return run_ranks(work, ranks)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Over all tensors of two ranks."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def outcome(ranks: int, task: Task, build: Build, dataset: Dataset, **options: Any) -> list[Outcome]:
    """Of each rank, what evaluation says of float32 weights that are the same at any number of ranks."""

    def work(ctx: DistContext) -> Outcome:
        torch.manual_seed(0)
        module = build()
        config = TrainConfig(batch_size=4, eval_batch_size=5, optim=OPTIM, **options)
        loaders = task.make_loaders(config, dataset, ctx, module)
        trainer = make_trainer(module, config, ctx, 100, task)
        with trainer.strategy.evaluating(trainer.module):
            return task.evaluate(trainer, loaders[1])

    return run_ranks(work, ranks)
