"""Passes for nothing, before the clock starts or the state of a checkpoint is loaded."""

import torch

from ddp.loader import Batch
from ddp.loop import backward
from ddp.trainer import Trainer


def warm_up(trainer: Trainer, shape: tuple[int, int, int]) -> None:
    """A pass for nothing: of as many samples as a step has if it compiles, since compiled code is made for a shape.

    Every rank must call this.
    """
    config, ctx = trainer.config, trainer.ctx
    few = 2 * config.accumulate
    _pass_for_nothing(
        trainer, few if config.compile == "off" else config.global_batch(ctx.world_size) // ctx.world_size, shape
    )


def _pass_for_nothing(trainer: Trainer, samples: int, shape: tuple[int, int, int]) -> None:
    """One forward and backward pass of blank images on every rank, after which only caches have changed.

    It lets DDP settle its buckets and torch.compile compile. Buffers and generators are put back; weights, optimizer
    and schedule are not touched.
    """
    ctx, config = trainer.ctx, trainer.config
    buffers = {name: buffer.clone() for name, buffer in trainer.module.named_buffers()}
    own = trainer.strategy.own_state(trainer.wrapped)
    devices = [ctx.device.index] if ctx.device.type == "cuda" else []
    images = torch.zeros(samples, *shape, device=ctx.device)
    if config.channels_last:
        images = images.to(memory_format=torch.channels_last)
    labels = torch.zeros(samples, dtype=torch.int64, device=ctx.device)
    blank = Batch(images, labels, samples * ctx.world_size, torch.zeros(samples, dtype=torch.int64))
    trainer.train_mode()
    with torch.random.fork_rng(devices):
        backward(trainer, blank)
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.strategy.load_own(trainer.wrapped, own)
    with torch.no_grad():
        for name, buffer in trainer.module.named_buffers():
            buffer.copy_(buffers[name])
