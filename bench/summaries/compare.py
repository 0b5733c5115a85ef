"""Two arms side by side: the verdict with its interval, and how far the same code differed from itself."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.compare import Comparison, comparison
from bench.intervals import LogInterval
from bench.paired import spikes
from bench.record import Record
from bench.section import Fact, Plot, Section, Series, Table
from bench.stats import nearest_rank
from bench.text import NA, number, value_text

VERDICT_COLUMNS = (
    "A", "B", "verdict", "time per sample, B / A", "interval", "pairs", "width", "A and B against themselves", "status",
)  # fmt: skip
ARM_COLUMNS = (
    "arm", "steps", "step p50 ms", "p95 ms", "min ms", "spikes", "contended blocks", "load",
)  # fmt: skip


def summarise(records: Sequence[Record]) -> Section:
    """Verdicts and arms of all comparisons."""
    facts, rows, tables, plots, caveats = [], [], [], [], []
    for record in records:
        names = (value_text(record.cell.get("a")) or "-", value_text(record.cell.get("b")) or "-")
        try:
            found = comparison(record) if record.status == "ok" else None
            status = record.status if found else f"{record.status}: {value_text(record.error)}"
        except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as problem:
            found, status = None, f"unreadable: {problem!r}"
        rows.append((*names, *(_verdict_cells(found) if found else (NA,) * 6), status))
        if found is None:
            continue
        facts.append(Fact(label="B against A", value=found.verdict.word, details=(found.sentence, *_sides(names))))
        tables.append(_arms(found))
        plots.append(_plot(found))
        caveats += _caveats(found)
    note = "Intervals of exp(mean ln(B / A)) over pairs of blocks; the last shows how much the same code differs."
    table = Table(title="Comparisons", columns=VERDICT_COLUMNS, rows=tuple(rows), note=note)
    return Section(facts=tuple(facts), tables=(table, *tables), plots=tuple(plots), caveats=tuple(caveats))


def _sides(names: tuple[str, str]) -> tuple[str, str]:
    return f"A: {names[0]}", f"B: {names[1]}"


def _range(interval: LogInterval | None) -> str:
    if interval is None:
        return NA
    return f"{math.exp(interval.low):.4f} to {math.exp(interval.high):.4f}"


def _verdict_cells(found: Comparison) -> tuple[str, ...]:
    interval = found.verdict.interval
    if interval is None:
        return found.verdict.word, NA, NA, "0", NA, NA
    return (
        found.verdict.word,
        f"{math.exp(interval.mean):.4f}",
        f"{_range(interval)} ({100 * (1 - interval.alpha):.4g} %)",
        str(interval.count),
        f"{100 * interval.width:.2f} %",
        _range(found.verdict.null),
    )


def _arms(found: Comparison) -> Table:
    rows = []
    for arm, name in zip("AB", found.names, strict=True):
        blocks = found.of(arm)
        steps_ms = [1e3 * max(ranks) for block in blocks for ranks in zip(*block.step_s, strict=True)]
        known = [bool(block.doubts) for block in blocks if block.is_watched]
        loads = [load for block in blocks if isinstance(load := block.guards.get("load_1m"), int | float)]
        rows.append(
            (
                f"{arm}: {name or 'no options'}",
                f"{len(steps_ms):,}",
                *(number(nearest_rank(steps_ms, share)) for share in (50, 95)),
                number(min(steps_ms)),
                str(sum(spikes(block.step_s) for block in blocks)),
                f"{sum(known)} of {len(known)}" if known else NA,
                number(median(loads)) if loads else NA,
            )
        )
    title = f"Arms of {found.names[0] or 'no options'} against {found.names[1] or 'no options'}"
    return Table(title=title, columns=ARM_COLUMNS, rows=tuple(rows), note="A step takes as long as its slowest rank.")


def _plot(found: Comparison) -> Plot:
    ratios = tuple((float(place), math.exp(log)) for place, log in enumerate(found.ratios, start=1))
    series = [Series(label="B / A of each pair", points=ratios)]
    if found.verdict.interval is not None and len(ratios) > 1:
        mean = math.exp(found.verdict.interval.mean)
        ends = ((ratios[0][0], mean), (ratios[-1][0], mean))
        series.append(Series(label="mean", points=ends))
    edges = ((ratios[0][0], 1 + found.margin), (ratios[-1][0], 1 + found.margin)) if ratios else ()
    series.append(Series(label=f"margin, +{100 * found.margin:g} %", points=edges, kind="ideal"))
    title = f"Pairs of {found.names[0] or 'no options'} and {found.names[1] or 'no options'}"
    return Plot(title=title, x_label="pair", y_label="time per sample, B / A", series=tuple(series))


def _caveats(found: Comparison) -> list[str]:
    caveats = []
    if found.verdict.word == "inconclusive":
        caveats.append(f"A comparison is inconclusive: {found.verdict.why}.")
    if found.contended > len(found.blocks) / 4:
        caveats.append(f"Others used the machine during {found.contended} of {len(found.blocks)} blocks.")
    return caveats


def numbers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each record: the verdict, and the time of B over A with its interval."""
    found = []
    for record in records:
        verdict = comparison(record).verdict if record.status == "ok" else None
        interval = verdict.interval if verdict else None
        ends = {"ratio": interval.mean, "ratio_low": interval.low, "ratio_high": interval.high} if interval else {}
        values: dict[str, Any] = {name: math.exp(log) for name, log in ends.items()}
        found.append({"verdict": verdict.word} | values if verdict else {})
    return found
