"""Passes for nothing, before the clock starts or the state of a checkpoint is loaded."""

import torch

from ddp.loop import backward
from ddp.source import Shape
from ddp.task import random_step
from ddp.trainer import Trainer


def warm_up(trainer: Trainer, shape: Shape, classes: int) -> None:
    """A pass for nothing: of as many samples as a step has if it compiles, since compiled code is made for a shape.

    Every rank must call this.
    """
    config, ctx = trainer.config, trainer.ctx
    few = 2 * config.accumulate
    samples = few if config.compile == "off" else config.global_batch(ctx.world_size) // ctx.world_size
    _pass_for_nothing(trainer, samples, shape, classes)


def _pass_for_nothing(trainer: Trainer, samples: int, shape: Shape, classes: int) -> None:
    """One forward and backward pass of random samples on every rank, after which only caches have changed.

    It lets DDP settle its buckets and torch.compile compile. Buffers and generators are put back; weights, optimizer
    and schedule are not touched.
    """
    ctx, config = trainer.ctx, trainer.config
    buffers = {name: buffer.clone() for name, buffer in trainer.module.named_buffers()}
    own = trainer.strategy.own_state(trainer.wrapped)
    devices = [ctx.device.index] if ctx.device.type == "cuda" else []
    batch = random_step(trainer.task, shape, classes, samples, ctx, channels_last=config.channels_last)
    trainer.train_mode()
    with torch.random.fork_rng(devices):
        batch = trainer.task.prepare(trainer, batch)
        for phase in trainer.task.phases:
            backward(trainer, batch, phase)
            trainer.optimizer.zero_grad(set_to_none=True)
    trainer.strategy.load_own(trainer.wrapped, own)
    with torch.no_grad():
        for name, buffer in trainer.module.named_buffers():
            buffer.copy_(buffers[name])
