"""No wrapper: one process, the base that data parallelism is measured against."""

from torch import nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.mistake import Mistake
from ddp.strategy import Strategy


class Single(Strategy):
    """One rank, which holds everything."""

    def wrap(self, module: nn.Module, ctx: DistContext, config: TrainConfig) -> nn.Module:
        """The model itself. Raises Mistake on several ranks, which would each train a model of their own."""
        if ctx.world_size > 1:
            raise Mistake(f"expected 1 rank with --strategy single, got {ctx.world_size}; use --strategy ddp")
        return module


STRATEGY = Single()
