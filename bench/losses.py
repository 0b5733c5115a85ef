"""Tables of where the efficiency of cells went, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.attribution import ENOUGH, MEANINGS, UNEXPLAINED, Attribution, attribute
from bench.attribution_rounds import agreement, interval_s, rounds_of
from bench.launch_id import launch_of
from bench.section import Table
from bench.step_cells import Measured
from bench.text import NA, milliseconds, percent

MOST_TABLES = 20
"""Cells of a study whose lost efficiency has a table of its own; the others have a row each."""
INTERVAL_NOTE = (
    "Interval: of the median over rounds, each taken apart by itself; n/a below six rounds, or where the base was "
    "measured in another launch."
)


@dataclass(frozen=True)
class Loss:
    """A cell's loss against a base."""

    cell: Measured
    base: Measured
    whole: Attribution

    @cached_property
    def rounds(self) -> list[Attribution]:
        """Of each round; none where the base was measured at another time, so that rounds do not pair."""
        if launch_of(self.base.record) != launch_of(self.cell.record):
            return []
        return rounds_of(self.base.blocks, self.cell.blocks)

    @property
    def sentence(self) -> str:
        """What a person should remember, and whether it holds in each round."""
        if not self.whole.is_loss or len(self.rounds) < 2:
            return self.whole.sentence
        return f"{self.whole.sentence.removesuffix('.')}; {agreement(self.whole, self.rounds)}."


def bases_of(cell: Measured, cells: Sequence[Measured]) -> list[Measured]:
    """One process with the same batch per rank, and one with the batch of all ranks."""
    if cell.is_base:
        return []
    batches = dict.fromkeys((cell.batch, cell.ranks * cell.batch))
    return [each for batch in batches for each in cells if each.is_base and each.batch == batch]


def losses_of(cell: Measured, cells: Sequence[Measured]) -> list[Loss]:
    """The cell's losses against its bases among `cells`; none if something that it takes was not measured."""
    found = [(base, attribute(base.blocks, cell.blocks)) for base in bases_of(cell, cells)]
    return [Loss(cell, base, whole) for base, whole in found if whole is not None]


def loss_tables(label: str, losses: Sequence[Loss]) -> list[Table]:
    """A table of each loss, and of many one of all that remain."""
    found = [_table(loss) for loss in losses[:MOST_TABLES]]
    rows = tuple((loss.cell.name, percent(loss.whole.efficiency), loss.whole.sentence) for loss in losses[MOST_TABLES:])
    if rows:
        title = f"Where the efficiency went: {label}, other cells"
        found.append(Table(title=title, columns=("cell", "efficiency", "in one sentence"), rows=rows))
    return found


def _table(found: Loss) -> Table:
    cell, loss = found.cell, found.whole
    rows = [
        (
            part.name,
            milliseconds(round(part.seconds, 9)),  # what arithmetic leaves of nothing is nothing
            # What rounds leave together, one bad round above all, is more than what each leaves by itself.
            "" if part.name == UNEXPLAINED else _between(interval_s(found.rounds, part.name)),
            percent(part.seconds / loss.step_s),
            percent(part.seconds / loss.loss_s) if abs(loss.loss_s) > ENOUGH * loss.step_s else NA,
            MEANINGS[part.name],
        )
        for part in loss.parts
    ]
    whole = f"base {milliseconds(loss.base_step_s)} ms, now {milliseconds(loss.step_s)} ms: all time over all steps"
    rows.append(("sum", milliseconds(loss.loss_s), "", percent(loss.loss_s / loss.step_s), "100.0 %", whole))
    columns = ("part", "ms per step", "95 % interval", "of the step", "of the loss", "how it is measured")
    title = f"Where the efficiency went: {cell.label}, {cell.name}, {loss.kind} scaling"
    return Table(title=title, columns=columns, rows=tuple(rows), note=f"{found.sentence} {INTERVAL_NOTE}")


def _between(ends_s: tuple[float, float] | None) -> str:
    return NA if ends_s is None else " to ".join(milliseconds(round(end, 9)) for end in ends_s)
