"""Training steps taken apart: phases on every rank, the rank the others wait for, and where the efficiency went."""

from collections.abc import Sequence
from typing import Any

from bench import plots_step
from bench.launch_id import launch_of
from bench.losses import Loss, bases_of, loss_tables, losses_of
from bench.peaks import mfu
from bench.phases import (
    LOCAL,
    TRAIN,
    WORDS,
    Breakdown,
    breakdown,
    lateness_s,
    of_arm,
    percentiles_s,
    spikes,
    straggler,
)
from bench.record import Record
from bench.section import Fact, Plot, Section, Table
from bench.stats import ENOUGH_ROUNDS
from bench.step_cells import Measured, contended, joule_per_sample, measured, peak, rate_per_s, utilisation, watched
from bench.text import NA, milliseconds, number, percent, plural, value_text
from bench.timed_blocks import skipped_steps

PARTS = ("data", "h2d", "forward", "backward", "optimizer")
STEP_COLUMNS = (
    *("cell", "rank", "step p50 ms", "p95", "p99", "max", "steps"),
    *("data wait", "host to device", "forward", "backward", "exposed communication", "optimizer", "rest"),
    *("late by", "peak memory MiB", "status"),
)
STEP_NOTE = (
    "Milliseconds. A step is as long as its slowest rank; its parts are those of the rank that it had to wait for, the "
    "one that waits least in collectives. Parts are medians of steps, then of blocks; rest is what they leave. Exposed "
    "communication: step time minus that of steps without communication, blocks taking turns; backward is without it. "
    "Late by: how much less a rank waits than the one that waits longest."
)
COST_COLUMNS = (
    *("cell", "samples/s", "GFLOP per sample", "TFLOP/s per rank", "MFU", "of the matmul ceiling", "J per sample"),
    *("warm-up steps", "spikes", "contended blocks"),
)
COST_NOTE = (
    "GFLOP: of a training step, forward and backward. MFU against the dense peak of exactly this device and precision, "
    "and against what a product of large matrices reached on it; n/a where the peak is not known. Spikes: steps longer "
    "than 1.5 medians. Contended blocks stay in all numbers."
)


def summarise(records: Sequence[Record]) -> Section:
    """Tables, verdicts and plots, model by model."""
    studies: dict[str, list[Measured]] = {}
    for record in records:
        found = measured(record)
        studies.setdefault(found.label, []).append(found)
    facts, tables, plots, caveats = [], [], [], []
    for label, cells in studies.items():
        good = [cell for cell in cells if cell.blocks]
        losses = [loss for cell in good for loss in losses_of(cell, good)]
        rows = tuple(row for cell in cells for row in _step_rows(cell))
        tables.append(Table(title=f"Steps of {label}", columns=STEP_COLUMNS, rows=rows, note=STEP_NOTE))
        tables += loss_tables(label, losses)
        if good:
            costs = tuple(_cost_row(cell) for cell in good)
            tables.append(Table(title=f"Cost of {label}", columns=COST_COLUMNS, rows=costs, note=COST_NOTE))
            top = max(good, key=lambda cell: (cell.ranks, not cell.is_base))
            facts += _facts(top, next((loss for loss in losses if loss.cell is top), None))
            plots += _plots(label, good)
            caveats += _caveats(label, good, losses)
    return Section(facts=tuple(facts), tables=tuple(tables), plots=tuple(plots), caveats=tuple(caveats))


# The verdict


def _facts(cell: Measured, loss: Loss | None) -> list[Fact]:
    whole = breakdown(cell.blocks)
    names = {**{WORDS[name]: value for name, value in whole.parts_s.items()}}
    if whole.exposed_s is not None:
        names["exposed communication"] = whole.exposed_s
    largest = max(names, key=names.__getitem__)
    share = percent(names[largest] / whole.step_s) if whole.step_s else NA
    details = (f"largest part: {largest}, {number(1e3 * names[largest])} ms ({share})", cell.label, cell.name)
    facts = [Fact(label="Step", value=f"{number(1e3 * whole.step_s)} ms", details=details)]
    late = straggler(cell.blocks)
    if late is not None and late.chronic:
        where = f"{cell.label}: it spends more than the others in: {WORDS[late.phase]}"
        value = f"rank {late.rank} is late by {number(1e3 * late.late_s)} ms per step"
        facts.append(Fact(label="Straggler", value=value, details=(where,), warning=True))
    elif late is not None:
        facts.append(
            Fact(label="Straggler", value="none", details=(cell.label, "no rank is late by more than 3 % of a step"))
        )
    if loss is not None:
        told = (f"{loss.whole.kind} scaling of {cell.label}", loss.sentence)
        facts.append(Fact(label="Where it went", value=percent(loss.whole.efficiency), details=told))
    facts.append(Fact(label="MFU", value=percent(utilisation(cell)), details=(cell.label, _mfu_words(cell))))
    return facts


def _mfu_words(cell: Measured) -> str:
    device = value_text(cell.record.environment.get("device"))
    return f"{device}, {'peak known' if peak(cell) else 'whose peak is not known'}"


# The tables


def _step_rows(cell: Measured) -> list[tuple[str, ...]]:
    if not cell.blocks:
        return [(cell.name, NA, *(NA,) * (len(STEP_COLUMNS) - 3), cell.error or NA)]
    late, peaks = lateness_s(cell.blocks), cell.record.raw.get("peak_memory_bytes")
    ranks: list[int | None] = [None, *(range(cell.ranks) if cell.ranks > 1 else ())]
    rows = []
    for rank in ranks:
        found = breakdown(cell.blocks, rank)
        times, count = percentiles_s(cell.blocks, rank)
        size = None if not peaks else max(peaks) if rank is None else peaks[rank]
        rows.append(
            (
                *(
                    cell.name,
                    "slowest" if rank is None else str(rank),
                    *(milliseconds(value) for value in times),
                    f"{count:,}",
                ),
                *_parts(found),
                milliseconds(None if late is None else max(late) if rank is None else late[rank]),
                number(None if size is None else size / 2**20),
                "ok",
            )
        )
    return rows


def _parts(found: Breakdown) -> list[str]:
    parts = [milliseconds(found.parts_s[name]) for name in PARTS]
    return [*parts[:-1], milliseconds(found.exposed_s), parts[-1], milliseconds(found.rest_s)]


def _cost_row(cell: Measured) -> tuple[str, ...]:
    raw, rate = cell.record.raw, rate_per_s(cell)
    flop = raw.get("training_flop_per_sample")
    ceilings = raw.get("matmul_flop_per_s")
    ceiling = None if not ceilings or peak(cell) is None else sum(ceilings) / len(ceilings)
    warmup = raw.get("warmup") or {}
    kinds = [kind for block in of_arm(cell.blocks, TRAIN) for kind in spikes(block)]
    told = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    known = watched(cell)
    return (
        *(cell.name, number(rate), number(None if flop is None else flop / 1e9)),
        number(None if flop is None else flop * rate / cell.ranks / 1e12),
        *(percent(utilisation(cell)), percent(mfu(flop, rate, cell.ranks, ceiling)), number(joule_per_sample(cell))),
        f"{value_text(warmup.get('steps'))}{' (cap, not settled)' if warmup.get('capped') else ''}",
        ", ".join(told) or "0",
        f"{len(contended(cell))} of {known}" if known else NA,
    )


# Reasons for doubt, and pictures


def _caveats(label: str, cells: Sequence[Measured], losses: Sequence[Loss]) -> list[str]:
    found = []
    if (rounds := min(len({block.round for block in cell.blocks}) for cell in cells)) < ENOUGH_ROUNDS:
        found.append(f"{label}: few rounds ({rounds}, better {ENOUGH_ROUNDS} or more) behind the parts of a step.")
    for cell in cells:
        name = f"{label}, {cell.name}"
        if doubts := contended(cell):
            reasons = list(dict.fromkeys(reason for _, _, each in doubts for reason in each))
            found.append(f"{name}: {len(doubts)} of {plural(len(cell.blocks), 'block')} contended ({reasons[0]}, ...).")
        if (cell.record.raw.get("warmup") or {}).get("capped"):
            found.append(f"{name}: step times had not settled when warming up ended.")
        if skipped := skipped_steps(cell.record):
            found.append(f"{name}: fp16 skipped {plural(skipped, 'update')} of the weights, whose time the parts lack.")
        if of_arm(cell.blocks, LOCAL):
            found.append(f"{name}: with SyncBN ranks meet in every layer, so phases contain waits for others.")
        if any(launch_of(base.record) != launch_of(cell.record) for base in bases_of(cell, cells)):
            found.append(f"{name}: its base was measured in another launch, so drift in between may be in the loss.")
    return found + [f"{label}, {loss.cell.name}: {loss.whole.doubt}." for loss in losses if loss.whole.doubt]


def _plots(label: str, cells: Sequence[Measured]) -> list[Plot]:
    """Of one setting of SyncBN, that of the cell with the most ranks: the others are in the tables."""
    top = max(cells, key=lambda cell: cell.ranks)
    alike = [cell for cell in cells if cell.is_base or (cell.ranks > 1 and cell.sync_bn == top.sync_bn)]
    ordered = sorted((cell for cell in alike if cell.batch == top.batch), key=lambda cell: cell.ranks)
    peaks = [
        (cell.ranks, cell.batch, max(sizes)) for cell in alike if (sizes := cell.record.raw.get("peak_memory_bytes"))
    ]
    memory = plots_step.memory(label, peaks)
    return [
        plots_step.stack(label, [(cell.ranks, breakdown(cell.blocks)) for cell in ordered]),
        *([plots_step.heat(label, top.blocks)] if top.ranks > 1 else []),
        plots_step.step_times(label, [(cell.name, cell.blocks) for cell in ordered]),
        *([memory] if memory is not None else []),
    ]


# For the CSV file


def numbers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each record: samples per second, seconds of a step and of its parts, MFU, lateness of the latest rank."""
    return [_numbers(cell) if cell.blocks else {} for cell in map(measured, records)]


def _numbers(cell: Measured) -> dict[str, Any]:
    times, steps = percentiles_s(cell.blocks, None)
    parts, late = breakdown(cell.blocks), lateness_s(cell.blocks)
    return {
        "samples_per_s": rate_per_s(cell),
        **dict(zip(("step_p50_s", "step_p95_s", "step_p99_s", "step_max_s"), times, strict=True)),
        "steps": steps,
        **{f"{name}_s": seconds for name, seconds in parts.parts_s.items()},
        "exposed_communication_s": parts.exposed_s,
        "mfu": utilisation(cell),
        "late_s": None if late is None else max(late),
        "training_flop_per_sample": cell.record.raw.get("training_flop_per_sample"),
        "joule_per_sample": joule_per_sample(cell),
    }
