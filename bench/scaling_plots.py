"""Pictures of a scaling study: throughput and efficiency against ranks, step times as a distribution."""

from bench.scaling import Measured, Study
from bench.section import Plot, Series
from bench.stats import distribution, slowest_steps_s
from bench.text import plural

MOST_CURVES = 8
"""Curves in one plot of step times."""


def plots(study: Study) -> list[Plot]:
    """What there is to draw of one study."""
    cells = study.measured
    curves = sorted(
        {(kind, cell.strategy) for cell in cells for kind in study.kinds(cell)}, key=lambda c: (c[0] != "weak", c)
    )
    ranks = tuple(float(value) for value in sorted({cell.ranks for cell in cells}))
    found = []
    if curves and ranks[-1] > 1:
        found.append(_throughput_plot(study, curves, ranks))
        if study.base is not None and study.base.blocks:
            found.append(_efficiency_plot(study, curves, ranks))
    return [*found, _steps_plot(study)] if cells else []


def _curve(study: Study, kind: str, strategy: str) -> list[Measured]:
    fitting = [cell for cell in study.measured if cell.strategy == strategy and kind in study.kinds(cell)]
    return sorted(fitting, key=lambda cell: cell.ranks)


def _throughput_plot(study: Study, curves: list[tuple[str, str]], ranks: tuple[float, ...]) -> Plot:
    series = []
    base_per_s = study.base.rate_per_s if study.base is not None else None
    if base_per_s is not None:
        ideal = tuple((n, n * base_per_s) for n in ranks)
        series.append(Series(label="ideal: base times ranks", points=ideal, kind="ideal"))
    for kind, strategy in curves:
        points = tuple((float(cell.ranks), cell.rate_per_s or 0.0) for cell in _curve(study, kind, strategy))
        series.append(Series(label=f"{strategy}, {kind}", points=points))
    return Plot(
        title=f"Throughput of {study.label}",
        x_label="ranks",
        y_label="samples/s",
        series=tuple(series),
        x_ticks=ranks,
        log2_x=ranks[-1] > 16,
        log2_y=ranks[-1] > 16,
        y_zero=True,
    )


def _efficiency_plot(study: Study, curves: list[tuple[str, str]], ranks: tuple[float, ...]) -> Plot:
    series = [Series(label="ideal", points=tuple((n, 1.0) for n in ranks), kind="ideal")]
    for kind, strategy in curves:
        cells = _curve(study, kind, strategy)
        points = tuple((float(cell.ranks), study.efficiency(cell, study.base) or 0.0) for cell in cells)
        intervals = [study.interval(cell) for cell in cells]
        ranges = tuple(None if each is None else (each.low, each.high) for each in intervals)
        series.append(Series(label=f"{strategy}, {kind}", points=points, ranges=ranges))
    return Plot(
        title=f"Efficiency of {study.label}",
        x_label="ranks",
        y_label="efficiency vs single process",
        series=tuple(series),
        note="Error bars: 95 % intervals.",
        x_ticks=ranks,
        log2_x=True,
        y_zero=True,
        y_percent=True,
    )


def _steps_plot(study: Study) -> Plot:
    curves = []
    for cell in study.measured:
        steps_ms = [1e3 * step_s for step_s in slowest_steps_s(cell.blocks)]
        curves.append(Series(label=cell.name, points=distribution(steps_ms), kind="stairs"))
    left = len(curves) - MOST_CURVES
    return Plot(
        title=f"Step times of {study.label}",
        x_label="step time of the slowest rank, ms",
        y_label="share of steps",
        series=tuple(curves[:MOST_CURVES]),
        note=f"{plural(left, 'more cell')} in the table." if left > 0 else "",
        y_zero=True,
        y_percent=True,
    )
