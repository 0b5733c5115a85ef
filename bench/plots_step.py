"""Pictures of training steps: their parts stacked, ranks against steps as a heat map, step times, memory.

`paint` draws what plain lines cannot show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.phases import TRAIN, WORDS, Breakdown, StepBlock, of_arm
from bench.section import Plot, Series
from bench.stats import distribution
from bench.text import clean, number

MOST_STEPS = 120
"""Steps in a heat map, the last ones."""
MOST_RANKS = 64
"""Ranks in a heat map."""
MOST_FIELDS = 2560
"""Fields of a heat map: more of them make a page of megabytes."""
MOST_NAMES = 12
"""Names of rows beside a heat map, and of bars below a stack."""
SHADES = 32
"""Colours of a heat map."""
HATCHES = ("", "///", "...", "\\\\\\", "xx", "++")
"""So that parts can be told apart without colours."""


@dataclass(frozen=True, kw_only=True)
class Stacked(Plot):
    """Bars of parts that lie on each other: one series per part, a point per bar. x is the bar's name as a number."""


@dataclass(frozen=True, kw_only=True)
class HeatMap(Plot):
    """Colours for numbers: one series per row, a point per column."""

    colour_label: str = ""
    """What the colours mean, with its unit."""


def paint(figure: Any, axes: Any, plot: Plot, colours: Sequence[str], ink: str) -> bool:
    """Draw a stack or a heat map -> True; False for any other plot. `ink` is the colour of text."""
    if isinstance(plot, Stacked):
        _paint_stack(axes, plot, colours, ink)
    elif isinstance(plot, HeatMap):
        _paint_heat(figure, axes, plot)
    else:
        return False
    return True


def _paint_stack(axes: Any, plot: Stacked, colours: Sequence[str], ink: str) -> None:
    bars = [x for x, _ in plot.series[0].points] if plot.series else []
    above, below = [0.0] * len(bars), [0.0] * len(bars)
    for place, series in enumerate(plot.series):
        heights = [y for _, y in series.points]
        bottoms = [high if y >= 0 else low for y, high, low in zip(heights, above, below, strict=True)]
        look = {"color": colours[place % len(colours)], "hatch": HATCHES[place % len(HATCHES)], "edgecolor": ink}
        axes.bar(range(len(bars)), heights, 0.6, bottoms, label=f" {clean(series.label)}", linewidth=0.4, **look)
        above = [high + max(y, 0.0) for y, high in zip(heights, above, strict=True)]
        below = [low + min(y, 0.0) for y, low in zip(heights, below, strict=True)]
    shown = range(0, len(bars), -(-len(bars) // MOST_NAMES) or 1)
    axes.set_xticks(shown, [f"{bars[place]:g}" for place in shown])
    axes.set_xlim(-0.5 - max(0, 3 - len(bars)) / 2, len(bars) - 0.5 + max(0, 3 - len(bars)) / 2)
    axes.set_xlabel(clean(plot.x_label))
    axes.set_ylabel(clean(plot.y_label))
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _paint_heat(figure: Any, axes: Any, plot: HeatMap) -> None:
    rows = [[y for _, y in series.points] for series in plot.series]
    first = plot.series[0].points[0][0] if plot.series and plot.series[0].points else 0.0
    from matplotlib import colormaps

    image = None
    if rows and rows[0]:
        edges = [first - 0.5 + step for step in range(len(rows[0]) + 1)]
        colours = colormaps["cividis"].resampled(SHADES)
        image = axes.pcolormesh(edges, range(len(rows) + 1), rows, cmap=colours, edgecolors="face", linewidth=0.8)
    named = range(0, len(rows), -(-len(rows) // MOST_NAMES) or 1)
    axes.set_yticks([place + 0.5 for place in named], [clean(plot.series[place].label) for place in named])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.invert_yaxis()
    axes.set_xlabel(clean(plot.x_label))
    axes.set_ylabel(clean(plot.y_label))
    if image is not None:
        bar = figure.colorbar(image, ax=axes, label=clean(plot.colour_label))
        bar.solids.set_rasterized(False)  # a picture in the page would need a place in its policy


def words(plot: Plot) -> str | None:
    """A stack or a heat map for those who cannot see it; None for any other plot."""
    if isinstance(plot, Stacked):
        lines = [f"{clean(plot.title)}: parts of {clean(plot.y_label)} for {clean(plot.x_label)}."]
        for place, (x, _) in enumerate(plot.series[0].points if plot.series else ()):
            parts = (f"{clean(series.label)} {number(series.points[place][1])}" for series in plot.series)
            lines.append(f"{x:g}: {', '.join(parts)}.")
        return " ".join(lines)
    if isinstance(plot, HeatMap):
        lines = [f"{clean(plot.title)}: {clean(plot.colour_label)} of each rank and step."]
        for series in plot.series:
            values = [y for _, y in series.points]
            if values:
                lines.append(f"{clean(series.label)}: {number(min(values))} to {number(max(values))}.")
        return " ".join(lines)
    return None


def stack(label: str, found: Sequence[tuple[int, Breakdown]]) -> Stacked:
    """Parts of the step that each number of ranks needs, in ms. `found`: ranks, breakdown of the slowest rank."""
    series = []
    for name in found[0][1].parts_s:
        points = tuple((float(ranks), 1e3 * each.parts_s[name]) for ranks, each in found)
        series.append(Series(label=WORDS[name], points=points))
        if name == "backward":
            exposed = tuple((float(ranks), 1e3 * (each.exposed_s or 0.0)) for ranks, each in found)
            series.append(Series(label="exposed communication", points=exposed))
    return Stacked(
        title=f"Parts of a step of {label}",
        x_label="ranks",
        y_label="ms of a step",
        series=tuple(each for each in series if any(y for _, y in each.points)),
        note="Of the rank that each step had to wait for; medians. One rank is the process without DDP.",
        y_zero=True,
    )


def heat(label: str, blocks: Sequence[StepBlock]) -> HeatMap:
    """What each rank did by itself in the last steps, in ms: a late rank is a bright row, a busy machine a column."""
    block = of_arm(blocks, TRAIN)[-1]
    steps = len(block.step_s[0])
    most = min(MOST_STEPS, MOST_FIELDS // min(block.ranks, MOST_RANKS))
    shown = range(max(0, steps - most), steps)
    series = []
    for rank in range(min(block.ranks, MOST_RANKS)):
        own = [step - wait for step, wait in zip(block.step_s[rank], block.of("wait", rank), strict=True)]
        series.append(Series(label=f"rank {rank}", points=tuple((float(step), 1e3 * own[step]) for step in shown)))
    return HeatMap(
        title=f"Ranks and steps of {label}",
        x_label=f"step of the last block, of {steps} steps",
        y_label="",
        colour_label="ms without waiting for others",
        series=tuple(series),
    )


def step_times(label: str, cells: Sequence[tuple[str, Sequence[StepBlock]]]) -> Plot:
    """How step times are distributed. `cells`: name, blocks."""
    series = []
    for name, blocks in cells:
        steps_ms = [1e3 * step_s for block in of_arm(blocks, TRAIN) for step_s in block.slowest_s]
        series.append(Series(label=name, points=distribution(steps_ms), kind="stairs"))
    return Plot(
        title=f"Step times of {label}, phases marked",
        x_label="step time of the slowest rank, ms",
        y_label="share of steps",
        series=tuple(series),
        y_zero=True,
        y_percent=True,
    )


def memory(label: str, peaks: Sequence[tuple[int, int, float]]) -> Plot | None:
    """Peak memory against batch. `peaks`: ranks, batch per rank, bytes; None for fewer than two batches."""
    batches = sorted({batch for _, batch, _ in peaks})
    if len(batches) < 2:
        return None
    series = []
    for ranks in sorted({ranks for ranks, _, _ in peaks}):
        points = sorted((float(batch), size / 2**20) for each, batch, size in peaks if each == ranks)
        series.append(Series(label="one process" if ranks == 1 else f"{ranks} ranks", points=tuple(points)))
    return Plot(
        title=f"Memory of {label}",
        x_label="batch per rank",
        y_label="peak memory of a rank, MiB",
        series=tuple(series),
        x_ticks=tuple(float(batch) for batch in batches),
        log2_x=True,
        y_zero=True,
    )
