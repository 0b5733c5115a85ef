"""Forward passes alone: samples per second, and how long one takes, by batch size."""

from collections.abc import Sequence
from typing import Any

from bench.record import Record
from bench.section import Fact, Plot, Section, Series, Table
from bench.stats import Block, nearest_rank, throughput_per_s
from bench.text import NA, count, number, plural, value_text

COLUMNS = (
    "model",
    "ranks",
    "batch per rank",
    "precision",
    "samples/s",
    "per rank",
    "latency p50 ms",
    "p99 ms",
    "calls n",
    "status",
)
NOTE = (
    "Evaluation mode, no gradients, random samples that stay on the device. samples/s: all samples over the sum of the "
    "slowest rank's times. Latency: of one forward pass of one batch, the passes of all ranks together; n of them. On "
    "a GPU it is the device's time for a batch in a queue that never runs dry."
)
ENOUGH_CALLS = 100


def summarise(records: Sequence[Record]) -> Section:
    """A row per batch size, a picture per model, and the largest throughput as the verdict."""
    ordered = sorted(records, key=lambda record: (_setting(record), int(record.cell.get("batch_per_rank") or 0)))
    table = Table(title="Inference", columns=COLUMNS, rows=tuple(row(record) for record in ordered), note=NOTE)
    settings = dict.fromkeys(_setting(record) for record in ordered if record.status == "ok")
    groups = [
        [record for record in ordered if record.status == "ok" and _setting(record) == setting] for setting in settings
    ]
    few = sum(len(calls_s(record)) < ENOUGH_CALLS for group in groups for record in group)
    words = f"{plural(few, 'batch size')} with fewer than {ENOUGH_CALLS} calls: the p99 is the slowest call."
    return Section(
        facts=tuple(_fact(group) for group in groups),
        tables=(table,),
        plots=tuple(_plot(group) for group in groups if len(group) > 1),
        caveats=(words,) if few else (),
    )


def row(record: Record) -> tuple[str, ...]:
    """A record's row, in the order of COLUMNS."""
    names = tuple(value_text(record.cell.get(name)) for name in ("model", "ranks", "batch_per_rank"))
    precision = "float32" if record.cell.get("amp") in (None, "off") else value_text(record.cell.get("amp"))
    layout = ", channels last" if record.cell.get("channels_last") else ""
    rate, times_s = samples_per_s(record), calls_s(record)
    return (
        *names,
        f"{precision}{layout}",
        number(rate),
        number(None if rate is None else rate / record.cell["ranks"]),
        *(number(1e3 * nearest_rank(times_s, share)) if times_s else NA for share in (50, 99)),
        count(len(times_s)) if times_s else NA,
        "ok" if record.status == "ok" else f"{record.status}: {value_text(record.error)}",
    )


def samples_per_s(record: Record) -> float | None:
    """Samples of all ranks per second; None without a measurement."""
    blocks = [
        Block(round=block["round"], samples=block["samples"], wall_s=tuple(block["wall_s"]), step_s=())
        for block in record.raw.get("blocks") or ()
    ]
    return throughput_per_s(blocks) if blocks else None


def calls_s(record: Record) -> list[float]:
    """Seconds of every forward pass of every rank: they do not wait for each other."""
    return [call_s for block in record.raw.get("blocks") or () for rank in block["call_s"] for call_s in rank]


def _setting(record: Record) -> str:
    return value_text({name: value for name, value in record.cell.items() if name != "batch_per_rank"})


def _fact(group: Sequence[Record]) -> Fact:
    best = max(group, key=lambda record: samples_per_s(record) or 0.0)
    cells = row(best)
    details = (f"{cells[0]}, batch {cells[2]} on each of {plural(best.cell['ranks'], 'rank')}", f"p99 {cells[7]} ms")
    return Fact(label="Inference", value=f"{cells[4]} samples/s", details=details)


def _plot(group: Sequence[Record]) -> Plot:
    points = tuple((float(record.cell["batch_per_rank"]), samples_per_s(record) or 0.0) for record in group)
    cell = group[0].cell
    return Plot(
        title=f"Inference of {cell['model']} on {plural(cell['ranks'], 'rank')}",
        x_label="samples per rank in a forward pass",
        y_label="samples/s",
        series=(Series(label="samples/s", points=points),),
        x_ticks=tuple(x for x, _ in points),
        log2_x=True,
        y_zero=True,
    )


def numbers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each record: samples of all ranks per second, and seconds of a forward pass."""
    found = []
    for record in records:
        times_s = calls_s(record)
        shares = {f"call_p{share}_s": nearest_rank(times_s, share) if times_s else None for share in (50, 99)}
        found.append({"samples_per_s": samples_per_s(record), **shares, "calls": len(times_s)})
    return found
