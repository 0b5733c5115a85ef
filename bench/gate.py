"""A gate for CI: new records against stored ones of the same machine class, cell by cell; a pure decision.

The two sides were not measured beside each other, so drift between the two days is in the difference, and the margin
must be wider than that of a comparison.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench import paired
from bench.cell import key_of
from bench.record import Record
from bench.scaling import read_blocks
from bench.stats import throughput_per_s

CLASS = ("cpu", "cores", "device", "gpus", "torch")
"""What makes two machines one class, as environments name it."""
LEAST_BLOCKS = 4
"""Blocks of each side without which nothing is said."""
ALPHA = 0.05

Word = Literal["ok", "slower", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class CellGate:
    """What the gate says of one cell."""

    cell: dict[str, Any]
    word: Word
    interval: paired.LogInterval | None = None
    """Of ln(time now / time then)."""
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the gate says of all cells."""

    cells: tuple[CellGate, ...]
    why_not: str = ""
    """Why nothing can be compared at all; empty if it can."""

    @property
    def word(self) -> Word:
        """Slower if any cell is; inconclusive if any cell is, or if there is none."""
        words = {each.word for each in self.cells}
        if self.why_not or not words:
            return "inconclusive"
        return "slower" if "slower" in words else "inconclusive" if "inconclusive" in words else "ok"


def machine_class(records: Iterable[Record]) -> dict[str, set[Any]]:
    """The values of everything that makes a machine class; None among them where a record does not tell."""
    found: dict[str, set[Any]] = {name: set() for name in CLASS}
    for record in records:
        for name in CLASS:
            found[name].add(record.environment.get(name))
    return found


def difference(now: Mapping[str, set[Any]], then: Mapping[str, set[Any]]) -> str:
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


def sample_times(record: Record) -> tuple[float, ...] | None:
    """ln of seconds per sample of each block of a record; None if it has no such blocks."""
    ranks = record.cell.get("ranks")
    try:
        if record.case == "compare" or not isinstance(ranks, int):
            return None
        return tuple(-math.log(throughput_per_s([block])) for block in read_blocks(record.raw, ranks))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def welch(now: Sequence[float], then: Sequence[float], alpha: float = ALPHA) -> paired.LogInterval:
    """The interval of the difference of two means, of samples with variances of their own (Welch 1947)."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # here, since scipy takes a while to load

    means = [math.fsum(side) / len(side) for side in (now, then)]
    errors = [
        math.fsum((value - mean) ** 2 for value in side) / (len(side) - 1) / len(side)
        for side, mean in zip((now, then), means, strict=True)
    ]
    total = math.fsum(errors)
    mean = means[0] - means[1]
    half = 0.0
    if total > 0:
        freedom = total**2 / math.fsum(
            error**2 / (len(side) - 1) for error, side in zip(errors, (now, then), strict=True)
        )
        half = float(stdtrit(freedom, 1 - alpha / 2)) * math.sqrt(total)
    return paired.LogInterval(low=mean - half, mean=mean, high=mean + half, count=len(now), alpha=alpha)


def decide(now: Sequence[Record], then: Sequence[Record], margin: float) -> Gate:
    """Compare every cell that was measured now with the same cell then; `margin` is a share, such as 0.05.

    A cell is slower if all of its interval lies beyond the margin, ok if none of it does, and otherwise inconclusive.
    """
    measured = [record for record in now if record.status == "ok" and sample_times(record) is not None]
    stored = [record for record in then if record.status == "ok" and sample_times(record) is not None]
    if not measured or not stored:
        side = "the new records" if not measured else "the stored records"
        return Gate(cells=(), why_not=f"{side} have no measured training steps")
    apart = difference(machine_class(measured), machine_class(stored))
    if apart:
        return Gate(cells=(), why_not=f"the machines are not of one class: {apart}")
    failed = [record for record in now if record.status != "ok" and _key(record) in {_key(each) for each in stored}]
    lost = [CellGate(cell=each.cell, word="inconclusive", why=f"{each.status}: {each.error}") for each in failed]
    keys = dict.fromkeys(_key(record) for record in stored)
    known = {_key(record) for record in [*measured, *failed]}
    gone = [record for record in stored if _key(record) not in known]
    lost += [CellGate(cell=each.cell, word="inconclusive", why="not measured now") for each in gone]
    found = [_decide_cell(key, measured, stored, margin) for key in keys if key in {_key(each) for each in measured}]
    if not found:
        return Gate(cells=(), why_not="no cell was measured on both sides")
    return Gate(cells=(*found, *lost))


def _key(record: Record) -> str:
    return key_of({"case": record.case, "cell": record.cell})


def _decide_cell(key: str, measured: Sequence[Record], stored: Sequence[Record], margin: float) -> CellGate:
    sides = [[record for record in side if _key(record) == key] for side in (measured, stored)]
    now, then = ([time for record in side for time in sample_times(record) or ()] for side in sides)
    cell = sides[0][0].cell
    if min(len(now), len(then)) < LEAST_BLOCKS:
        fewest = min(len(now), len(then))
        why = f"expected at least {LEAST_BLOCKS} blocks on each side, got {fewest}; measure with more --rounds"
        return CellGate(cell=cell, word="inconclusive", why=why)
    interval = welch(now, then)
    edge = math.log1p(margin)
    if interval.low > edge:
        return CellGate(cell=cell, word="slower", interval=interval)
    if interval.high < edge:
        return CellGate(cell=cell, word="ok", interval=interval)
    why = "the interval reaches over the margin: too much noise for this gate"
    return CellGate(cell=cell, word="inconclusive", interval=interval, why=why)
