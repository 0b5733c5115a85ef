"""Collective operations of the communication library by size: their bandwidth, and whether the data arrives whole.

Definitions and timing are those of NVIDIA's nccl-tests (algbw, busbw); every size ends with one more call whose data is
compared bit by bit.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bench.cell import key_of
from bench.collective_bandwidth import DTYPES, OPS, largest_value, size_in_bytes, sizes
from bench.options import BenchOptions
from ddp.mistake import require
from models import zoo

if TYPE_CHECKING:
    from ddp.context import DistContext

LARGEST_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class CollectiveCell:
    """One operation on one size."""

    op: str
    dtype: str
    ranks: int
    size_bytes: int
    """S: of all ranks' parts together in all_gather, reduce_scatter and all_to_all, else of one rank's buffer."""

    @property
    def key(self) -> str:
        """What stands for this cell in records."""
        return key_of(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Measure collective operations."""

    ops: tuple[str, ...] = OPS
    """Operations."""
    dtypes: tuple[str, ...] = ("float32",)
    """Data types: float32, float16, bfloat16, int32."""
    min_bytes: str = "8"
    """Smallest size, such as 8 or 64K; each size is twice the one before."""
    max_bytes: str = "64M"
    """Largest size, such as 64M; 1G at most."""
    ranks: int = 2
    """Processes."""
    model: str = ""
    """A model whose real DDP bucket sizes are marked in the plot; by default DDP's limits are."""
    rounds: int = 3
    """Times that each size is measured."""
    block_s: float = 0.2
    """Seconds, about, of a block of calls; it has at least 20 and at most 500, or fewer where 20 take very long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for given, known, flag in ((self.ops, OPS, "--ops"), (self.dtypes, DTYPES, "--dtypes")):
            strange = [name for name in given if name not in known]
            require(bool(given) and not strange, f"{flag} among {', '.join(known)}", ",".join(given), "choose of them")
        least, most = size_in_bytes(self.min_bytes), size_in_bytes(self.max_bytes)
        wanted = f"--min-bytes of at least 1, up to --max-bytes of at most {LARGEST_BYTES:,}"
        require(1 <= least <= most <= LARGEST_BYTES, wanted, f"{least:,} to {most:,}", "such as 8 and 64M")
        require(self.ranks >= 2, "--ranks of at least 2", self.ranks, "one rank has nobody to send to")
        inexact = [dtype for dtype in self.dtypes for op in self.ops if largest_value(op, dtype, self.ranks) < 2]
        require(
            not inexact, "few enough ranks for exact sums", f"{self.ranks} with {inexact[:1]}", "use --dtypes float32"
        )
        if self.model:
            zoo.check_name(self.model)


def world_size(options: Options) -> int:
    """Processes to start."""
    return options.ranks


def cells(options: Options) -> list[CollectiveCell]:
    """Operation by operation, from the smallest to the largest size."""
    least, most = size_in_bytes(options.min_bytes), size_in_bytes(options.max_bytes)
    return [
        CollectiveCell(op=op, dtype=dtype, ranks=options.ranks, size_bytes=size_bytes)
        for op in dict.fromkeys(options.ops)
        for dtype in dict.fromkeys(options.dtypes)
        for size_bytes in sizes(op, dtype, options.ranks, least, most)
    ]


def measure(options: Options, wanted: list[CollectiveCell], ctx: "DistContext", environment: dict[str, Any]) -> None:
    """Measure the wanted cells; rank 0 appends their records. Every rank must call this."""
    from bench.collectives import measure_collectives

    measure_collectives(options, wanted, ctx, environment)
