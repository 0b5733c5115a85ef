"""A gate for CI: new records against stored ones of the same machine class, cell by cell; a pure decision.

The two sides were not measured beside each other, so drift between the two days is in the difference, and the margin
must be wider than that of a comparison. Of each side a cell's newest record counts, as in reports.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bench.cell import key_of
from bench.intervals import LogInterval, welch
from bench.record import UNUSABLE, Record
from bench.stats import throughput_per_s
from bench.summary import usable
from bench.text import value_text
from bench.timed_blocks import timed_blocks

CLASS = ("cpu", "cores", "device", "gpus", "torch")
"""What makes two machines one class, as environments name it."""
LEAST_BLOCKS = 4
"""Blocks of each side without which nothing is said."""
ALPHA = 0.05

Word = Literal["ok", "slower", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class CellGate:
    """What the gate says of one cell."""

    case: str
    cell: dict[str, Any]
    word: Word
    interval: LogInterval | None = None
    """Of ln(time now / time then)."""
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the gate says of all cells."""

    cells: tuple[CellGate, ...]
    why_not: str = ""
    """Why nothing can be compared at all; empty if it can."""
    ungated: dict[str, int] = field(default_factory=dict)
    """New records that nothing is said of: their case, and why where it can be gated -> how many."""
    remarks: tuple[str, ...] = ()
    """Records that were left out."""

    @property
    def word(self) -> Word:
        """Slower if any cell is; inconclusive if any cell is, or if there is none."""
        words = {each.word for each in self.cells}
        if self.why_not or not words:
            return "inconclusive"
        return "slower" if "slower" in words else "inconclusive" if "inconclusive" in words else "ok"


def machine_class(records: Iterable[Record]) -> dict[str, set[str | None]]:
    """The values of everything that makes a machine class; None among them where a record does not tell."""
    found: dict[str, set[str | None]] = {name: set() for name in CLASS}
    for record in records:
        for name in CLASS:
            value = record.environment.get(name)
            found[name].add(None if value is None else value_text(value))
    return found


def difference(now: Mapping[str, set[str | None]], then: Mapping[str, set[str | None]]) -> str:
    """What keeps two sides from being one machine class, as words; empty if nothing does."""
    parts = []
    for name in CLASS:
        both = now[name] | then[name]
        if None in both:
            parts.append(f"{name} is not known of all records")
        elif len(both) > 1:
            parts.append(f"{name} is {_shown(now[name])} now and was {_shown(then[name])}")
    return ", ".join(parts)


def _shown(values: Iterable[Any]) -> str:
    return " / ".join(sorted(map(str, values)))


def sample_times(record: Record) -> tuple[float, ...]:
    """ln of seconds per sample of each block of a record; empty if it has no blocks that can be gated."""
    try:
        return tuple(-math.log(throughput_per_s([block])) for block in timed_blocks(record))
    except UNUSABLE:
        return ()


def decide(now: Sequence[Record], then: Sequence[Record], margin: float) -> Gate:
    """Compare every cell that was measured now with the same cell then; `margin` is a share, such as 0.05.

    A cell is slower if all of its interval lies beyond the margin, ok if none of it does, and otherwise inconclusive.
    """
    remarks: list[str] = []
    new, old = _newest(now, "new", remarks), _newest(then, "stored", remarks)
    measured = {key: record for key, record in new.items() if sample_times(record)}
    stored = {key: record for key, record in old.items() if sample_times(record)}
    told = Gate(cells=(), ungated=_ungated(new, stored), remarks=tuple(remarks))
    if not measured or not stored:
        side = "the new records" if not measured else "the stored records"
        return replace(told, why_not=f"{side} have no timed blocks of samples")
    apart = difference(machine_class(measured.values()), machine_class(stored.values()))
    if apart:
        return replace(told, why_not=f"the machines are not of one class: {apart}")
    if not measured.keys() & stored.keys():
        return replace(told, why_not="no cell was measured on both sides")
    both = [_decide_cell(measured[key], record, margin) for key, record in stored.items() if key in measured]
    lost = [_lost(record, new.get(key)) for key, record in stored.items() if key not in measured]
    return replace(told, cells=(*both, *lost))


def _newest(records: Sequence[Record], side: str, remarks: list[str]) -> dict[str, Record]:
    """The record of each cell that counts, by key; what is left out is added to `remarks`."""
    left: list[str] = []
    try:
        chosen = usable(records, left)
    except ValueError:  # there is none
        chosen = []
    remarks += [f"{side} records: {each}" for each in left]
    return {key_of({"case": record.case, "cell": record.cell}): record for record in chosen}


def _ungated(new: Mapping[str, Record], stored: Mapping[str, Record]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, record in new.items():
        if key not in stored:
            unknown = " without a stored one" if sample_times(record) else ""
            name = record.case + (unknown if record.status == "ok" else " that could not be measured")
            found[name] = found.get(name, 0) + 1
    return found


def _lost(then: Record, now: Record | None) -> CellGate:
    why = "not measured now"
    if now is not None:
        why = f"{now.status}: {value_text(now.error)}" if now.status != "ok" else "its numbers now cannot be used"
    return CellGate(case=then.case, cell=then.cell, word="inconclusive", why=why)


def _decide_cell(measured: Record, stored: Record, margin: float) -> CellGate:
    now, then = sample_times(measured), sample_times(stored)
    found = CellGate(case=measured.case, cell=measured.cell, word="inconclusive")
    if (fewest := min(len(now), len(then))) < LEAST_BLOCKS:
        why = f"expected at least {LEAST_BLOCKS} blocks on each side, got {fewest}; measure with more --rounds"
        return replace(found, why=why)
    interval = welch(now, then, ALPHA)
    edge = math.log1p(margin)
    if interval.low > edge:
        return replace(found, word="slower", interval=interval)
    if interval.high < edge:
        return replace(found, word="ok", interval=interval)
    return replace(found, interval=interval, why="the interval reaches over the margin: too much noise for this gate")
