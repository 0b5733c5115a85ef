"""Fully sharded data parallelism: each rank holds a share of every weight, and collects the whole where it is used."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.strategy import Strategy, in_this_way

SMALLEST_UNIT = 2**18
"""Parameters from which a block is collected on its own, 1 MiB in float32: less does not pay for a message."""
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def units(model: nn.Module, smallest: int) -> list[nn.Module]:
    """The blocks that are collected and let go one by one: large enough members of the model's outermost containers.

    Only these are sure to be called as modules. A block that shares a parameter with another stays with the model.
    """
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found: list[nn.Module] = []

    def alone(child: nn.Module) -> bool:
        return all(owners[id(each)] == 1 for each in child.parameters())

    def search(parent: nn.Module, inside: bool) -> None:
        for child in parent.children():
            if isinstance(child, CONTAINERS):
                search(child, True)
            elif not inside:
                search(child, False)
            elif alone(child) and sum(each.numel() for each in child.parameters()) >= smallest:
                found.append(child)

    search(model, isinstance(model, CONTAINERS))
    return found


def _uncompiled(module: nn.Module) -> nn.Module:
    """The model that torch.compile was given, which is the one that is evaluated and stored, or the model itself."""
    inner = getattr(module, "_orig_mod", module)
    assert isinstance(inner, nn.Module)
    return inner


def _whole(value: Any) -> Any:
    """What a rank holds a share of, collected from all ranks, on the CPU; anything else as it is."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _share(value: Any, like: Any) -> Any:
    """This rank's share of a whole tensor, cut as `like` is; every rank has the whole, so nothing is sent."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def _silent(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


@contextmanager
def _collected(model: nn.Module) -> Iterator[None]:
    sharded = [each for each in model.modules() if isinstance(each, FSDPModule)]
    for each in sharded:
        each.set_reshard_after_forward(False, recurse=False)
        each.unshard()
    try:
        yield
    finally:
        for each in sharded:
            each.reshard()
            each.set_reshard_after_forward(each is not model, recurse=False)


class Fsdp2(Strategy):
    """torch's fully_shard over all ranks; gradients are averaged as by DDP, and buffers stay whole on each rank.

    States are written as one process would write them, so that any strategy can go on from them at any number of ranks.
    """

    def wrap(self, module: nn.Module, ctx: DistContext, config: TrainConfig) -> nn.Module:
        """The model itself, with sharded parameters in place; rank 0's weights are sent to all before."""
        model = _uncompiled(module)
        root = dist.get_global_rank(ctx.group, 0)
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.detach(), root, group=ctx.group)
        mesh = DeviceMesh.from_group(ctx.group, ctx.device.type)
        for unit in units(model, SMALLEST_UNIT):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)  # its backward pass follows at once
        return module

    def without_communication(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Gradients stay whole on this rank and add up; weights are still collected in each pass."""
        model = _uncompiled(wrapped)
        assert isinstance(model, FSDPModule)
        return _silent(model)

    def evaluating(self, module: nn.Module) -> AbstractContextManager[None]:
        """The whole model on every rank, so that their numbers of batches may differ. Every rank must enter this."""
        return _collected(module)

    def model_state(self, module: nn.Module) -> dict[str, Tensor]:
        """The whole model, on the CPU where it was sharded. Every rank must call this."""
        return {name: _whole(value) for name, value in module.state_dict().items()}

    def optimizer_state(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole optimizer, laid out as torch's own `state_dict`. Every rank must call this."""
        state = optimizer.state_dict()
        whole = {
            number: {name: _whole(value) for name, value in each.items()} for number, each in state["state"].items()
        }
        return state | {"state": whole}

    def load_model(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        """Undo `model_state`, also of another strategy."""
        own = module.state_dict()
        module.load_state_dict({name: _share(value, own.get(name)) for name, value in state.items()})

    def load_optimizer(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Undo `optimizer_state`, also of another strategy."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        shares = {
            number: {name: _share(value, parameters[number]) for name, value in each.items()}
            for number, each in state["state"].items()
        }
        optimizer.load_state_dict(in_this_way(optimizer, state) | {"state": shares})


STRATEGY = Fsdp2()
