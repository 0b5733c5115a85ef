"""Collective operations: bandwidth by operation and size, time of a call, and elements that arrived wrong."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from bench.collective_bandwidth import OPS, algbw_bytes_per_s, bus_factor, busbw_bytes_per_s, by_node_factor
from bench.plots_collectives import Curve, busbw_plot
from bench.record import Record
from bench.section import Fact, Plot, Section, Table
from bench.stats import nearest_rank
from bench.text import NA, count, number, plural, value_text

COLUMNS = (
    "operation",
    "data type",
    "ranks",
    "size S, bytes",
    "algbw GB/s",
    "busbw GB/s",
    "call p50 us",
    "calls n",
    "wrong elements",
    "status",
)
CAVEAT = (
    "busbw is what a link carries only where the operation runs as a ring on a flat network; switches that add up "
    "themselves can read higher than the link."
)
NOTE = (
    "algbw = S / t, busbw = algbw times 2(n-1)/n in all_reduce, (n-1)/n in all_gather, reduce_scatter and all_to_all, "
    "1 in broadcast, send_recv (every rank sends to the next and receives from the one before) and send (from ranks 0, "
    "2, ... to the next, one way); GB = 1e9 bytes. "
    "t: all calls of the slowest rank over their number. p50: of n calls, each as long as on its slowest rank. Wrong "
    "elements: bits that differ from what was computed anew, in one more call, all ranks together. "
)
TWICE = (
    "gloo carries out reduce_scatter as an all_reduce and throws most of it away: its links carry twice what its busbw "
    "says."
)
BY_TURNS = (
    "gloo's all_to_all, and its all_gather between two ranks, mostly send large messages one way at a time: they reach "
    "half to two thirds of links that carry both ways at once."
)
AS_A_TREE = (
    "gloo broadcasts along a tree, whose root sends a copy to each of its children: with 3 or 4 ranks its link carries "
    "twice what busbw says, and more with more."
)
COMBINED = ("all_reduce", "all_gather", "reduce_scatter")
BETWEEN_NODES = (
    "What a node's network link carries of the busbw of all_reduce, all_gather and reduce_scatter: all of it in a flat "
    "ring, as gloo's all_reduce is, which enters and leaves each node once; g(k-1)/(n-1) of it if the g ranks of each "
    "of k nodes combine first: "
)
FEW_CALLS = 20


def summarise(records: Sequence[Record]) -> Section:
    """A table by operation and size, a picture for each data type and number of ranks, one line of verdict."""
    ordered = sorted(records, key=_order)
    table = Table(
        title="Collective operations",
        columns=COLUMNS,
        rows=tuple(row(record) for record in ordered),
        note=NOTE + CAVEAT + _nodes_note(ordered),
    )
    return Section(
        facts=(_fact(ordered),), tables=(table,), plots=tuple(_plots(ordered)), caveats=tuple(_caveats(ordered))
    )


def row(record: Record) -> tuple[str, ...]:
    """A cell's row, in the order of COLUMNS. Of data that arrived wrong no bandwidth is told."""
    rate = algbw(record)
    wrong, calls_s = record.raw.get("wrong_elements"), _calls_s(record)
    return (
        *(value_text(record.cell.get(name)) for name in ("op", "dtype", "ranks")),
        count(record.cell.get("size_bytes")),
        number(None if rate is None else rate / 1e9),
        number(None if rate is None else busbw_bytes_per_s(record.cell["op"], record.cell["ranks"], rate) / 1e9),
        number(1e6 * nearest_rank(calls_s, 50)) if calls_s and rate is not None else NA,
        count(len(calls_s)) if calls_s else NA,
        count(wrong),
        "ok" if record.status == "ok" else f"{record.status}: {value_text(record.error)}",
    )


def algbw(record: Record) -> float | None:
    """Bytes per second over all rounds; None where there is no measurement that can be trusted."""
    if record.status != "ok":
        return None
    blocks = record.raw["blocks"]
    slowest_s = sum(max(block["wall_s"]) for block in blocks)
    return algbw_bytes_per_s(record.cell["size_bytes"], record.raw["calls_per_block"] * len(blocks), slowest_s)


def busbw(record: Record) -> float | None:
    """Bytes per second that each rank's link carries in a ring; None where there is no measurement."""
    rate = algbw(record)
    return None if rate is None else busbw_bytes_per_s(record.cell["op"], record.cell["ranks"], rate)


def _calls_s(record: Record) -> list[float]:
    """Seconds of every call, each as long as on its slowest rank."""
    blocks: list[dict[str, Any]] = record.raw.get("blocks") or []
    return [max(ranks) for block in blocks for ranks in zip(*block["call_s"], strict=True)]


def _order(record: Record) -> tuple[str, ...]:
    cell, op = record.cell, value_text(record.cell.get("op"))
    return (
        str(OPS.index(op)) if op in OPS else op,
        value_text(cell.get("dtype")),
        *(f"{cell.get(name) or 0:>15}" for name in ("ranks", "size_bytes")),
    )


def _nodes_note(records: Sequence[Record]) -> str:
    """What busbw means for the network link of a node, where there are several nodes."""
    shapes = {
        (record.environment.get("nodes") or 1, record.cell["ranks"])
        for record in records
        if record.status == "ok" and record.cell["op"] in COMBINED
    }
    words = [
        f"{number(by_node_factor(nodes, ranks))} with {ranks} ranks on {nodes} nodes"
        for nodes, ranks in sorted(shapes)
        if nodes > 1
    ]
    return f" {BETWEEN_NODES}{'; '.join(words)}." if words else ""


def _fact(records: Sequence[Record]) -> Fact:
    """The largest all_reduce, or else the largest of what there is, and how much data was checked."""
    measured = [record for record in records if record.status == "ok"]
    wrong = [record for record in records if record.raw.get("wrong_elements")]
    checked = sum(record.raw.get("checked_elements") or 0 for record in records)
    details = [f"{plural(checked, 'element')} checked in {plural(len(records), 'cell')}"]
    if wrong:
        details.append(f"data arrived wrong in {plural(len(wrong), 'cell')}")
    if not measured:
        return Fact(label="Collectives", value=NA, details=("no cell was measured", *details), warning=bool(wrong))
    top = max(measured, key=lambda record: (record.cell["op"] == "all_reduce", record.cell["size_bytes"]))
    cell, rate = top.cell, busbw(top)
    value = f"{cell['op']} {number(None if rate is None else rate / 1e9)} GB/s busbw"
    where = f"{count(cell['size_bytes'])} bytes of {cell['dtype']}, {plural(cell['ranks'], 'rank')}"
    backend = value_text(top.environment.get("backend"))
    if not wrong:
        details.append("0 wrong")
    return Fact(label="Collectives", value=value, details=(where, backend, *details, CAVEAT), warning=bool(wrong))


def _plots(records: Sequence[Record]) -> list[Plot]:
    measured = [record for record in records if record.status == "ok"]
    found = []
    for dtype, ranks in dict.fromkeys((record.cell["dtype"], record.cell["ranks"]) for record in measured):
        group = [record for record in measured if (record.cell["dtype"], record.cell["ranks"]) == (dtype, ranks)]
        buckets = next((record.raw["ddp_bucket_bytes"] for record in group if record.raw.get("ddp_bucket_bytes")), ())
        model = next((record.raw["ddp_model"] for record in group if record.raw.get("ddp_model")), "DDP")
        curves = [_curve(op, list(members)) for op, members in groupby(group, key=lambda record: record.cell["op"])]
        title = f"Bandwidth of {dtype} on {plural(ranks, 'rank')}"
        found.append(busbw_plot(title, curves, buckets, model))
    return found


def _curve(op: str, records: Sequence[Record]) -> Curve:
    factor = bus_factor(op, records[0].cell["ranks"])
    spread = []
    for record in records:
        work = factor * record.cell["size_bytes"] * record.raw["calls_per_block"]
        rounds = [work / max(block["wall_s"]) for block in record.raw["blocks"]]
        spread.append((min(rounds), max(rounds)))
    return Curve(
        op=op,
        sizes_bytes=tuple(record.cell["size_bytes"] for record in records),
        busbw=tuple(busbw(record) or 0.0 for record in records),
        spread=tuple(spread),
    )


def _caveats(records: Sequence[Record]) -> list[str]:
    found = []
    measured = [record for record in records if record.status == "ok"]
    by_gloo = [record.cell for record in measured if record.environment.get("backend") == "gloo"]
    if any(cell["op"] == "reduce_scatter" for cell in by_gloo):
        found.append(TWICE)
    if any(cell["op"] == "broadcast" and cell["ranks"] > 2 for cell in by_gloo):
        found.append(AS_A_TREE)
    if any(cell["op"] == "all_to_all" or (cell["op"], cell["ranks"]) == ("all_gather", 2) for cell in by_gloo):
        found.append(BY_TURNS)
    if few := sum(len(_calls_s(record)) < FEW_CALLS for record in measured):
        found.append(f"{plural(few, 'size')} with fewer than {FEW_CALLS} calls, since a call takes so long.")
    return found


def numbers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each record: bandwidths in bytes per second, and seconds of the median call."""
    return [
        {
            "algbw_bytes_per_s": algbw(record),
            "busbw_bytes_per_s": busbw(record),
            "call_p50_s": nearest_rank(_calls_s(record), 50) if algbw(record) is not None else None,
            "calls": len(_calls_s(record)),
            "wrong_elements": record.raw.get("wrong_elements"),
        }
        for record in records
    ]
