"""What ringmark's training loop costs over the same model in a hand-written DDP loop.

Both loops live in the same ranks and take turns; a second copy of the hand-written one shows how far two runs of the
same code differ on this machine.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.cell import Cell
from bench.options import BenchOptions
from ddp.mistake import require
from models import zoo

if TYPE_CHECKING:
    from ddp.context import DistContext


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Compare ringmark's training loop with a bare one."""

    model: str = "lenet5"
    """Model: a name from `ringmark list models`, or path/to/file.py:factory."""
    ranks: int = 2
    """Processes."""
    batch_size: int = 64
    """Samples per rank in a step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        zoo.check_name(self.model)
        require(self.ranks >= 1, "--ranks of at least 1", self.ranks, "try 2")
        require(self.batch_size >= 1, "--batch-size of at least 1", self.batch_size, "try 64")


def world_size(options: Options) -> int:
    """Processes to start."""
    return options.ranks


def cells(options: Options) -> list[Cell]:
    """One: the model under DDP."""
    return [Cell(model=options.model, ranks=options.ranks, batch_per_rank=options.batch_size)]


def measure(options: Options, wanted: list[Cell], ctx: "DistContext", environment: dict[str, Any]) -> None:
    """Measure both loops; rank 0 appends the record. Every rank must call this."""
    from bench.loop_arms import measure_arms

    for cell in wanted:
        measure_arms(options, cell, ctx, environment)
