"""Trends: one value per record and cell over time, and where the environment changed in between."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bench.record import Record
from bench.section import Fact, Plot, Section, Series, Table
from bench.stats import Block, throughput_per_s
from bench.text import NA, number, percent, plural, value_text

WATCHED = ("torch", "cuda", "nccl", "driver", "device", "gpus", "cpu", "cores", "host", "commit")
"""What of an environment is watched for changes."""
BARS = "▁▂▃▄▅▆▇█"
MOST_POINTS = 40
"""Characters of a sparkline; the newest."""
MOST_PLOTS = 6
"""Lines in the plot: the cells with the most runs."""
COLUMNS = ("cell", "runs", "trend", "first", "last", "change", "last step", "changes of environment")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One record of a cell."""

    time: str
    """UTC, ISO 8601."""
    rate_per_s: float
    changes: tuple[str, ...]
    """What differs in the environment from the point before."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A cell over time."""

    label: str
    points: tuple[Point, ...]

    @property
    def change(self) -> float | None:
        """The last rate over the first, less one; None for a single point."""
        return None if len(self.points) < 2 else self.points[-1].rate_per_s / self.points[0].rate_per_s - 1

    @property
    def last_step(self) -> float | None:
        """The last rate over the one before it, less one."""
        return None if len(self.points) < 2 else self.points[-1].rate_per_s / self.points[-2].rate_per_s - 1


def rate_per_s(record: Record) -> float | None:
    """Samples per second of a record: of its blocks, or of a training run's epochs; None if it has neither."""
    try:
        if record.case == "fit":
            epochs = record.raw["epochs"]
            return float(sum(each["train_samples"] for each in epochs) / sum(each["train_s"] for each in epochs))
        blocks = [
            Block(round=0, samples=block["samples"], wall_s=tuple(block["wall_s"]), step_s=())
            for block in record.raw["blocks"]
            if "arm" not in block  # arms of a comparison are no single speed
        ]
        return throughput_per_s(blocks)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None


def trends(records: Sequence[Record]) -> list[Trend]:
    """The cells with a speed, each in the order of time; cells in the order of their first records."""
    cells: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda each: str(each.time)):
        if record.status == "ok" and rate_per_s(record) is not None:
            cells.setdefault(_label(record), []).append(record)
    return [Trend(label=label, points=_points(held)) for label, held in cells.items()]


def _label(record: Record) -> str:
    parts = [
        key.replace("_", " ") if value is True else f"{key.replace('_', ' ')} {value_text(value)}"
        for key, value in record.cell.items()
        if value not in (None, False, "off") and not isinstance(value, dict | list)
    ]
    return f"{record.case}: {', '.join(parts)}"


def _points(records: Sequence[Record]) -> tuple[Point, ...]:
    found: list[Point] = []
    before: dict[str, Any] | None = None
    for record in records:
        now = record.environment
        rate = rate_per_s(record)
        assert rate is not None
        changes = () if before is None else changed(before, now)
        found.append(Point(time=str(record.time), rate_per_s=rate, changes=changes))
        before = now
    return tuple(found)


def changed(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """What differs between two environments, in words."""
    return tuple(
        f"{name} {value_text(before.get(name))} -> {value_text(now.get(name))}"
        for name in WATCHED
        if before.get(name) != now.get(name)
    )


def sparkline(values: Sequence[float]) -> str:
    """The newest values as a row of bars between the least and the largest of them."""
    shown = list(values)[-MOST_POINTS:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    if high <= low:
        return BARS[3] * len(shown)
    return "".join(BARS[min(len(BARS) - 1, int((value - low) / (high - low) * len(BARS)))] for value in shown)


def summarise(records: Sequence[Record]) -> Section:
    """The trends as a fact, tables and a plot."""
    found = trends(records)
    runs = sum(len(trend.points) for trend in found)
    left = len(records) - runs
    details = (plural(runs, "record"), *([f"{plural(left, 'record')} without a speed"] if left else []))
    facts = (Fact(label="History", value=plural(len(found), "cell"), details=details),)
    note = "Samples per second, of each record as a whole. A stroke stands before a run in another environment."
    rows = tuple(_row(trend) for trend in found)
    tables = [Table(title="Trends", columns=COLUMNS, rows=rows, note=note)]
    events = tuple(
        (point.time, trend.label, change) for trend in found for point in trend.points for change in point.changes
    )
    if events:
        tables.append(Table(title="Changes of environment", columns=("time", "cell", "change"), rows=events))
    return Section(facts=facts, tables=tuple(tables), plots=_plots(found))


def _row(trend: Trend) -> tuple[str, ...]:
    marks = [place for place, point in enumerate(trend.points) if point.changes]
    rates = [point.rate_per_s for point in trend.points]
    kinds = dict.fromkeys(change.split(" ")[0] for point in trend.points for change in point.changes)
    return (
        trend.label,
        str(len(rates)),
        _marked(sparkline(rates), [place - max(0, len(rates) - MOST_POINTS) for place in marks]),
        number(rates[0]),
        number(rates[-1]),
        _signed(trend.change),
        _signed(trend.last_step),
        f"{len(marks)} ({', '.join(kinds)})" if marks else "0",
    )


def _marked(bars: str, places: Sequence[int]) -> str:
    """The bars, with a stroke before each whose environment changed."""
    return "".join(f"|{bar}" if place in places else bar for place, bar in enumerate(bars))


def _signed(share: float | None) -> str:
    return NA if share is None else ("+" if share >= 0 else "") + percent(share)


def _plots(found: Sequence[Trend]) -> tuple[Plot, ...]:
    longest = sorted((trend for trend in found if len(trend.points) > 1), key=lambda each: -len(each.points))
    if not longest:
        return ()
    series = [
        Series(
            label=trend.label,
            points=tuple(
                (_days(trend.points[0].time, point.time, place), point.rate_per_s / trend.points[0].rate_per_s)
                for place, point in enumerate(trend.points)
            ),
        )
        for trend in longest[:MOST_PLOTS]
    ]
    note = "Each cell against its own first run; of the cells with the most runs."
    plot = Plot(
        title="Throughput over time", x_label="days since the first run", y_label="throughput, of the first run's",
        series=tuple(series), y_zero=True, y_percent=True, note=note,
    )  # fmt: skip
    return (plot,)


def _days(first: str, time: str, place: int) -> float:
    """Days between two stamps; the number of the run where they cannot be read."""
    try:
        return (datetime.fromisoformat(time) - datetime.fromisoformat(first)).total_seconds() / 86400
    except (ValueError, TypeError):
        return float(place)
