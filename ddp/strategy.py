"""What a strategy is: how a model is made data parallel, and what of that others must know."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext

WAYS = ("fused", "foreach")
"""Options of torch's optimizers about how an update is computed, not about what it is."""


def in_this_way(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved state that leaves an optimizer its own way to compute updates, whichever the writer had chosen."""
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=False)  # torch tells of a wrong number of groups
    return state | {"param_groups": [saved | {name: own[name] for name in WAYS if name in own} for saved, own in pairs]}


class Strategy:
    """One way to work together; a file of ddp/strategies names its own as `STRATEGY`. This one does nothing."""

    def wrap(self, module: nn.Module, ctx: DistContext, config: TrainConfig) -> nn.Module:
        """The model to call in training. Raises Mistake if the strategy does not fit the ranks or the options."""
        return module

    def without_communication(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """A context in which forward and backward passes add to this rank's gradients only."""
        return nullcontext()

    def evaluating(self, module: nn.Module) -> AbstractContextManager[None]:
        """A context in which forward passes of the model that is not wrapped need no other rank."""
        return nullcontext()

    def model_state(self, module: nn.Module) -> dict[str, Tensor]:
        """The whole model, whatever part of it this rank holds. Every rank must call this."""
        return module.state_dict()

    def optimizer_state(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole optimizer, whatever part of it this rank holds. Every rank must call this."""
        return optimizer.state_dict()

    def load_model(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        """Undo `model_state`."""
        module.load_state_dict(state)

    def load_optimizer(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Undo `optimizer_state`."""
        optimizer.load_state_dict(in_this_way(optimizer, state))

    def own_state(self, wrapped: nn.Module) -> dict[str, Any]:
        """What each rank has of its own, such as what a compression left out, as a weights-only load takes it."""
        return {}

    def load_own(self, wrapped: nn.Module, state: dict[str, Any]) -> None:
        """Undo `own_state`."""
