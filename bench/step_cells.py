"""What the record of a train_step cell says: its blocks, and what they cost in time, arithmetic and energy."""

from dataclasses import dataclass
from typing import Any

from bench.guards import contention, is_known
from bench.peaks import mfu, peak_flop_per_s
from bench.phases import TRAIN, StepBlock, mean_step_s, of_arm, read_blocks
from bench.record import Record
from bench.text import plural, value_text

ENERGY_BLOCK_S = 2.0
"""A GPU's counter of energy may move too seldom for shorter blocks. Source: Zeus, release notes of 0.6.1."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One cell with its blocks, or with the reason why there are none."""

    record: Record
    blocks: tuple[StepBlock, ...]
    error: str | None

    @property
    def ranks(self) -> int:
        """Processes."""
        return int(self.record.cell["ranks"])

    @property
    def batch(self) -> Any:
        """Samples per rank."""
        return self.record.cell.get("batch_per_rank")

    @property
    def is_base(self) -> bool:
        """True for the process without DDP."""
        return self.record.cell.get("strategy") == "single"

    @property
    def sync_bn(self) -> bool:
        """Whether BatchNorm is over the whole global batch."""
        return bool(self.record.cell.get("sync_bn"))

    @property
    def name(self) -> str:
        """Short, for rows."""
        words = "one process" if self.is_base else plural(self.ranks, "rank")
        return f"{words}, batch {value_text(self.batch)}{', SyncBN' if self.sync_bn and not self.is_base else ''}"

    @property
    def label(self) -> str:
        """What the cells of one study share."""
        cell = self.record.cell
        words = [value_text(cell.get("model"))]
        words += [str(cell["amp"])] if cell.get("amp") not in (None, "off") else []
        words += ["channels last"] if cell.get("channels_last") else []
        words += [f"data {cell['data']}"] if cell.get("data") not in (None, "resident") else []
        words += [f"in {cell['data_dir']}"] if cell.get("data_dir") is not None else []
        return ", ".join(words)


def measured(record: Record) -> Measured:
    """A record's cell; what cannot be read is said, not raised."""
    blocks: tuple[StepBlock, ...] = ()
    error = None if record.status == "ok" else f"{record.status}: {value_text(record.error)}"
    if record.status == "ok":
        try:
            blocks = read_blocks(record.raw, int(record.cell["ranks"]))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as problem:
            error = f"unreadable: {problem!r}"
    return Measured(record=record, blocks=blocks, error=error)


def rate_per_s(cell: Measured) -> float:
    """Samples of all ranks per second: all samples over all time, never a mean of rates."""
    return float(cell.ranks * cell.batch / mean_step_s(of_arm(cell.blocks, TRAIN)))


def utilisation(cell: Measured) -> float | None:
    """Of the peak of all ranks' devices (MFU); None if anything is unknown."""
    return mfu(cell.record.raw.get("training_flop_per_sample"), rate_per_s(cell), cell.ranks, peak(cell))


def peak(cell: Measured) -> float | None:
    """FLOP/s of one device at most; None if it is not known."""
    return peak_flop_per_s(cell.record.environment.get("device"), cell.record.cell.get("amp"))


def joule_per_sample(cell: Measured) -> float | None:
    """Energy of all ranks' GPUs in training blocks; None if a block is too short or a counter is missing."""
    joules, samples = 0.0, 0
    for block, raw in zip(cell.blocks, cell.record.raw["blocks"], strict=True):
        if block.arm == TRAIN:
            spent = [guard.get("energy_j") for guard in raw.get("guards") or [{}]]
            if None in spent or max(block.wall_s) < ENERGY_BLOCK_S:
                return None
            joules, samples = joules + sum(spent), samples + block.samples
    return joules / samples if samples else None


def contended(cell: Measured) -> list[tuple[int, str, list[str]]]:
    """Round, kind and reasons of each block in which something else used the machine."""
    found = []
    for block, raw in zip(cell.blocks, cell.record.raw["blocks"], strict=True):
        guards = raw.get("guards")
        if guards and (reasons := contention(guards)):
            found.append((block.round, block.arm, reasons))
    return found


def watched(cell: Measured) -> int:
    """Blocks of which anything is known of what else used the machine."""
    guards = [found for raw in cell.record.raw["blocks"] if (found := raw.get("guards"))]
    return sum(bool(contention(each)) or is_known(each) for each in guards)
