"""A strategy for models of several parts, each of which is wrapped on its own."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.strategy import Strategy


class InParts(Strategy):
    """Wraps some children of a model each by itself, so that they can be trained by turns; all else is `whole`'s."""

    def __init__(self, whole: Strategy, parts: tuple[str, ...]) -> None:
        self.whole, self.parts = whole, parts

    def wrap(self, module: nn.Module, ctx: DistContext, config: TrainConfig) -> nn.Module:
        """A shallow copy of the model whose parts are wrapped."""
        wrapped = copy.copy(module)
        wrapped._modules = dict(module._modules)
        for part in self.parts:
            wrapped._modules[part] = self.whole.wrap(module.get_submodule(part), ctx, config)
        return wrapped

    def without_communication(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Of no part."""
        return self._together(wrapped)

    @contextmanager
    def _together(self, wrapped: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(self.whole.without_communication(wrapped.get_submodule(part)))
            yield

    def evaluating(self, module: nn.Module) -> AbstractContextManager[None]:
        """As the whole."""
        return self.whole.evaluating(module)

    def model_state(self, module: nn.Module) -> dict[str, Tensor]:
        """As the whole."""
        return self.whole.model_state(module)

    def optimizer_state(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """As the whole."""
        return self.whole.optimizer_state(module, optimizer)

    def load_model(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        """As the whole."""
        self.whole.load_model(module, state)

    def load_optimizer(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """As the whole."""
        self.whole.load_optimizer(module, optimizer, state)

    def own_state(self, wrapped: nn.Module) -> dict[str, Any]:
        """Of each part."""
        return {part: self.whole.own_state(wrapped.get_submodule(part)) for part in self.parts}

    def load_own(self, wrapped: nn.Module, state: dict[str, Any]) -> None:
        """Undo `own_state`."""
        for part in self.parts:
            self.whole.load_own(wrapped.get_submodule(part), state[part])
