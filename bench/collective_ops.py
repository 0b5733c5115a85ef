"""The collective operations as torch offers them, each on buffers of a given size S."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from bench.collective_bandwidth import ITEM_BYTES
from ddp.context import DistContext


@dataclass(frozen=True)
class Buffers:
    """What one rank sends and where it receives: the same tensor where the operation works in place."""

    send: Tensor
    receive: Tensor


def make_buffers(op: str, dtype: str, size_bytes: int, ctx: DistContext) -> Buffers:
    """Buffers of zeros for a size S; zeros, so that sums of sums stay finite. Their memory is there already."""
    kind: torch.dtype = getattr(torch, dtype)
    whole = size_bytes // ITEM_BYTES[dtype]
    part = whole // ctx.world_size

    def zeros(count: int) -> Tensor:
        return torch.empty(count, dtype=kind, device=ctx.device).fill_(0)  # torch.zeros would be pages not yet there

    if op in ("all_reduce", "broadcast"):
        both = zeros(whole)
        return Buffers(both, both)
    if op == "send":
        return Buffers(zeros(whole if ctx.rank % 2 == 0 else 0), zeros(whole if ctx.rank % 2 else 0))
    if op == "all_gather":
        return Buffers(zeros(part), zeros(whole))
    return Buffers(zeros(whole), zeros(part if op == "reduce_scatter" else whole))


def _all_reduce(buffers: Buffers, ctx: DistContext) -> None:
    dist.all_reduce(buffers.receive, group=ctx.group)


def _all_gather(buffers: Buffers, ctx: DistContext) -> None:
    dist.all_gather_into_tensor(buffers.receive, buffers.send, group=ctx.group)


def _reduce_scatter(buffers: Buffers, ctx: DistContext) -> None:
    dist.reduce_scatter_tensor(buffers.receive, buffers.send, group=ctx.group)


def _broadcast(buffers: Buffers, ctx: DistContext) -> None:
    dist.broadcast(buffers.receive, group_src=0, group=ctx.group)


def _all_to_all(buffers: Buffers, ctx: DistContext) -> None:
    dist.all_to_all_single(buffers.receive, buffers.send, group=ctx.group)


def _send_recv(buffers: Buffers, ctx: DistContext) -> None:
    after, before = (ctx.rank + 1) % ctx.world_size, (ctx.rank - 1) % ctx.world_size
    # Receiving comes first: gloo tells the sender that it is ready through the connection that its own data takes, and
    # behind that data the word comes so late that the two directions take turns.
    for work in dist.batch_isend_irecv(
        [
            dist.P2POp(dist.irecv, buffers.receive, group=ctx.group, group_peer=before),
            dist.P2POp(dist.isend, buffers.send, group=ctx.group, group_peer=after),
        ]
    ):
        work.wait()


def _send(buffers: Buffers, ctx: DistContext) -> None:
    if ctx.rank % 2:
        dist.recv(buffers.receive, group_src=ctx.rank - 1, group=ctx.group)
    elif ctx.rank + 1 < ctx.world_size:
        dist.send(buffers.send, group_dst=ctx.rank + 1, group=ctx.group)


CALLS: dict[str, Callable[[Buffers, DistContext], None]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "broadcast": _broadcast,
    "all_to_all": _all_to_all,
    "send_recv": _send_recv,
    "send": _send,
}
"""One call, in its order after those before: on a GPU the host goes on at once, on the CPU it is done on return."""
