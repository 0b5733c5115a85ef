"""DataParallel: one process cuts each batch among all its GPUs, and copies the model to them in every step."""

import torch
from torch import nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.mistake import require
from ddp.strategy import Strategy


class Dp(Strategy):
    """One rank with all GPUs. The outputs are collected on the first, so the loss is that of the whole batch."""

    def wrap(self, module: nn.Module, ctx: DistContext, config: TrainConfig) -> nn.Module:
        """The model over all visible GPUs; the model itself on the CPU, where there is nothing to divide among.

        Raises Mistake on several ranks, which would all take the same GPUs.
        """
        require(ctx.world_size == 1, "1 rank with --strategy dp", ctx.world_size, "use --strategy ddp")
        if ctx.device.type != "cuda":
            return module
        first = ctx.device.index  # DataParallel wants the model on the first of its devices
        others = [index for index in range(torch.cuda.device_count()) if index != first]
        return nn.DataParallel(module, device_ids=[first, *others])


STRATEGY = Dp()
