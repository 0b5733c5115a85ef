"""Options of data parallelism. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from ddp.mistake import require


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How gradients, and the statistics of BatchNorm, travel between ranks."""

    bucket_cap_mb: float | None = None
    """MiB of gradients that DDP sends at once; by default torch's own: 1 for the first bucket, 25 for the others."""
    gradient_as_bucket_view: bool = True
    """Let gradients live in DDP's buckets instead of being copied there."""
    static_graph: bool = False
    """Promise DDP that every step uses the same parameters in the same order."""
    find_unused_parameters: bool = False
    """Let DDP look in every step for parameters that the loss does not depend on."""
    broadcast_buffers: bool = False
    """Send rank 0's buffers to all ranks before each forward pass; otherwise they are merged before evaluation."""
    comm_hook: Literal["none", "fp16", "bf16", "powersgd"] = "none"
    """Compress gradients on their way: to half the bytes, or to a low rank (PowerSGD)."""
    powersgd_rank: int = 1
    """Rank to which PowerSGD compresses each gradient matrix."""
    powersgd_start: int = 1000
    """Steps with uncompressed gradients before PowerSGD begins; at least 2."""
    sync_bn_scope: Literal["world", "node"] = "world"
    """Ranks that --sync-bn takes statistics over: all, or those of each node, which spares the network."""
    spawn_ranks: int | None = None
    """Processes that --strategy ddp-spawn starts itself, without torchrun; by default one for each GPU, or one."""

    def __post_init__(self) -> None:
        cap = self.bucket_cap_mb
        require(cap is None or cap > 0, "--bucket-cap-mb above 0", cap, "give MiB, such as 25")
        for flag, value, least in (
            ("--powersgd-rank", self.powersgd_rank, 1),
            ("--powersgd-start", self.powersgd_start, 2),  # DDP arranges its buckets anew before the second step
            ("--spawn-ranks", self.spawn_ranks, 1),
        ):
            require(value is None or value >= least, f"{flag} of at least {least}", value, "give a whole number")
