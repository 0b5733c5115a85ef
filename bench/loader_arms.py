"""The pipelines of the loader benchmark, as endless streams of batches."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.record import Record, append
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.data import make_loaders
from ddp.datasets import imagefolder
from ddp.input_config import InputConfig
from ddp.source import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from bench.cases.loader import LoaderCell, Options


def _ringmark(options: "Options", ctx: DistContext) -> Iterator[Tensor]:
    """ringmark's training loader: decoded once, cropped, flipped and normalised as whole batches."""
    config = InputConfig(data="imagefolder", data_dir=options.data_dir, image_size=options.image_size, cache="memory")
    dataset = imagefolder.load(config, (3, options.image_size, options.image_size), 0)
    loader, _ = make_loaders(TrainConfig(batch_size=options.batch_size, drop_last=True, input=config), dataset, ctx)
    for epoch in range(1_000_000):
        loader.set_epoch(epoch)
        for batch in loader:
            yield batch.inputs


def _imagefolder(options: "Options", workers: int) -> Iterator[Tensor]:
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
    while True:
        for images, _ in loader:
            yield images


def _stream(name: str, options: "Options", ctx: DistContext) -> Iterator[Tensor]:
    if name == "ringmark":
        return _ringmark(options, ctx)
    return _imagefolder(options, workers=int(name.split(", ")[1].split()[0]))


def _timed(stream: Iterator[Tensor], seconds: float) -> tuple[int, float]:
    """Take batches for about that long -> (images, seconds)."""
    images = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        images += len(next(stream))
    return images, elapsed


def measure_pipelines(
    options: "Options", cells: list["LoaderCell"], ctx: DistContext, environment: dict[str, Any]
) -> None:
    """Measure pipelines round by round in alternating order, each in one thread, and append their records."""
    torch.set_num_threads(1)
    streams, prepared_s = [], []
    for cell in cells:
        started = time.perf_counter()
        stream = _stream(cell.pipeline, options, ctx)
        next(stream)
        prepared_s.append(time.perf_counter() - started)
        _timed(stream, 0.5)
        streams.append(stream)
    blocks: list[list[dict[str, Any]]] = [[] for _ in cells]
    for number in range(options.rounds):
        order = range(len(cells)) if number % 2 == 0 else reversed(range(len(cells)))
        for position in order:
            images, wall_s = _timed(streams[position], options.block_s)
            blocks[position].append({"round": number, "samples": images, "wall_s": [wall_s]})
    for cell, cell_blocks, first_batch_s in zip(cells, blocks, prepared_s, strict=True):
        raw = {"first_batch_s": first_batch_s, "blocks": cell_blocks}
        environment = environment | {"threads_per_rank": 1}
        append(options.out, Record(case="loader", cell=asdict(cell), status="ok", raw=raw, environment=environment))
