"""Training throughput at several numbers of ranks, against one process without DDP: weak and strong scaling.

What is measured is the training loop itself (ddp/loop.py) on one synthetic batch that stays on the device. All cells
live in one launch and take turns, the ranks that a cell does not need waiting, so that a slower minute of the machine
meets every cell and does not become efficiency.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bench.cell import Cell
from bench.options import BenchOptions
from ddp.mistake import require
from models import zoo

if TYPE_CHECKING:
    from ddp.context import DistContext


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Measure training throughput and its scaling."""

    model: str = "resnet18-cifar"
    """Model: a name from `ringmark list models`, or path/to/file.py:factory."""
    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks, such as 1,2,4; as many processes as the largest are started."""
    batch_size: int = 16
    """Samples per rank in a step of weak scaling, and of all ranks together in a step of strong scaling."""
    scaling: Literal["both", "weak", "strong"] = "both"
    """Weak: the batch per rank stays the same; strong: the global batch does."""
    sync_bn: bool = False
    """BatchNorm over the whole global batch, in the cells with DDP."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision by torch.amp."""
    channels_last: bool = False
    """Keep images and weights in NHWC order."""
    warmup_steps: int = 5
    """Steps before the first measured one, at least 3; more follow until step times settle, see docs/records.md."""

    def __post_init__(self) -> None:
        super().__post_init__()
        zoo.check_name(self.model)
        require(bool(self.ranks) and min(self.ranks) >= 1, "--ranks of at least 1", self.ranks, "such as 1,2,4")
        require(self.batch_size >= 1, "--batch-size of at least 1", self.batch_size, "try 16")
        uneven = [ranks for ranks in self.ranks if self.batch_size % ranks]
        require(
            self.scaling == "weak" or not uneven,
            f"a --batch-size that {', '.join(map(str, uneven))} ranks can share equally in strong scaling",
            self.batch_size,
            "choose a multiple, or --scaling weak",
        )


def world_size(options: Options) -> int:
    """Processes to start."""
    return max(options.ranks)


def cells(options: Options) -> list[Cell]:
    """The base without DDP first, then DDP at each number of ranks, weak and strong."""
    wanted = [("single", 1, options.batch_size)]
    for ranks in sorted(set(options.ranks)):
        if options.scaling != "strong":
            wanted.append(("ddp", ranks, options.batch_size))
        if options.scaling != "weak":
            wanted.append(("ddp", ranks, options.batch_size // ranks))
    return [
        Cell(
            model=options.model,
            ranks=ranks,
            batch_per_rank=batch,
            strategy=strategy,
            sync_bn=options.sync_bn and strategy == "ddp",
            amp=options.amp,
            channels_last=options.channels_last,
        )
        for strategy, ranks, batch in dict.fromkeys(wanted)
    ]


def measure(options: Options, wanted: list[Cell], ctx: "DistContext", environment: dict[str, Any]) -> None:
    """Measure the wanted cells; rank 0 appends their records. Every rank must call this."""
    from bench.train_blocks import measure_in_turns

    measure_in_turns(options, wanted, ctx, environment, case="scaling")
