"""The report of a folder of records, three times the same: terminal, Markdown, one HTML page; and its cells as CSV."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table as Grid
from rich.text import Text

from bench.csv_export import csv_text
from bench.record import read
from bench.section import Table
from bench.summary import Summary, summarise, usable

MARKDOWN = "report.md"
HTML = "report.html"
CSV = "report.csv"
STATUS_COLUMN = "status"
UNBROKEN = 16
"""Characters of a cell that the terminal keeps in one line."""
GAP = 2
"""Characters between columns."""
TALL = 60
"""Rows above which a table of the page scrolls by itself, below a heading that stays."""


@dataclass(frozen=True)
class Fitting:
    """A table in the terminal: columns where it is wide enough for their longest words, else one paragraph per row."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = _widths(self.table, options.max_width)
        yield _rows(self.table) if widths is None else _columns(self.table, widths)


def terminal(summary: Summary) -> RenderableType:
    """The report for a terminal. Strings become Text, so that nothing in them is taken for rich's markup."""
    verdict = Grid.grid(padding=(0, 2))
    verdict.add_column(style="dim")
    verdict.add_column(overflow="fold")
    for fact in summary.facts:
        details = ("\n" if fact.warning else "; ").join(fact.details)
        style = "bold yellow" if fact.warning else "bold"
        verdict.add_row(Text(fact.label), Text.assemble((fact.value, style), f"\n{details}" if details else ""))
    parts: list[RenderableType] = [verdict]
    for table in all_tables(summary):
        parts += [Text(f"\n{table.title}", style="bold"), *(Text(str(fact)) for fact in table.lead), Fitting(table)]
        parts += [Text(table.note, style="dim")] if table.note else []
    for title, sentences in lists(summary):
        parts += [Text(f"\n{title}", style="bold"), *(Text(sentence, style="yellow") for sentence in sentences)]
    return Group(*parts)


def lists(summary: Summary) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Title and sentences of what stands below the tables, as far as there is any."""
    both = (("More caveats", summary.caveats), ("Remarks", summary.remarks))
    return tuple((title, sentences) for title, sentences in both if sentences)


def all_tables(summary: Summary) -> tuple[Table, ...]:
    """The tables in the order in which every rendering shows them."""
    failures = (summary.failures,) if summary.failures.rows else ()
    return (*failures, *summary.tables, summary.environment)


def _widths(table: Table, available: int) -> list[int] | None:
    """Characters for each column; None if words would be torn. rich's own way of shrinking tears them."""
    widths, cells = [], []
    for texts in zip(table.columns, *table.rows, strict=True):
        words = [cell_len(word) for text in texts for word in text.split()]
        widths.append(max([*words, *(min(cell_len(text), UNBROKEN) for text in texts[1:])], default=0))
        cells.append(max([cell_len(text) for text in texts[1:]], default=0))
    spare = available - sum(widths) - GAP * (len(widths) - 1)
    if spare < 0:
        return None
    for wanted in (cells, [cell_len(column) for column in table.columns]):  # whole cells first, then whole headings
        needs = {place: max(0, wanted[place] - width) for place, width in enumerate(widths)}
        for turn, place in enumerate(sorted(needs, key=needs.__getitem__)):
            extra = min(max(spare // (len(widths) - turn), min(spare, UNBROKEN)), needs[place])
            widths[place] += extra
            spare -= extra
    return widths


def _columns(table: Table, widths: list[int]) -> Grid:
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    for place, (column, width) in enumerate(zip(table.columns, widths, strict=True)):
        side: Literal["left", "right"] = "right" if table.is_numeric(place) else "left"
        grid.add_column(Text(column), justify=side, overflow="fold", width=width)
    for row in table.rows:
        grid.add_row(*(Text(cell) for cell in row), style="red" if is_bad(table, row) else None)
    return grid


def _rows(table: Table) -> Grid:
    grid = Grid.grid(padding=(0, 1))
    for row in table.rows:
        pairs = [(Text(f"{name} ", style="dim"), Text(cell)) for name, cell in zip(table.columns, row, strict=True)]
        words = Text("; ").join(Text.assemble(*pair) for pair in pairs)
        grid.add_row(Text("-"), words, style="red" if is_bad(table, row) else None)
    return grid


def is_bad(table: Table, row: tuple[str, ...]) -> bool:
    """True for a row whose status is not ok."""
    return STATUS_COLUMN in table.columns and row[table.columns.index(STATUS_COLUMN)] != "ok"


def markdown(summary: Summary) -> str:
    """The report as GitHub Markdown."""
    lines = ["# Benchmark report", ""]
    for fact in summary.facts:
        lines.append(f"- **{escaped(fact.label)}**: **{escaped(fact.value)}**")
        lines += [f"  - {escaped(detail)}" for detail in fact.details]
    for table in all_tables(summary):
        lines += ["", f"## {escaped(table.title)}", ""]
        lines += [*(f"- {escaped(str(fact))}" for fact in table.lead), ""] if table.lead else []
        lines += _markdown_table(table)
        lines += ["", escaped(table.note)] if table.note else []
    for title, sentences in lists(summary):
        lines += ["", f"## {title}", "", *(f"- {escaped(sentence)}" for sentence in sentences)]
    if summary.plots:
        lines += ["", f"Plots are in {HTML}, beside this file."]
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table) -> list[str]:
    rules = ["---:" if table.is_numeric(place) else "---" for place in range(len(table.columns))]
    rows = [table.columns, *table.rows]
    text = [f"| {' | '.join(escaped(cell) for cell in row)} |" for row in rows]
    return [text[0], f"| {' | '.join(rules)} |", *text[1:]]


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no table borders, no code, no emphasis, no links."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]~$#])", r"\\\1", text)


def html(summary: Summary) -> str:
    """The report as one page that needs nothing else: no network, no scripts."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from bench.plots import limited, svg

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # Markup is for our own SVG alone: it is serialised from an element tree, so text in it is escaped already.
    plots = [limited(plot) for plot in summary.plots]
    drawn = [(plot, Markup(svg(plot, f"plot{place}"))) for place, plot in enumerate(plots, start=1)]
    tables = [
        (table, [table.is_numeric(place) for place in range(len(table.columns))]) for table in all_tables(summary)
    ]
    return page.get_template("report.html.j2").render(
        summary=summary, tables=tables, lists=lists(summary), plots=drawn, is_bad=is_bad, tall=TALL
    )


def write_report(folder: Path) -> Summary:
    """Read a folder's records, write report.md, report.html and report.csv beside them, return what they say.

    Raises ValueError if the folder holds no records that can be read.
    """
    records, complaints = read(folder)
    summary = summarise(records, complaints)
    table = csv_text(usable(records, []))
    for name, text in ((MARKDOWN, markdown(summary)), (HTML, html(summary)), (CSV, table)):
        _write(folder / name, text)
    return summary


def _write(path: Path, text: str) -> None:
    """Write all of the file or nothing: a reader never sees half a report."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
