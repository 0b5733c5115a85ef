"""Axes of a plot: scales, and ticks that can be read."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from bench.section import Plot
from bench.text import clean, number, percent

MOST_TICKS = 7
"""Labels on a logarithmic y axis."""
CHARACTER = 0.024
"""Width of a character of a label, as a share of the x axis."""


def tick_text(value: float) -> str:
    """A tick's number: 0.00001, 1.025, 131,072; no exponent where it can be read without one."""
    if value == 0 or 1000 <= abs(value) < 1e12:
        return f"{value:,.0f}"
    return f"{value:.10f}".rstrip("0") if 1e-9 < abs(value) < 1e-4 else f"{value:.6g}"


def x_text(plot: Plot, value: float) -> str:
    """A place on the x axis: 4 MiB on an axis of sizes, else a number."""
    if not plot.x_kib:
        return tick_text(value)
    size, units = 1024 * value, ("B", "KiB", "MiB", "GiB")
    place = max(0, min(len(units) - 1, math.floor(math.log2(size) / 10))) if size > 0 else 0
    return f"{tick_text(size / 1024**place)} {units[place]}"


def y_text(plot: Plot, value: float) -> str:
    """A value of y in words."""
    return percent(value) if plot.y_percent else number(value)


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from at most `low` to at least `high`; for long spans powers of ten alone."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    fine = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    below, above = max(tick for tick in fine if tick <= low), min(tick for tick in fine if tick >= high)
    inside = [tick for tick in fine if below <= tick <= above]
    if len(inside) <= MOST_TICKS:
        return inside
    stride = math.ceil((last - first + 1) / MOST_TICKS)
    return [10.0**power for power in range(first, last + stride, stride)]


def spread_out(ticks: Sequence[float], texts: Sequence[str], *, log: bool) -> list[float]:
    """The ticks whose labels do not touch; the last one always stays, and even steps stay even."""
    places = [math.log2(tick) if log and tick > 0 else tick for tick in ticks]
    span = (max(places) - min(places)) or 1.0
    room = [CHARACTER * (len(text) + 1) * span for text in texts]

    def fits(place: int, after: int) -> bool:
        return places[after] - places[place] >= (room[place] + room[after]) / 2

    kept: list[int] = []
    for place in reversed(range(len(ticks))):
        if not kept or fits(place, kept[-1]):
            kept.append(place)
    if len(kept) < len(ticks) and len({round((b - a) / span, 3) for a, b in pairwise(places)}) == 1:
        strides = (list(reversed(range(len(ticks))))[::stride] for stride in range(2, len(ticks) + 1))
        kept = next((each for each in strides if all(fits(b, a) for a, b in pairwise(each))), kept)
    return [ticks[place] for place in reversed(kept)]


def dress(axes: Any, plot: Plot) -> None:
    """Scales, ticks, limits and labels."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.set_xlabel(clean(plot.x_label))
    axes.set_ylabel(clean(plot.y_label))
    axes.grid(axis="y")
    values = [y for series in plot.series if series.kind != "mark" for _, y in series.points]
    if plot.log2_x:
        axes.set_xscale("log", base=2)
    if plot.x_ticks:
        ticks = sorted(set(plot.x_ticks))
        axes.set_xticks(spread_out(ticks, [x_text(plot, tick) for tick in ticks], log=plot.log2_x))
        axes.xaxis.set_minor_locator(NullLocator())
    elif not plot.log2_x and all(x == round(x) for series in plot.series for x, _ in series.points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: x_text(plot, value)))
    positive = [y for y in values if y > 0]
    if plot.log2_y and positive:
        axes.set_yscale("log", base=2)
        ticks = log_ticks(min(positive), max(positive))
        axes.set_yticks(ticks)
        axes.set_ylim(ticks[0], ticks[-1])
        axes.yaxis.set_minor_locator(NullLocator())
    share = FuncFormatter(lambda value, _: f"{100 * value:.6g} %")
    plain = FuncFormatter(lambda value, _: tick_text(value))
    axes.yaxis.set_major_formatter(share if plot.y_percent else plain)
    highest = max(values, default=0.0)
    if plot.y_zero and not plot.log2_y and highest > 0:
        # Set from the points, not the error bars: an interval of two rounds may reach a hundred times higher.
        axes.set_ylim(0.0, 1.12 * highest)
