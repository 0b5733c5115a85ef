"""Plot -> SVG text that stands in a page: deterministic, legible on light and dark, with a text alternative."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

from bench.plots_axes import dress, x_text, y_text
from bench.plots_step import HeatMap, paint, words
from bench.section import Plot, Series
from bench.text import clean, plural

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette for all kinds of colour vision, without black and yellow, which vanish on dark and light."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
INK = "#010203"
"""Drawn in this colour, which nothing else uses, and then replaced by the colour of the page's text."""
WIDTH_IN, HEIGHT_IN, LEGEND_ROW_IN = 5.0, 3.2, 0.22
"""A figure is as high as HEIGHT_IN and the rows of its legend."""
PALE = ("ideal", "mark")
"""Kinds of lines that are drawn thinly, in the colour of text."""
LETTERS = "abcdefghij"
"""What marks are called in the picture; the legend says what each stands for."""
MOST_SERIES = 12
"""Lines of one plot; the others are in the table."""
MOST_MARKERS = 40
"""Points of a line that have a marker and an error bar of their own."""
LONGEST_LABEL = 56
"""Characters of a label in the legend."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ringmark",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
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


def limited(plot: Plot) -> Plot:
    """The plot with at most MOST_SERIES lines, and a note that says how many are left out."""
    left = len(plot.series) - MOST_SERIES
    if left <= 0 or isinstance(plot, HeatMap):
        return plot
    kept = _with_marks(plot.series)[:MOST_SERIES]
    note = f"{plot.note} {plural(left, 'more line')} in the table.".strip()
    return replace(plot, series=tuple(kept), note=note)


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
            _draw_marks(axes, [series for series in plot.series if series.kind == "mark" and series.points])
            dress(axes, plot)
        # A heat map's colours have a bar of their own, and one line that the y axis names needs no legend.
        if not isinstance(plot, HeatMap) and [each.label for each in plot.series] != [plot.y_label]:
            figure.legend(loc="outside lower left", ncols=columns, fontsize=9.5, handlelength=3.2)
        buffer = BytesIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # text stays text, and the browser has more fonts
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
            told = " to ".join(f"{y_text(plot, y)} at {x_text(plot, x)}" for x, y in ends)
            told = x_text(plot, series.points[0][0]) if series.kind == "mark" else told
            lines.append(f"{clean(series.label)}: {told}{_interval_words(plot, series)}.")
    return " ".join(lines)


def _interval_words(plot: Plot, series: Series) -> str:
    """The interval of the last point, if it has one."""
    ends = series.ranges[-1] if series.ranges and len(series.ranges) == len(series.points) else None
    return f" ({y_text(plot, ends[0])} to {y_text(plot, ends[1])})" if ends else ""


def _with_marks(series: Sequence[Series]) -> list[Series]:
    """Measured lines first, so that they get the first colours whether or not there are ideal lines and marks."""
    return sorted(series, key=lambda each: ("ideal", "mark").index(each.kind) + 1 if each.kind in PALE else 0)


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
    if series.kind == "mark":
        return
    if series.kind == "ideal":
        axes.plot(x, y, label=label, color=INK, alpha=0.55, linestyle=(0, (2, 2)), linewidth=1.2)
    elif series.kind == "stairs":
        axes.plot([*x[:1], *x], [*[0.0][: len(y)], *y], label=label, drawstyle="steps-post", **look)
    else:
        few = len(x) <= MOST_MARKERS
        marks = {"marker": MARKERS[place % len(MARKERS)], "markersize": 4.5 if few else 0.0}
        axes.plot([value * offset for value in x], y, label=label, **look, **marks)
        if few:
            _error_bars(axes, series, offset, colour)


def _draw_marks(axes: Any, marks: Sequence[Series]) -> None:
    """Upright lines, each with a letter on top, at two heights in turn so that neighbours stay apart."""
    for place, (letter, series) in enumerate(zip(LETTERS, marks, strict=False)):
        x = series.points[0][0]
        label = f" {letter}: {clean(series.label)}"
        axes.axvline(x, color=INK, alpha=0.55, linestyle=(0, (1, 2)), linewidth=1.2, label=label[:LONGEST_LABEL])
        above = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom", "fontsize": 9}
        axes.annotate(letter, (x, 1.005 + 0.05 * (place % 2)), annotation_clip=False, **above)


def _error_bars(axes: Any, series: Series, offset: float, colour: str) -> None:
    known = [(x, y, ends) for (x, y), ends in zip(series.points, series.ranges, strict=False) if ends is not None]
    if known:
        below, above = (
            [max(0.0, y - low) for _, y, (low, _) in known],
            [max(0.0, high - y) for _, y, (_, high) in known],
        )
        x, y = [x * offset for x, _, _ in known], [y for _, y, _ in known]
        axes.errorbar(x, y, yerr=(below, above), fmt="none", ecolor=colour, elinewidth=1.3, capsize=5)


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
    if name in ("d", "x", "y"):
        return re.sub(r"(\.\d\d)\d+", r"\1", value)  # hundredths of a point: half the size of a page
    if name == "style":
        value = re.sub(r"font-family: [^;]*", "font-family: inherit", value)
    return value.replace("url(#", f"url(#{identity}-").replace(INK, "currentColor")
