"""What a report is made of: facts, tables, plots; plain frozen data, so that every rendering says the same."""

import re
from dataclasses import dataclass
from typing import Literal

NUMERIC = re.compile(r"[+-]?\d")
"""How a number begins; --amp is none."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One line of the verdict."""

    label: str
    value: str
    """The number or word to remember."""
    details: tuple[str, ...] = ()
    """What it depends on."""
    warning: bool = False
    """True for a line that asks for doubt."""

    def __str__(self) -> str:
        return f"{self.label}: {self.value}" + (f" ({'; '.join(self.details)})" if self.details else "")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of already formatted text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    lead: tuple[Fact, ...] = ()
    """What its records say in short, for which the verdict has no room; shown above the rows."""

    def is_numeric(self, column: int) -> bool:
        """True if every cell of the column starts like a number or is not a value at all: align it to the right."""
        cells = [row[column] for row in self.rows if row[column] not in ("n/a", "-", "base", "")]
        return bool(cells) and all(NUMERIC.match(cell) for cell in cells)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a plot."""

    label: str
    points: tuple[tuple[float, float], ...]
    """x and y."""
    ranges: tuple[tuple[float, float] | None, ...] = ()
    """Low and high end of an interval around each point's y, drawn as error bars; empty for none at all."""
    kind: Literal["line", "stairs", "ideal", "mark"] = "line"
    """stairs: a distribution; ideal: what could be at best; mark: an upright line at the first point's x."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture to be drawn; axes in the units that the labels name."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    note: str = ""
    x_ticks: tuple[float, ...] = ()
    """Where the x axis is labelled; empty to let the plot choose."""
    log2_x: bool = False
    """Ticks one doubling apart are equally far apart."""
    log2_y: bool = False
    """The same for y, so that what is proportional stays a straight line."""
    x_kib: bool = False
    """x is a size in KiB; ticks and words show it as B, KiB, MiB or GiB."""
    y_zero: bool = False
    """Start the y axis at zero."""
    y_percent: bool = False
    """y is a share of one."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What bench/summaries/<case>.py makes of one case's records."""

    facts: tuple[Fact, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    caveats: tuple[str, ...] = ()
    """Reasons to trust the numbers less, one sentence each."""
