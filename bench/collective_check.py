"""Whether a collective operation delivered what it should: whole numbers that are exact in every data type and order.

Each element that a rank sends is a hash of its place, the rank and a seed. What must arrive is computed anew on the
receiving side and compared bit by bit, so that one wrong byte, a chunk from the wrong rank and a chunk in the wrong
place are all found; nothing is sent that is zero, which is what the receiving side held before.
"""

import torch
from torch import Tensor

from bench.collective_bandwidth import largest_value
from bench.collective_ops import CALLS, make_buffers
from ddp.context import DistContext

CHUNK = 2**20
"""Elements compared at a time: the arithmetic needs eight bytes for each."""
BITS = {2: torch.int16, 4: torch.int32}
LOW_32 = 2**32 - 1


def values(places: Tensor, ranks: Tensor | int, seed: int, largest: int) -> Tensor:
    """Whole numbers from 1 to `largest`, int64, for elements at these places of what these ranks send.

    Mixed like a hash: a number taken modulo something alone repeats, and shifted chunks would look right.
    """
    mixed = (places * 2654435761 + ranks * 2246822519 + seed * 3266489917) & LOW_32
    mixed = ((mixed ^ (mixed >> 15)) * 2246822519) & LOW_32
    mixed = ((mixed ^ (mixed >> 13)) * 3266489917) & LOW_32
    return 1 + (mixed ^ (mixed >> 16)) % largest


class Expectation:
    """What one rank is to send and to receive, for one operation and seed."""

    def __init__(self, op: str, dtype: str, ctx: DistContext, seed: int) -> None:
        self.op, self.ctx, self.seed = op, ctx, seed
        self.largest = largest_value(op, dtype, ctx.world_size)
        if self.largest < 2:
            raise ValueError(f"expected few enough ranks for exact sums of {dtype}, got {ctx.world_size}; use float32")

    def sent(self, places: Tensor) -> Tensor:
        """What this rank sends at these places."""
        return values(places, self.ctx.rank, self.seed, self.largest)

    def received(self, places: Tensor, count: int) -> Tensor:
        """What must be at these places of a receiving buffer of `count` elements."""
        rank, world_size = self.ctx.rank, self.ctx.world_size
        if self.op in ("all_reduce", "reduce_scatter"):
            first = rank * count if self.op == "reduce_scatter" else 0
            total = torch.zeros_like(places)
            for sender in range(world_size):
                total += values(places + first, sender, self.seed, self.largest)
            return total
        part = count // world_size
        if self.op == "all_gather":
            return values(places % part, places // part, self.seed, self.largest)
        if self.op == "all_to_all":
            return values(rank * part + places % part, places // part, self.seed, self.largest)
        sender = 0 if self.op == "broadcast" else (rank - 1) % world_size
        return values(places, sender, self.seed, self.largest)


def wrong_elements(op: str, dtype: str, size_bytes: int, ctx: DistContext, seed: int) -> tuple[int, int]:
    """Call the operation once -> (wrong elements, elements received), of all ranks. Every rank must call this."""
    buffers = make_buffers(op, dtype, size_bytes, ctx)
    expectation = Expectation(op, dtype, ctx, seed)
    sends = op != "broadcast" or ctx.rank == 0
    for start in range(0, len(buffers.send) if sends else 0, CHUNK):
        part = buffers.send[start : start + CHUNK]
        part.copy_(expectation.sent(_places(start, part)))
    CALLS[op](buffers, ctx)
    ctx.synchronize()
    bits = BITS[buffers.receive.element_size()]
    count, wrong = len(buffers.receive), 0
    for start in range(0, count, CHUNK):
        part = buffers.receive[start : start + CHUNK]
        expected = expectation.received(_places(start, part), count).to(part.dtype)
        wrong += int((part.view(bits) != expected.view(bits)).sum())
    found = ctx.sum(torch.tensor([wrong, count], dtype=torch.int64, device=ctx.device))
    return int(found[0]), int(found[1])


def _places(start: int, part: Tensor) -> Tensor:
    return torch.arange(start, start + len(part), dtype=torch.int64, device=part.device)
