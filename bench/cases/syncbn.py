"""What SyncBatchNorm costs: training steps of a model with statistics per rank and over the whole global batch.

Both live in one launch and take turns. The statistics of a layer are exchanged twice in a step, in the forward and in
the backward pass, and nothing else can be computed meanwhile.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bench.cell import Cell
from bench.options import BenchOptions
from ddp.mistake import MistakeOfAll, require
from models import zoo

if TYPE_CHECKING:
    from ddp.context import DistContext


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Compare BatchNorm per rank with SyncBatchNorm."""

    model: str = "resnet18-cifar"
    """Model with BatchNorm: a name from `ringmark list models`, or path/to/file.py:factory."""
    ranks: int = 2
    """Processes."""
    batch_size: int = 16
    """Samples per rank in a step."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision by torch.amp."""
    channels_last: bool = False
    """Keep images and weights in NHWC order."""
    rounds: int = 8
    """Times that each is measured; 8 pairs show a difference of a few percent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        zoo.check_name(self.model)
        require(self.ranks >= 2, "--ranks of at least 2", self.ranks, "one rank has nobody to share statistics with")
        require(self.batch_size >= 2, "--batch-size of at least 2", self.batch_size, "BatchNorm per rank needs two")


def world_size(options: Options) -> int:
    """Processes to start."""
    return options.ranks


def cells(options: Options) -> list[Cell]:
    """Two: statistics per rank, and over all ranks."""
    return [
        Cell(
            model=options.model,
            ranks=options.ranks,
            batch_per_rank=options.batch_size,
            sync_bn=sync_bn,
            amp=options.amp,
            channels_last=options.channels_last,
        )
        for sync_bn in (False, True)
    ]


def measure(options: Options, wanted: list[Cell], ctx: "DistContext", environment: dict[str, Any]) -> None:
    """Measure both in turn; rank 0 appends their records. Every rank must call this.

    Raises MistakeOfAll if the model has no BatchNorm.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    from bench.train_blocks import measure_in_turns

    spec = zoo.find(options.model)
    module = spec.build(spec.shape, spec.classes)
    if not any(isinstance(part, _BatchNorm) for part in module.modules()):
        raise MistakeOfAll(
            f"expected a --model with BatchNorm, got {options.model}, which has none; try resnet18-cifar"
        )
    measure_in_turns(options, wanted, ctx, environment, case="syncbn")
