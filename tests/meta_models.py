"""Models without their numbers: built and run on the meta device, which knows shapes and gradients' paths only."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.spec import ModelSpec, Shape

DRAWS = {"normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "fill_", "zero_"}


class _Shortcuts(TorchFunctionMode):
    """Leaves out what costs most on the meta device, where torch does it in Python: first weights, and BatchNorm, which
    becomes a scale and a shift by the same parameters.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.functional.batch_norm:
            along = (1, -1, *[1] * (args[0].dim() - 2))
            return args[0] * kwargs["weight"].view(along) + kwargs["bias"].view(along)
        if getattr(func, "__name__", "") in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build(spec: ModelSpec, shape: Shape, classes: int) -> nn.Module:
    """A model whose parameters have shapes but no values."""
    with _Shortcuts(), torch.device("meta"):
        return spec.build(shape, classes)


def run(module: nn.Module, shape: Shape) -> Any:
    """What the model makes of two samples, without values."""
    with _Shortcuts(), torch.device("meta"):
        return module(torch.empty(2, *shape))


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def reached(output: Tensor) -> set[int]:
    """Ids of the parameters that a backward pass from this output reaches; nothing is computed."""
    seen, to_do = set(), [output.grad_fn]
    while to_do:
        node = to_do.pop()
        if node is not None and node not in seen:
            seen.add(node)
            to_do += [below for below, _ in node.next_functions]
    return {id(node.variable) for node in seen if hasattr(node, "variable")}
