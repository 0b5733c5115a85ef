"""Trends: one value per record and cell over time, and where the environment changed in between."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bench.cell import key_of
from bench.record import UNUSABLE, Record
from bench.section import Fact, Plot, Section, Series, Table
from bench.stats import throughput_per_s
from bench.text import NA, number, percent, plural, value_text
from bench.timed_blocks import timed_blocks

WATCHED = ("torch", "cuda", "nccl", "driver", "device", "gpus", "cpu", "cores", "host", "commit")
"""What of an environment is watched for changes."""
UNTIMED = frozenset(
    (
        *("out", "resume", "log_every", "keep", "seed", "timeout_s", "stop_after", "patience", "min_delta"),
        *("input.download", "initial.weights", "initial.download_weights"),
    )
)
"""Settings that the speed does not depend on: where a run is written, where it starts and ends, what it draws."""
BARS = "▁▂▃▄▅▆▇█"
STROKE = "\u2502"
"""Before a run in another environment; a line of boxes, at which browsers do not break the row of bars."""
MOST_POINTS = 40
"""Characters of a sparkline; the newest."""
MOST_PLOTS = 6
"""Lines in the plot: the cells with the most runs."""
MOST_MARKS = 6
"""Changes of the environment in the plot; all are in the table."""
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
            rate = float(sum(each["train_samples"] for each in epochs) / sum(each["train_s"] for each in epochs))
        else:
            rate = throughput_per_s(timed_blocks(record))
    except UNUSABLE:
        return None
    return rate if math.isfinite(rate) and rate > 0 else None


def trends(records: Sequence[Record]) -> list[Trend]:
    """The cells with a speed, each in the order of time; cells in the order of their first records.

    Records of one case belong together if they agree in all settings that the speed may depend on.
    """
    cells: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda each: str(each.time)):
        if record.status == "ok" and rate_per_s(record) is not None:
            key = key_of({"case": record.case, "settings": settings(record.cell)})
            cells.setdefault(key, []).append(record)
    names = labels({key: held[0] for key, held in cells.items()})
    return [Trend(label=names[key], points=_points(held)) for key, held in cells.items()]


def settings(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What of a cell the speed may depend on, nested objects as names with dots; null is the same as missing."""
    return {name: value for name, value in _flat("", cell).items() if value is not None and name not in UNTIMED}


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    start = f"{prefix}." if prefix else ""
    return {name: item for key in value for name, item in _flat(f"{start}{key}", value[key]).items()}


def labels(cells: Mapping[str, Record]) -> dict[str, str]:
    """Names of the cells, by key: case and plain settings, and of those called alike whatever tells them apart."""
    found = {key: (record.case, settings(record.cell)) for key, record in cells.items()}
    plain = {key: f"{case}: {', '.join(_words(held, _plain(held)))}" for key, (case, held) in found.items()}
    alike: dict[str, list[str]] = {}
    for key, label in plain.items():
        alike.setdefault(label, []).append(key)
    for label, keys in alike.items():
        if len(keys) == 1:
            continue
        sides = [found[key][1] for key in keys]
        names = sorted({name for held in sides for name in held})
        telling = [name for name in names if len({value_text(held.get(name)) for held in sides}) > 1]
        for key, held in zip(keys, sides, strict=True):
            plain[key] = ", ".join([label, *_words(held, telling)])
    times = Counter(plain.values())
    return {key: f"{label} ({key})" if times[label] > 1 else label for key, label in plain.items()}


def _plain(held: Mapping[str, Any]) -> list[str]:
    """Settings that are shown in any case: those of the cell itself, unless they go without saying."""
    return [
        name for name, value in held.items()
        if "." not in name and value is not False and value != "off" and not isinstance(value, dict | list)
    ]  # fmt: skip


def _words(held: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    shown = [(name.replace("_", " ").replace(".", " "), held.get(name)) for name in names]
    return [name if value is True else f"{name} {value_text(value)}" for name, value in shown]


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
    return "".join(f"{STROKE}{bar}" if place in places else bar for place, bar in enumerate(bars))


def _signed(share: float | None) -> str:
    return NA if share is None else ("+" if share >= 0 else "") + percent(share)


def _plots(found: Sequence[Trend]) -> tuple[Plot, ...]:
    longest = sorted((trend for trend in found if len(trend.points) > 1), key=lambda each: -len(each.points))
    if not longest:
        return ()
    drawn = longest[:MOST_PLOTS]
    first = min(point.time for trend in drawn for point in trend.points)
    series = [
        Series(
            label=label,
            points=tuple(
                (_days(first, point.time, place), point.rate_per_s / trend.points[0].rate_per_s)
                for place, point in enumerate(trend.points)
            ),
        )
        for trend, label in zip(drawn, _short([trend.label for trend in drawn]), strict=True)
    ]
    note = "Each cell against its own first run; of the cells with the most runs."
    marks = _marks(drawn, first)
    if len(marks) > MOST_MARKS:
        note += f" {plural(len(marks) - MOST_MARKS, 'more change')} of the environment in the table."
    plot = Plot(
        title="Throughput over time", x_label="days since the first run", y_label="throughput, of the first run's",
        series=(*series, *marks[:MOST_MARKS]), y_zero=True, y_percent=True, note=note,
    )  # fmt: skip
    return (plot,)


def _short(labels: Sequence[str]) -> list[str]:
    """The labels without what all of them have in common, which a legend has no room for."""
    parts = [label.split(", ") for label in labels]
    common = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    return [
        ", ".join(part for part in each if part not in common) or label
        for each, label in zip(parts, labels, strict=True)
    ]


def _marks(drawn: Sequence[Trend], first: str) -> list[Series]:
    """An upright line for each change, where it was seen first; commits, which may be many, behind the others."""
    days: dict[str, float] = {}
    for trend in drawn:
        for place, point in enumerate(trend.points):
            day = _days(first, point.time, place)
            days.update({change: min(day, days.get(change, day)) for change in point.changes})
    ordered = sorted(days, key=lambda change: (change.startswith("commit "), days[change]))
    return [Series(label=change, points=((days[change], 1.0),), kind="mark") for change in ordered]


def _days(first: str, time: str, place: int) -> float:
    """Days between two stamps; the number of the run where they cannot be read."""
    try:
        return (datetime.fromisoformat(time) - datetime.fromisoformat(first)).total_seconds() / 86400
    except (ValueError, TypeError):
        return float(place)
