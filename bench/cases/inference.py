"""Forward passes alone, in evaluation mode and without gradients: throughput and latency by batch size.

Every rank runs its own copy of the model, and they do not speak to each other inside a block. Batch sizes take turns.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from bench.cell import key_of
from bench.options import BenchOptions
from ddp.mistake import require
from models import zoo

if TYPE_CHECKING:
    from ddp.context import DistContext


@dataclass(frozen=True, kw_only=True)
class InferenceCell:
    """One model and batch size."""

    model: str
    ranks: int
    batch_per_rank: int
    amp: Literal["off", "bf16", "fp16"] = "off"
    channels_last: bool = False

    @property
    def key(self) -> str:
        """What stands for this cell in records."""
        return key_of(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Measure forward passes."""

    model: str = "resnet18-cifar"
    """Model: a name from `ringmark list models`, or path/to/file.py:factory."""
    ranks: int = 1
    """Processes, each with its own copy of the model."""
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Samples per rank in a forward pass, such as 1,8,32."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision by torch.amp."""
    channels_last: bool = False
    """Keep images and weights in NHWC order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        zoo.check_name(self.model)
        require(self.ranks >= 1, "--ranks of at least 1", self.ranks, "try 1")
        good = bool(self.batch_sizes) and min(self.batch_sizes) >= 1
        require(good, "--batch-sizes of at least 1", self.batch_sizes, "such as 1,8,32")


def world_size(options: Options) -> int:
    """Processes to start."""
    return options.ranks


def cells(options: Options) -> list[InferenceCell]:
    """One per batch size, from the smallest."""
    return [
        InferenceCell(
            model=options.model,
            ranks=options.ranks,
            batch_per_rank=batch,
            amp=options.amp,
            channels_last=options.channels_last,
        )
        for batch in sorted(set(options.batch_sizes))
    ]


def measure(options: Options, wanted: list[InferenceCell], ctx: "DistContext", environment: dict[str, Any]) -> None:
    """Measure the wanted cells in turn; rank 0 appends their records. Every rank must call this."""
    from bench.failure import recorded
    from bench.record import Record, append

    forward = _forward(options, wanted, ctx)
    calls: list[int] = []
    for place, cell in enumerate(wanted):
        with recorded(options.out, "inference", asdict(cell), environment):
            calls.append(_warm_up(forward, place, options, ctx))
    blocks: list[list[Any]] = [[] for _ in wanted]
    for number in range(options.rounds):
        order = range(len(wanted)) if number % 2 == 0 else reversed(range(len(wanted)))
        for place in order:
            blocks[place].append(_timed(forward, place, calls[place], ctx))
    for place, cell in enumerate(wanted):
        parts = ctx.gather(blocks[place])
        raw = {
            "warmup_calls": options.warmup_steps,
            "blocks": [
                {
                    "round": number,
                    "samples": calls[place] * cell.batch_per_rank * cell.ranks,
                    "wall_s": [part[number][0] for part in parts],
                    "call_s": [part[number][1] for part in parts],
                }
                for number in range(options.rounds)
            ],
        }
        if ctx.is_main:
            record = Record(case="inference", cell=asdict(cell), status="ok", raw=raw, environment=environment)
            append(options.out, record)


def _forward(options: Options, wanted: list[InferenceCell], ctx: "DistContext") -> Callable[[int], Any]:
    """The model and one random batch of each cell, on the device -> the forward pass of the cell at a place."""
    import torch

    from bench.train_blocks import task_of
    from ddp.precision import autocast
    from ddp.task import random_step

    spec = zoo.find(options.model)
    task = task_of(spec)
    torch.manual_seed(0)
    module = zoo.build(spec, spec.shape, spec.classes, task.output_shape(spec.shape, spec.classes)).to(ctx.device)
    if options.channels_last:
        module = module.to(memory_format=torch.channels_last)
    module.eval()
    batches = [
        random_step(
            task, spec.shape, spec.classes, cell.batch_per_rank, ctx, channels_last=options.channels_last
        ).inputs
        for cell in wanted
    ]

    def forward(place: int) -> Any:
        with torch.no_grad(), autocast(options.amp, ctx.device):
            return module(batches[place])

    return forward


def _timed(forward: Callable[[int], Any], place: int, calls: int, ctx: "DistContext") -> list[Any]:
    """One block -> [seconds of the block, seconds of each call]; on a GPU of the device, which has a queue of calls."""
    from bench.clock import timed_block

    with timed_block(ctx) as (block, mark):
        for _ in range(calls):
            forward(place)
            mark()
    return [block.wall_s, block.step_s]


def _warm_up(forward: Callable[[int], Any], place: int, options: Options, ctx: "DistContext") -> int:
    """Untimed calls, the last of which tells how many fill a block: the same number on every rank."""
    from bench.train_blocks import LARGEST_BLOCK

    _timed(forward, place, options.warmup_steps - 1, ctx)
    slowest_s = max(ctx.gather(_timed(forward, place, 1, ctx)[0]))
    return max(2, min(LARGEST_BLOCK, math.ceil(options.block_s / slowest_s)))
