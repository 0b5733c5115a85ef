"""Timed training steps: throughput, weak and strong scaling against a single process, step times."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.record import Record
from bench.scaling import Measured, Study, studies
from bench.scaling_doubts import caveats, named
from bench.scaling_plots import plots
from bench.section import Fact, Section, Table
from bench.stats import nearest_rank, slowest_steps_s
from bench.text import NA, count, gibibytes, number, percent, percent_range, plural, value_text

VERDICTS = 3
"""Studies with lines of their own in the verdict; the others are in the tables."""
COLUMNS = (
    "ranks",
    "strategy",
    "scaling",
    "batch per rank",
    "global batch",
    "samples/s",
    "per rank",
    "efficiency vs single process (95 % interval)",
    "vs 1-rank DDP",
    "step p50 / p95 ms",
    "status",
)


def summarise(records: Sequence[Record]) -> Section:
    """What the scaling records say."""
    found, strangers = studies(records)
    facts = _facts(found[0]) if len(found) == 1 else [_short_fact(study) for study in found[:VERDICTS]]
    if len(found) > VERDICTS:
        facts.append(Fact(label="More studies", value=str(len(found) - VERDICTS), details=("see the tables",)))
    tables = [_table(study) for study in found]
    if strangers:
        rows = tuple((value_text(record.cell), record.status, value_text(record.error)) for record in strangers)
        note = "These cells do not say ranks, batch_per_rank and strategy."
        tables.append(
            Table(title="Cells that cannot be compared", columns=("cell", "status", "error"), rows=rows, note=note)
        )
    return Section(
        facts=tuple(facts),
        tables=tuple(tables),
        plots=tuple(plot for study in found for plot in plots(study)),
        caveats=tuple(_named_caveats(found)),
    )


# The verdict


def _facts(study: Study) -> list[Fact]:
    """Throughput and efficiency of the cell with the most ranks; which cell is the fastest is never asked."""
    cells = study.measured
    if not cells:
        return [Fact(label="Throughput", value=NA, details=("no cell was measured",))]
    top = max(cells, key=lambda cell: (cell.ranks, "weak" in study.kinds(cell)))
    rate_per_s = top.rate_per_s or 0.0
    details = (study.label, top.name, f"{number(rate_per_s / top.ranks)} per rank")
    return [
        Fact(label="Throughput", value=f"{number(rate_per_s)} samples/s", details=details),
        _efficiency_fact(study),
    ]


def _short_fact(study: Study) -> Fact:
    """Throughput and efficiency in one line, for reports on several studies."""
    rate, *others = _facts(study)
    efficiency = [f"efficiency {other.value}" for other in others] + [
        each for other in others for each in other.details
    ]
    return Fact(label="Throughput", value=rate.value, details=(*rate.details, *efficiency))


def _efficiency_fact(study: Study) -> Fact:
    label = "Efficiency"
    base = study.base
    if base is None or base.rate_per_s is None:
        return Fact(label=label, value=NA, details=("there is no measured single process without DDP to compare with",))
    lines = []
    for kind in ("weak", "strong"):
        fitting = [cell for cell in study.measured if kind in study.kinds(cell)]
        top = max(fitting, key=lambda cell: cell.ranks, default=None)
        if top is not None and not (kind == "strong" and top.ranks == 1):
            lines.append((_efficiency_text(study, top), f"{kind} scaling to {plural(top.ranks, 'rank')}"))
    if not lines:
        return Fact(label=label, value=NA, details=("no cell has the batch of the single process",))
    others = [f"{what}: {text}" for text, what in lines[1:]]
    against = f"100 % is one process without DDP, {number(base.rate_per_s)} samples/s"
    return Fact(label=label, value=lines[0][0], details=(lines[0][1], *others, against))


def _efficiency_text(study: Study, cell: Measured) -> str:
    interval = study.interval(cell)
    text = percent(study.efficiency(cell, study.base))
    return text if text == NA or interval is None else f"{text} ({percent_range(interval.low, interval.high)})"


# The table


def _table(study: Study) -> Table:
    extra: dict[str, Callable[[Measured], str]] = {}
    if any(_memory_bytes(cell) is not None for cell in study.cells):
        extra["peak memory"] = lambda cell: gibibytes(_memory_bytes(cell))
    if any(cell.contended is not None for cell in study.measured):
        extra["contended blocks"] = _contended_text
    rows = tuple(_row(study, cell, [text(cell) for text in extra.values()]) for cell in study.cells)
    columns = (*COLUMNS[:-1], *extra, COLUMNS[-1])
    return Table(title=f"Scaling of {study.label}", columns=columns, rows=rows, note=_note(study))


def _row(study: Study, cell: Measured, extra: Sequence[str]) -> tuple[str, ...]:
    one_rank = study.one_rank(cell)
    rate_per_s = cell.rate_per_s
    return (
        str(cell.ranks),
        cell.strategy,
        "base" if cell is study.base else "+".join(study.kinds(cell)) or ("other" if study.base_batch else NA),
        count(cell.batch_per_rank),
        count(cell.global_batch),
        number(rate_per_s),
        number(None if rate_per_s is None else rate_per_s / cell.ranks),
        "base" if cell is study.base else _efficiency_text(study, cell),
        "base" if cell is one_rank else "-" if cell.is_base else percent(study.efficiency(cell, one_rank)),
        _step_text(cell),
        *extra,
        cell.status if cell.status == "ok" else f"{cell.status}: {value_text(cell.error)}",
    )


def _step_text(cell: Measured) -> str:
    steps_ms = [1e3 * step_s for step_s in slowest_steps_s(cell.blocks)]
    return f"{number(nearest_rank(steps_ms, 50))} / {number(nearest_rank(steps_ms, 95))}" if steps_ms else NA


def _memory_bytes(cell: Measured) -> float | None:
    """The largest peak of any rank."""
    peaks = cell.record.raw.get("peak_memory_bytes")
    known = [peak for peak in peaks if isinstance(peak, int | float)] if isinstance(peaks, list) else []
    return max(known, default=None)


def _contended_text(cell: Measured) -> str:
    return NA if cell.contended is None else f"{sum(map(bool, cell.contended))} of {len(cell.contended)}"


def _span(values: Iterable[int]) -> str:
    low, high = min(known := list(values)), max(known)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _note(study: Study) -> str:
    sentences = []
    base, cells = study.base, study.measured
    if base is not None and base.rate_per_s is not None:
        rate = f"{number(base.rate_per_s)} samples/s with a batch of {base.batch_per_rank}"
        sentences.append(f"Base: one process without DDP, {rate}.")
    else:
        sentences.append("Base: n/a, no single process without DDP was measured.")
    if cells:
        rounds, steps = [cell.rounds for cell in cells], [len(slowest_steps_s(cell.blocks)) for cell in cells]
        warmup = {value for cell in cells if isinstance(value := cell.record.raw.get("warmup_steps"), int)}
        behind = f"Behind every row: {_span(rounds)} rounds with {_span(steps)} steps in total"
        apart = f", after {_span(warmup)} steps of warm-up" if warmup else ""
        sentences.append(f"{behind}{apart}.")
        sizes = {size for cell in cells if isinstance(size := cell.record.raw.get("parameters"), int)}
        sentences.append(f"Parameters: {_span(sizes) if sizes else NA}.")
    sentences.append(
        "samples/s is all samples over the sum of the slowest rank's times. A step takes as long as its slowest rank. "
        "Intervals are of 95 %, over rounds (Student's t below 10 of them, else bootstrapped), each cell paired "
        "with the base in the same round."
    )
    if study.unpaired:
        sentences.append(
            f"Not so {named(study.unpaired)}, measured apart from the base: there rounds do not pair, and the interval "
            "is of two sides by themselves (Welch's t below 10 rounds of either, else both bootstrapped)."
        )
    if any(any(cell.contended or ()) for cell in cells):
        sentences.append("Contended blocks, in which something else used the machine, stay in all numbers.")
    return " ".join(sentences)


# Reasons for doubt


def _named_caveats(found: list[Study]) -> list[str]:
    """The caveats of all studies, each once, with the studies that it holds for if there are several."""
    labels: dict[str, list[str]] = {}
    for study in found:
        for caveat in caveats(study):
            labels.setdefault(caveat, []).append(study.label)
    return list(labels) if len(found) == 1 else [f"{text} This is so for {'; '.join(labels[text])}." for text in labels]


# For the CSV file


def numbers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each record: samples per second, efficiency with its interval, kind of scaling, seconds of a step."""
    found = {id(cell.record): _numbers(study, cell) for study in studies(records)[0] for cell in study.measured}
    return [found.get(id(record), {}) for record in records]


def _numbers(study: Study, cell: Measured) -> dict[str, Any]:
    steps_s, interval = slowest_steps_s(cell.blocks), study.interval(cell)
    return {
        "samples_per_s": cell.rate_per_s,
        "scaling": "base" if cell.is_base else "+".join(study.kinds(cell)) or None,
        "efficiency": study.efficiency(cell, study.base),
        "efficiency_low": interval.low if interval else None,
        "efficiency_high": interval.high if interval else None,
        **{f"step_p{share}_s": nearest_rank(steps_s, share) for share in (50, 95, 99)},
        "step_max_s": max(steps_s),
        "steps": len(steps_s),
        "rounds": cell.rounds,
        "contended_blocks": None if cell.contended is None else sum(map(bool, cell.contended)),
    }
