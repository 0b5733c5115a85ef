"""Plot -> SVG text that stands in a page: deterministic, legible on light and dark, with a text alternative."""

import re
from collections.abc import Sequence
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

from bench.plots_step import HeatMap, paint, words
from bench.section import Plot, Series
from bench.text import clean, number, percent

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette for all kinds of colour vision, without black and yellow, which vanish on dark and light."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
INK = "#010203"
"""Drawn in this colour, which nothing else uses, and then replaced by the colour of the page's text."""
WIDTH_IN, HEIGHT_IN, LEGEND_ROW_IN = 5.0, 3.1, 0.2
"""A figure is as high as HEIGHT_IN and the rows of its legend."""
LONGEST_LABEL = 56
"""Characters of a label in the legend."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ringmark",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "legend.frameon": False,
}


def svg(plot: Plot, identity: str) -> str:
    """The plot as one <svg> element whose ids begin with `identity`. The figure is drawn without pyplot's state."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        columns = 1 if max((len(each.label) for each in plot.series), default=0) > 27 else 2
        rows = -(-len(plot.series) // columns)
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN + LEGEND_ROW_IN * rows), layout="constrained")
        axes = figure.add_subplot()
        if not paint(figure, axes, plot, COLOURS, INK):
            for place, series in enumerate(_with_marks(plot.series)):
                _draw(axes, series, place, _offset(plot, place))
            _dress(axes, plot)
        if not isinstance(plot, HeatMap):  # its colours have a bar of their own
            figure.legend(loc="outside lower left", ncols=columns, fontsize=9, handlelength=3.2)
        buffer = BytesIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
    return _embedded(ElementTree.fromstring(buffer.getvalue()), plot, identity)


def alternative(plot: Plot) -> str:
    """The plot in words: what is on the axes, and where each line begins and ends."""
    if (told := words(plot)) is not None:
        return told
    lines = [f"{clean(plot.title)}: {clean(plot.y_label)} against {clean(plot.x_label)}."]
    for series in plot.series:
        if series.points:
            ends = [series.points[0], series.points[-1]] if len(series.points) > 1 else [series.points[0]]
            told = " to ".join(f"{percent(y) if plot.y_percent else number(y)} at {number(x)}" for x, y in ends)
            lines.append(f"{clean(series.label)}: {told}.")
    return " ".join(lines)


def _with_marks(series: Sequence[Series]) -> list[Series]:
    """The ideal line last, so that the others get the first colours whether or not it is there."""
    return sorted(series, key=lambda each: each.kind == "ideal")


def _offset(plot: Plot, place: int) -> float:
    """Factor on x that keeps error bars of several lines at the same x apart."""
    barred = sum(bool(series.ranges) for series in plot.series)
    return 2.0 ** (0.05 * (place - (barred - 1) / 2)) if plot.log2_x and barred > 1 else 1.0


def _draw(axes: Any, series: Series, place: int, offset: float) -> None:
    label = f" {clean(series.label)}"  # after a space, since matplotlib leaves labels out that begin with an underscore
    label = label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 3]}..."
    x, y = [point[0] for point in series.points], [point[1] for point in series.points]
    colour, dash = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
    look = {"color": colour, "linestyle": dash, "linewidth": 1.7}
    if series.kind == "ideal":
        axes.plot(x, y, label=label, color=INK, alpha=0.55, linestyle=(0, (2, 2)), linewidth=1.2)
    elif series.kind == "stairs":
        axes.plot([*x[:1], *x], [*[0.0][: len(y)], *y], label=label, drawstyle="steps-post", **look)
    else:
        marks = {"marker": MARKERS[place % len(MARKERS)], "markersize": 4.5 if len(x) <= 40 else 0.0}
        axes.plot([value * offset for value in x], y, label=label, **look, **marks)
        _error_bars(axes, series, offset, colour)


def _error_bars(axes: Any, series: Series, offset: float, colour: str) -> None:
    known = [(x, y, ends) for (x, y), ends in zip(series.points, series.ranges, strict=False) if ends is not None]
    if known:
        below, above = (
            [max(0.0, y - low) for _, y, (low, _) in known],
            [max(0.0, high - y) for _, y, (_, high) in known],
        )
        x, y = [x * offset for x, _, _ in known], [y for _, y, _ in known]
        axes.errorbar(x, y, yerr=(below, above), fmt="none", ecolor=colour, elinewidth=1.3, capsize=5)


def _dress(axes: Any, plot: Plot) -> None:
    """Scales, ticks, limits and labels."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xlabel(clean(plot.x_label))
    axes.set_ylabel(clean(plot.y_label))
    axes.grid(axis="y")
    plain = FuncFormatter(lambda value, _: f"{value:,.6g}")
    if plot.log2_x:
        axes.set_xscale("log", base=2)
    if plot.log2_y:
        axes.set_yscale("log", base=2)
    if plot.x_ticks:
        axes.set_xticks(plot.x_ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g} %") if plot.y_percent else plain)
    highest = max((y for series in plot.series for _, y in series.points), default=0.0)
    if plot.y_zero and not plot.log2_y and highest > 0:
        # Set from the points, not the error bars: an interval of two rounds may reach a hundred times higher.
        axes.set_ylim(0.0, 1.12 * highest)


def _embedded(root: ElementTree.Element, plot: Plot, identity: str) -> str:
    """Make matplotlib's document an element of a page: own ids, no page-wide style, the page's text colour."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            element.set(name.rpartition("}")[2], _attribute(name, value, identity))
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in ("style", "metadata")]:
            parent.remove(child)
    view = root.get("viewBox", "")
    words = alternative(plot)
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": view,
        "width": "100%",
        "role": "img",
        "aria-label": words,
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    title = ElementTree.Element("title")
    title.text = words
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(name: str, value: str, identity: str) -> str:
    if name == "id":
        return f"{identity}-{value}"
    if name.endswith("href") and value.startswith("#"):
        return f"#{identity}-{value[1:]}"
    if name == "style":
        value = re.sub(r"font-family: [^;]*", "font-family: inherit", value)
    return value.replace("url(#", f"url(#{identity}-").replace(INK, "currentColor")
