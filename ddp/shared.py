"""One uint8 array in memory for all ranks of a node, without a named file that could be left behind."""

import math
import mmap
import os

import numpy as np
import torch
from torch import Tensor

from ddp.context import DistContext


def shared_uint8(shape: tuple[int, ...], ctx: DistContext, label: str) -> Tensor:
    """A zeroed uint8 tensor whose memory all ranks of this node share; every rank must call this.

    The first rank of the node makes an anonymous file in memory; the others open it through /proc. It is gone with the
    last rank, however that ends. Linux only.
    """
    size_bytes = max(1, math.prod(shape))
    handle = -1
    if ctx.local_rank == 0:
        handle = os.memfd_create(f"ringmark-{label}")
        os.ftruncate(handle, size_bytes)
    paths = ctx.gather([ctx.node_rank, ctx.local_rank, f"/proc/{os.getpid()}/fd/{handle}"])
    if ctx.local_rank != 0:
        path = next(path for node, local, path in paths if (node, local) == (ctx.node_rank, 0))
        handle = os.open(path, os.O_RDWR)
    memory = mmap.mmap(handle, size_bytes)
    ctx.barrier()  # the first rank keeps its handle open until the others have theirs
    os.close(handle)
    return torch.from_numpy(np.frombuffer(memory, dtype=np.uint8, count=math.prod(shape)).reshape(shape))
