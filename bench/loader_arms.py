"""The pipelines of the loader benchmark, as endless streams of batches on the CPU."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.guards import children_cpu_s, children_run
from bench.record import Record, append
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.data import make_loaders
from ddp.datasets import imagefolder
from ddp.input_config import InputConfig
from ddp.source import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from bench.cases.loader import LoaderCell, Options

LONGEST_REST_S = 30.0
"""Seconds that loader processes may take to fill their queues."""
LOOK_S = 0.1
"""Seconds between two looks at whether they still work: many ticks of the clock that tells."""


def _ringmark(options: "Options", ctx: DistContext) -> Iterator[Tensor]:
    """ringmark's training loader: decoded once, cropped, flipped and normalised as whole batches."""
    config = InputConfig(data="imagefolder", data_dir=options.data_dir, image_size=options.image_size, cache="memory")
    dataset = imagefolder.load(config, (3, options.image_size, options.image_size), 0)
    loader, _ = make_loaders(TrainConfig(batch_size=options.batch_size, drop_last=True, input=config), dataset, ctx)
    for epoch in range(1_000_000):
        loader.set_epoch(epoch)
        for batch in loader:
            yield batch.inputs


@dataclass(frozen=True)
class _Arm:
    """A pipeline that is running."""

    stream: Iterator[Tensor]
    ahead: int = 0
    """Batches that loader processes may have made before a block begins, and those that they then work on."""


def _imagefolder(options: "Options", workers: int) -> _Arm:
    """What the field's recipes do: ImageFolder decodes with PIL and transforms image by image."""
    from torchvision import datasets, transforms

    assert options.data_dir is not None
    size = options.image_size
    steps: list[Any] = [] if size <= imagefolder.LARGEST_SMALL_IMAGE else [transforms.Resize(size)]
    steps += [
        transforms.RandomCrop(size, padding=size // 8),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    dataset = datasets.ImageFolder(str(Path(options.data_dir) / "train"), transforms.Compose(steps))
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        dataset,
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return _Arm(_endless(loader), workers * ((loader.prefetch_factor or 0) + 1))


def _endless(loader: "torch.utils.data.DataLoader[Any]") -> Iterator[Tensor]:
    while True:
        for images, _ in loader:
            yield images


def _arm(name: str, options: "Options", ctx: DistContext) -> _Arm:
    if name == "ringmark":
        return _Arm(_ringmark(options, ctx))
    return _imagefolder(options, workers=int(name.split(", ")[1].split()[0]))


def _timed(stream: Iterator[Tensor], seconds: float) -> tuple[int, float]:
    """Take batches for about that long -> (images, seconds)."""
    images = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        images += len(next(stream))
    return images, elapsed


def block(arm: _Arm, seconds: float) -> tuple[int, float]:
    """A timed block of one pipeline that neither gains from what was made before nor takes from the next one's.

    Batches that loader processes made ahead while others were timed are thrown away first, and a round of those that
    they begin only then; and in the end the processes get the time to fill their queues.
    """
    for _ in range(arm.ahead):
        next(arm.stream)
    found = _timed(arm.stream, seconds)
    if arm.ahead:
        _rest()
    return found


def _rest() -> None:
    """Wait until no loader process uses the CPU any more, or wants to, which is when all queues are full."""
    deadline = time.monotonic() + LONGEST_REST_S
    before, now = None, children_cpu_s()
    while (now != before or children_run()) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        before, now = now, children_cpu_s()


def measure_pipelines(
    options: "Options", cells: list["LoaderCell"], ctx: DistContext, environment: dict[str, Any]
) -> None:
    """Measure pipelines round by round in alternating order, each in one thread, and append their records.

    All of them on the CPU, also where there is a GPU: ImageFolder makes its batches there, and this clock would not see
    work that a GPU has yet to do.
    """
    ctx = ctx.patient
    torch.set_num_threads(1)
    arms, prepared_s = [], []
    for cell in cells:
        started = time.perf_counter()
        arm = _arm(cell.pipeline, options, ctx)
        next(arm.stream)
        prepared_s.append(time.perf_counter() - started)
        block(arm, 0.5)
        arms.append(arm)
    blocks: list[list[dict[str, Any]]] = [[] for _ in cells]
    for number in range(options.rounds):
        order = range(len(cells)) if number % 2 == 0 else reversed(range(len(cells)))
        for position in order:
            images, wall_s = block(arms[position], options.block_s)
            blocks[position].append({"round": number, "samples": images, "wall_s": [wall_s]})
    for cell, cell_blocks, first_batch_s in zip(cells, blocks, prepared_s, strict=True):
        raw = {"first_batch_s": first_batch_s, "blocks": cell_blocks}
        environment = environment | {"device": "cpu", "threads_per_rank": 1}
        append(options.out, Record(case="loader", cell=asdict(cell), status="ok", raw=raw, environment=environment))
