"""DistributedDataParallel: every rank holds the model, gradients are averaged while the backward pass runs."""

import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp.context import DistContext


def _without_buffer_broadcast() -> dict[str, Any]:
    """SyncBN keeps buffers equal, and plain BatchNorm's are merged before evaluation: no broadcast in each forward.

    torch 2.13 renamed the option and warns about the old name.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers": False} if "forward_sync_buffers" in known else {"broadcast_buffers": False}


def wrap(module: nn.Module, ctx: DistContext) -> nn.Module:
    """The model under DDP; rank 0's weights are sent to all."""
    return DistributedDataParallel(
        module,
        device_ids=[ctx.device.index] if ctx.device.type == "cuda" else None,
        process_group=ctx.group,
        gradient_as_bucket_view=True,
        **_without_buffer_broadcast(),
    )
