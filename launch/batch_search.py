"""`ringmark batch-size --model M --ranks N`: the largest batch per rank whose training steps fit into memory.

Every size is tried in a launch of its own, with a deadline, so that running out of memory leaves nothing behind that
would fail the next, and a rank that waits for one that is gone ends with it. A size fits if all ranks made their steps.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from bench.cases import scaling
from bench.record import Record, append
from bench.scaling import read_blocks
from bench.stats import throughput_per_s
from ddp.mistake import require
from launch.argv import parse, to_argv
from launch.exit_codes import DONE, FAILED
from launch.grid import GridCell
from launch.grid_run import LATE, locked, measure
from models import zoo

CASE = "scaling"
HELP = "Find the largest batch per rank that trains: 1, 2, 3, 4, 6, 8, 12 ... (powers of two, and halfway between)."


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What is to fit."""

    model: str = "resnet18-cifar"
    """Model: a name from `ringmark list models`, or path/to/file.py:factory."""
    ranks: int = 1
    """Ranks that train at the same time."""
    first: int = 16
    """Samples per rank that are tried first."""
    most: int = 65536
    """Samples per rank at most."""
    deadline_s: float = 600.0
    """Seconds after which a size counts as one that does not fit."""
    sync_bn: bool = False
    """BatchNorm over the whole global batch."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision by torch.amp."""
    channels_last: bool = False
    """Keep images and weights in NHWC order."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: GPUs if this machine has them."""
    out: Path = Path("runs/batch-size")
    """Folder for records.jsonl, one record of each size, and the logs of those that do not fit."""

    def __post_init__(self) -> None:
        zoo.check_name(self.model)
        require(self.ranks >= 1, "--ranks of at least 1", self.ranks, "such as 2")
        require(self.first >= 1, "--first of at least 1", self.first, "such as 16")
        require(self.most >= self.first, "--most not below --first", self.most, "such as 65536")
        require(self.deadline_s > 0, "--deadline-s above 0", self.deadline_s, "give seconds, such as 600")


def largest(fits: Callable[[int], bool], first: int, most: int) -> int | None:
    """The largest size that fits, of `first` doubled or halved so often, and one and a half times that; None if none.

    Asks about no size twice, and supposes that what fits does so with fewer samples, too.
    """
    size, fitting = first, fits(first)
    while not fitting and size > 1:
        size //= 2
        fitting = fits(size)
    if not fitting:
        return None
    while size >= first and 2 * size <= most and fits(2 * size):
        size *= 2
    between = size + size // 2
    return between if size < between <= most and fits(between) else size


def asked_of(options: SearchOptions, size: int) -> scaling.Options:
    """The benchmark of so many samples per rank."""
    return scaling.Options(
        model=options.model,
        ranks=(options.ranks,),
        batch_size=size,
        scaling="weak",
        sync_bn=options.sync_bn,
        amp=options.amp,
        channels_last=options.channels_last,
        device=options.device,
    )


def cell_of(options: SearchOptions, size: int) -> GridCell:
    """A launch that trains a few steps with so many samples per rank."""
    asked = replace(asked_of(options, size), rounds=2, block_s=0.1)
    (cell,) = [each for each in scaling.cells(asked) if each.strategy == "ddp"]
    return GridCell(case=CASE, options=replace(asked, only=cell.key), ranks=options.ranks, cell=asdict(cell), how={})


def search(options: SearchOptions) -> tuple[int | None, dict[int, Record]]:
    """Try sizes -> the largest that fits, None if none does, and the record of every size that was tried.

    Raises ValueError if a size fails for another reason than memory or time: then no size would tell anything.
    """
    tried: dict[int, Record] = {}

    def fits(size: int) -> bool:
        record = measure(cell_of(options, size), options.out, options.deadline_s)
        append(options.out, record)
        tried[size] = record
        print(f"{size:>6} samples per rank: {_outcome(record)}", flush=True)
        if record.status == "failed" and not str(record.error).startswith(LATE):
            raise ValueError(
                f"expected {size} samples per rank to fit or not, got: {record.error}; see {options.out}/logs"
            )
        return record.status == "ok"

    return largest(fits, options.first, options.most), tried


def rate_per_s(record: Record) -> float:
    """Samples of all ranks per second, over all blocks."""
    return throughput_per_s(read_blocks(record.raw, record.cell["ranks"]))


def _outcome(record: Record) -> str:
    if record.status != "ok":
        return f"does not fit: {record.error}"
    peaks = record.raw["peak_memory_bytes"]
    peak = "" if peaks is None else f", peak memory {max(peaks) / 2**20:,.0f} MiB"
    return f"fits, {rate_per_s(record):,.4g} samples/s{peak}"


def batch_size(argv: Sequence[str]) -> int:
    """`ringmark batch-size` -> 0, or 1 if not even one sample fits. Raises UsageError or ValueError for a mistake."""
    options = parse(SearchOptions, argv, prog="ringmark batch-size", description=HELP)
    with locked(options.out):
        found, tried = search(options)
    if found is None:
        print(f"{options.model}: not even one sample per rank fits")
        return FAILED
    good = {size: record for size, record in tried.items() if record.status == "ok"}
    fastest = max(good, key=lambda size: rate_per_s(good[size]))
    print(f"{options.model}: {found} samples per rank fit, {found * options.ranks} on {options.ranks} ranks together")
    print(f"fastest of those tried: {fastest} per rank, {rate_per_s(good[fastest]):,.4g} samples/s in short blocks")
    print(f"next    {shlex.join(['ringmark', 'bench', 'scaling', *to_argv(asked_of(options, found))])}")
    return DONE
