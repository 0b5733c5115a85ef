"""Where a training step's time goes: every phase of it on every rank, and what communication adds.

Blocks of training as it is take turns with blocks without communication and with one process without DDP, so that what
the ranks lose against that one can be told apart: data, communication, SyncBN, a late rank, slower computing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.cell import Cell
from bench.options import BenchOptions
from ddp import discover
from ddp.input_config import InputConfig
from ddp.mistake import require
from models import zoo

if TYPE_CHECKING:
    from ddp.context import DistContext

RESIDENT = "resident"
"""In place of a data set: one random batch that stays on the device."""


@dataclass(frozen=True, kw_only=True)
class StepCell(Cell):
    """One configuration whose steps are taken apart."""

    data: str = RESIDENT
    data_dir: str | None = None


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Measure where the time of a training step goes."""

    model: str = "resnet18-cifar"
    """Model: a name from `ringmark list models`, or path/to/file.py:factory."""
    ranks: tuple[int, ...] = (2,)
    """Numbers of ranks, such as 2 or 1,2,4; one process without DDP is always measured beside them."""
    batch_size: tuple[int, ...] = (16,)
    """Samples per rank in a step, such as 16 or 8,16,32."""
    data: str = RESIDENT
    """Data set that the steps are fed from, see `ringmark list data`; resident: a batch that stays on the device."""
    data_dir: Path | None = None
    """Folder of a data set that is read from disk."""
    sync_bn: bool = False
    """BatchNorm over the whole global batch, in the cells with DDP."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision by torch.amp."""
    channels_last: bool = False
    """Keep images and weights in NHWC order."""
    warmup_cap_steps: int = 200
    """Steps after which warming up ends, even if step times have not settled; the report says so."""
    warmup_cap_s: float = 60.0
    """Seconds after which it does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        zoo.check_name(self.model)
        require(bool(self.ranks) and min(self.ranks) >= 1, "--ranks of at least 1", self.ranks, "such as 2, or 1,2,4")
        sizes = self.batch_size
        require(bool(sizes) and min(sizes) >= 1, "--batch-size of at least 1", sizes, "such as 16, or 8,16,32")
        require(
            self.warmup_cap_steps >= self.warmup_steps,
            f"--warmup-cap-steps of at least --warmup-steps, {self.warmup_steps}",
            self.warmup_cap_steps,
            "try 200",
        )
        require(self.warmup_cap_s > 0, "--warmup-cap-s above 0", self.warmup_cap_s, "give seconds, such as 60")
        if self.data != RESIDENT:
            dataset = discover.find("ddp.datasets", self.data, kind="data set")
            samples = dataset.count(InputConfig(data=self.data, data_dir=self.data_dir))
            needed = max(self.ranks) * max(self.batch_size)
            require(samples >= needed, f"at least one global batch, {needed} samples", samples, "use smaller batches")


def world_size(options: Options) -> int:
    """Processes to start."""
    return max(options.ranks)


def cells(options: Options) -> list[StepCell]:
    """For each batch per rank: the base without DDP first, then DDP at each number of ranks."""
    pairs = [("single", 1), *(("ddp", ranks) for ranks in sorted(set(options.ranks)))]
    return [
        StepCell(
            model=options.model,
            ranks=ranks,
            batch_per_rank=batch,
            strategy=strategy,
            sync_bn=options.sync_bn and strategy == "ddp",
            amp=options.amp,
            channels_last=options.channels_last,
            data=options.data,
            data_dir=None if options.data_dir is None else str(options.data_dir),
        )
        for batch in sorted(set(options.batch_size))
        for strategy, ranks in pairs
    ]


def measure(options: Options, wanted: list[StepCell], ctx: "DistContext", environment: dict[str, Any]) -> None:
    """Measure the wanted cells; rank 0 appends their records. Every rank must call this."""
    from bench.step_blocks import measure_steps

    measure_steps(options, wanted, ctx, environment)
