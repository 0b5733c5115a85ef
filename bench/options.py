"""Options that all benchmarks share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddp.mistake import require


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How long to measure and where to put the records."""

    out: Path = Path("runs/bench")
    """Folder for records.jsonl and the report."""
    rounds: int = 5
    """Times that each cell is measured; cells take turns, so that drift of the machine meets all alike."""
    block_s: float = 3.0
    """Seconds, about, that a cell is measured in each round."""
    warmup_steps: int = 5
    """Steps before the first measured one; at least 3, since DDP rearranges its buckets after the first."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: GPUs if this machine has them."""
    timeout_s: float = 120.0
    """Seconds after which a rank that waits for the others gives up."""
    only: str = ""
    """Keys of the cells to measure, separated by commas; by default all."""

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "--rounds of at least 1", self.rounds, "5 gives an interval")
        require(self.block_s > 0, "--block-s above 0", self.block_s, "give seconds, such as 3")
        require(self.warmup_steps >= 3, "--warmup-steps of at least 3", self.warmup_steps, "try 5")
        require(self.timeout_s > 0, "--timeout-s above 0", self.timeout_s, "give seconds, such as 120")
