"""Scaling studies: which records belong together, what their base is, and how they compare to it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, TypeGuard

from bench.guards import contention, is_known
from bench.launch_id import launch_of
from bench.record import Record
from bench.stats import (
    Block,
    Interval,
    efficiency,
    paired_ratios,
    ratio_interval,
    throughput_per_round,
    throughput_per_s,
    unpaired_interval,
)
from bench.text import plural, value_text

VARIED = ("ranks", "batch_per_rank", "strategy")
"""What differs between the cells of one study; they agree in everything else."""
PLAIN = ("off", False, None)
"""Values of a cell's field that go without saying."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One cell of a study with its blocks, or with the reason why there are none."""

    record: Record
    ranks: int
    batch_per_rank: int
    strategy: str
    status: str
    """The record's status, or `unreadable` if it is ok and its numbers are not."""
    error: str | None
    blocks: tuple[Block, ...]

    @property
    def global_batch(self) -> int:
        """Samples of all ranks together in a step."""
        return self.ranks * self.batch_per_rank

    @property
    def is_base(self) -> bool:
        """True for the single process without DDP."""
        return self.strategy == "single" and self.ranks == 1

    @property
    def name(self) -> str:
        """Short, for plots and the verdict."""
        words = "single process" if self.is_base else f"{self.strategy}, {plural(self.ranks, 'rank')}"
        return f"{words}, batch {self.batch_per_rank}"

    @property
    def rate_per_s(self) -> float | None:
        """Samples per second, None without blocks."""
        return throughput_per_s(self.blocks) if self.blocks else None

    @property
    def rounds(self) -> int:
        """Distinct rounds."""
        return len({block.round for block in self.blocks})

    @cached_property
    def contended(self) -> list[list[str]] | None:
        """What else used the machine, in words, of each block of which anything is known; None if nothing is."""
        blocks = self.record.raw["blocks"] if self.blocks else []
        guards = [found for block in blocks if (found := block.get("guards"))]
        known = [reasons for each in guards if (reasons := contention(each)) or is_known(each)]
        return known or None


@dataclass(frozen=True, kw_only=True)
class Study:
    """Cells that agree in everything but ranks, batch and strategy."""

    label: str
    base_batch: int | None
    """Batch of one rank that decides what is weak and what is strong; None without a base and without 1-rank DDP."""
    cells: tuple[Measured, ...]

    @property
    def measured(self) -> tuple[Measured, ...]:
        """The cells that have blocks."""
        return tuple(cell for cell in self.cells if cell.blocks)

    @property
    def base(self) -> Measured | None:
        """The single process without DDP."""
        return next((cell for cell in self.cells if cell.is_base and cell.batch_per_rank == self.base_batch), None)

    def kinds(self, cell: Measured) -> tuple[str, ...]:
        """`weak` for the base's batch per rank, `strong` for the base's global batch; one rank is both."""
        if cell.is_base or self.base_batch is None:
            return ()
        weak = ("weak",) if cell.batch_per_rank == self.base_batch else ()
        return weak + (("strong",) if cell.global_batch == self.base_batch else ())

    def one_rank(self, cell: Measured) -> Measured | None:
        """The cell of the same strategy with one rank and the base's batch."""
        same = (each for each in self.cells if each.strategy == cell.strategy and each.ranks == 1 and not each.is_base)
        return next((each for each in same if each.batch_per_rank == self.base_batch), None)

    def efficiency(self, cell: Measured, base: Measured | None) -> float | None:
        """Throughput per rank against `base`; None if either is unknown, or the scaling is neither weak nor strong."""
        if base is None or cell.rate_per_s is None or base.rate_per_s is None or not self.kinds(cell):
            return None
        return efficiency(cell.rate_per_s, cell.ranks, base.rate_per_s)

    def interval(self, cell: Measured) -> Interval | None:
        """95 % interval of the efficiency against the single process.

        From the rounds that both have if they were measured beside each other, else of two sides by themselves.
        """
        return self._intervals.get(id(cell))

    @cached_property
    def compared(self) -> tuple[Measured, ...]:
        """The cells that have an efficiency against the single process."""
        return tuple(cell for cell in self.cells if self.efficiency(cell, self.base) is not None)

    @cached_property
    def unpaired(self) -> tuple[Measured, ...]:
        """Those of them whose rounds were not measured beside those of the base."""
        return tuple(cell for cell in self.compared if not self._is_paired(cell))

    @cached_property
    def _intervals(self) -> dict[int, Interval | None]:
        """By the cell's id; all at once, since tables, plots and caveats ask for them again and again."""
        apart = {id(cell) for cell in self.unpaired}
        return {id(cell): self._compare(cell, paired=id(cell) not in apart) for cell in self.compared}

    def _compare(self, cell: Measured, *, paired: bool) -> Interval | None:
        assert self.base is not None
        rates, alone = throughput_per_round(cell.blocks), throughput_per_round(self.base.blocks)
        if paired:
            return ratio_interval([ratio / cell.ranks for ratio in paired_ratios(rates, alone)])
        return unpaired_interval([rate / cell.ranks for rate in rates.values()], list(alone.values()))

    def _is_paired(self, cell: Measured) -> bool:
        """Whether the cell and the base took turns: in one launch, or if neither record names its launch, in time."""
        assert self.base is not None
        launches = {launch_of(cell.record), launch_of(self.base.record)}
        return len(launches) == 1 and (None not in launches or not self._is_apart(cell, self.base))

    def _is_apart(self, cell: Measured, base: Measured) -> bool:
        """True if the two records were made further apart than interleaved measuring of the whole study can explain."""
        try:
            first, second = (datetime.fromisoformat(each.record.time) for each in (base, cell))
            gap_s = abs((first - second).total_seconds())
        except (TypeError, ValueError):
            return False
        return gap_s > 600 + 2 * self._measured_s

    @cached_property
    def _measured_s(self) -> float:
        return sum(max(block.wall_s) for each in self.cells for block in each.blocks)


def studies(records: Iterable[Record]) -> tuple[list[Study], list[Record]]:
    """Sort scaling records into studies -> (studies, records whose cell does not say ranks, batch and strategy)."""
    groups: dict[str, list[Measured]] = {}
    strangers = []
    for record in records:
        cell = _measured(record)
        if cell is None:
            strangers.append(record)
        else:
            groups.setdefault(_label(record.cell), []).append(cell)
    return [study for label, cells in _with_bases(groups).items() for study in _split(label, cells)], strangers


def _with_bases(groups: dict[str, list[Measured]]) -> dict[str, list[Measured]]:
    """The groups, each with the bases that it lacks and that differ in `sync_bn` alone.

    A single process has nothing to synchronise. A group of nothing but bases that serve others is none.
    """
    bases: dict[str, list[Measured]] = {}
    for cells in groups.values():
        for cell in cells:
            if cell.is_base:
                bases.setdefault(_without_sync_bn(cell), []).append(cell)
    found, lent = {}, set()
    for label, cells in groups.items():
        held = {cell.batch_per_rank for cell in cells if cell.is_base}
        wanted = {batch for cell in cells if not cell.is_base for batch in _bases(cell)} - held
        more = [base for base in bases.get(_without_sync_bn(cells[0]), []) if base.batch_per_rank in wanted]
        lent |= {id(base) for base in more}
        found[label] = [*more, *cells]
    return {label: cells for label, cells in found.items() if not {id(cell) for cell in cells} <= lent}


def _without_sync_bn(cell: Measured) -> str:
    return _label({**cell.record.cell, "sync_bn": False})


def _split(label: str, cells: list[Measured]) -> list[Study]:
    """One study per base; with several bases, cells that fit none of them make one more study without a base."""
    batches = sorted({cell.batch_per_rank for cell in cells if cell.is_base})
    if len(batches) < 2:
        ones = sorted({cell.batch_per_rank for cell in cells if cell.ranks == 1})
        return [_ordered(label, next(iter(batches or ones), None), cells)]
    found, left = [], list(cells)
    for batch in batches:
        fitting = [cell for cell in cells if batch in _bases(cell)]
        left = [cell for cell in left if cell not in fitting]
        found.append(_ordered(f"{label}, base batch {batch}", batch, fitting))
    return [*found, _ordered(f"{label}, other batches", None, left)] if left else found


def _bases(cell: Measured) -> tuple[int, ...]:
    return (cell.batch_per_rank,) if cell.is_base else (cell.batch_per_rank, cell.global_batch)


def _ordered(label: str, base_batch: int | None, cells: list[Measured]) -> Study:
    study = Study(label=label, base_batch=base_batch, cells=())

    def place(cell: Measured) -> tuple[bool, str, bool, int, int]:
        return not cell.is_base, cell.strategy, "weak" not in study.kinds(cell), cell.ranks, cell.batch_per_rank

    return Study(label=label, base_batch=base_batch, cells=tuple(sorted(cells, key=place)))


def _label(cell: dict[str, Any]) -> str:
    """The study's name: the model, and every other field that all its cells share, unless it goes without saying."""
    shared = {key: value for key, value in sorted(cell.items()) if key not in (*VARIED, "model")}
    words = [
        key if value is True else f"{key} {value_text(value)}" for key, value in shared.items() if value not in PLAIN
    ]
    return ", ".join([value_text(cell.get("model")), *(word.replace("_", " ") for word in words)])


def _measured(record: Record) -> Measured | None:
    ranks, batch, strategy = record.cell.get("ranks"), record.cell.get("batch_per_rank"), record.cell.get("strategy")
    if not (_is_count(ranks) and _is_count(batch) and isinstance(strategy, str)):
        return None
    status, error = str(record.status), record.error
    blocks: tuple[Block, ...] = ()
    if record.status == "ok":
        try:
            blocks = read_blocks(record.raw, ranks)
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            status, error = "unreadable", f"the record says ok, but its numbers cannot be used: {problem!r}"
    return Measured(
        record=record, ranks=ranks, batch_per_rank=batch, strategy=strategy, status=status, error=error, blocks=blocks
    )


def read_blocks(raw: dict[str, Any], ranks: int) -> tuple[Block, ...]:
    """The blocks of a scaling record. Raises KeyError, TypeError or ValueError if they are not as they should be."""
    blocks = tuple(
        Block(
            round=int(block["round"]),
            samples=int(block["samples"]),
            wall_s=tuple(float(value) for value in block["wall_s"]),
            step_s=tuple(tuple(float(value) for value in steps) for steps in block["step_s"]),
        )
        for block in raw["blocks"]
    )
    if not blocks:
        raise ValueError("expected at least one block, got none")
    for block in blocks:
        if len(block.wall_s) != ranks or len(block.step_s) != ranks or len({len(steps) for steps in block.step_s}) != 1:
            raise ValueError(f"expected times of {ranks} ranks with equally many steps in round {block.round}")
        times = (*block.wall_s, *(value for steps in block.step_s for value in steps))
        if block.samples < 1 or not all(math.isfinite(value) and value > 0 for value in times):
            raise ValueError(f"expected samples and positive, finite seconds in round {block.round}")
    return blocks


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
