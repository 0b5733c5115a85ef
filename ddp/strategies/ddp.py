"""DistributedDataParallel: every rank holds the model, gradients are averaged while the backward pass runs."""

import inspect
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.nn.parallel import DistributedDataParallel

from ddp.comm_hooks import load_powersgd, powersgd_state, register
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.parallel_config import ParallelConfig
from ddp.strategy import Strategy

POWERSGD = "powersgd"
"""Attribute of the wrapped model that holds what PowerSGD remembers."""


def _options(parallel: ParallelConfig) -> dict[str, Any]:
    """Arguments of DDP; torch 2.13 renamed the one about buffers and warns about the old name."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {
        "bucket_cap_mb": parallel.bucket_cap_mb,  # a number, even 25, would be the first bucket's size as well
        "gradient_as_bucket_view": parallel.gradient_as_bucket_view,
        "static_graph": parallel.static_graph,
        "find_unused_parameters": parallel.find_unused_parameters,
        buffers: parallel.broadcast_buffers,
    }


def _powersgd(wrapped: nn.Module) -> PowerSGDState | None:
    state = vars(wrapped).get(POWERSGD)
    assert state is None or isinstance(state, PowerSGDState)
    return state


class Ddp(Strategy):
    """Gradients are averaged over all ranks; each updates its own copy.

    DDP's join(), for ranks with unequal numbers of steps, is not used and not needed: the sampler deals every rank the
    same number of steps, none of them empty, and the loss weighs unequal shares. So join() with SyncBN, which torch
    does not support, cannot occur.
    """

    def wrap(self, module: nn.Module, ctx: DistContext, config: TrainConfig) -> nn.Module:
        """The model under DDP; rank 0's weights are sent to all."""
        model = DistributedDataParallel(
            module,
            device_ids=[ctx.device.index] if ctx.device.type == "cuda" else None,
            process_group=ctx.group,
            **_options(config.parallel),
        )
        vars(model)[POWERSGD] = register(model, config.parallel, ctx.group)
        return model

    def without_communication(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """DDP's no_sync: it decides in the forward pass whether the backward pass communicates."""
        assert isinstance(wrapped, DistributedDataParallel)
        return wrapped.no_sync()

    def own_state(self, wrapped: nn.Module) -> dict[str, Any]:
        """What this rank's PowerSGD has left out of gradients so far, and how it goes on; nothing without PowerSGD."""
        state = _powersgd(wrapped)
        return {} if state is None else {POWERSGD: powersgd_state(state)}

    def load_own(self, wrapped: nn.Module, state: dict[str, Any]) -> None:
        """Undo `own_state`. DDP must have made its first pass, which arranges the buckets that are remembered."""
        powersgd = _powersgd(wrapped)
        if powersgd is not None and POWERSGD in state:
            load_powersgd(powersgd, state[POWERSGD], next(wrapped.parameters()).device)


STRATEGY = Ddp()
