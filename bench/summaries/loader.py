"""Input pipelines side by side, each against ringmark's, round by round."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.record import Record
from bench.section import Fact, Section, Table
from bench.stats import Block, paired_ratios, throughput_per_round, throughput_per_s
from bench.text import NA, duration, number, value_text

OURS = "ringmark"
NOTE = (
    "Pipelines take turns in one process of one thread, loader processes apart. The first batch of ringmark's comes "
    "after all images were decoded, once."
)
ON_CPU = " All of them make their batches on the CPU."


def summarise(records: Sequence[Record]) -> Section:
    """One table per kind of batch: images/s of each pipeline and how many times faster ringmark's is."""
    kinds: dict[tuple[Any, Any], list[Record]] = {}
    for record in records:
        kinds.setdefault((record.cell.get("image_size"), record.cell.get("batch_size")), []).append(record)
    tables, facts = [], []
    for (size, batch), members in kinds.items():
        measured = [record for record in members if record.status == "ok"]
        ours = next((record for record in measured if record.cell.get("pipeline") == OURS), None)
        rows = [_row(record, ours) for record in members]
        tables.append(
            Table(
                title=f"Input pipelines, images of {size}x{size} pixels, batches of {batch}",
                columns=("pipeline", "images/s", "ringmark is faster by", "all rounds", "first batch after", "status"),
                rows=tuple(rows),
                note=NOTE + (ON_CPU if {each.environment.get("device") for each in measured} == {"cpu"} else ""),
            )
        )
        if ours is not None:
            rate = number(throughput_per_s(_blocks(ours)))
            against = tuple(f"{row[2]} times {row[0]}" for row in rows if row[0] != OURS)
            facts.append(Fact(label="Input path", value=f"{rate} images/s", details=against))
    return Section(facts=tuple(facts), tables=tuple(tables))


def _row(record: Record, ours: Record | None) -> tuple[str, ...]:
    name = value_text(record.cell.get("pipeline"))
    if record.status != "ok":
        return (name, NA, NA, NA, NA, f"{record.status}: {value_text(record.error)}")
    rate = number(throughput_per_s(_blocks(record)))
    first = duration(record.raw["first_batch_s"])
    if ours is None or record is ours:
        return (name, rate, "-", "-", first, "ok")
    ratios = paired_ratios(throughput_per_round(_blocks(ours)), throughput_per_round(_blocks(record)))
    return (name, rate, number(median(ratios)), f"{number(min(ratios))} to {number(max(ratios))}", first, "ok")


def _blocks(record: Record) -> list[Block]:
    return [
        Block(round=block["round"], samples=block["samples"], wall_s=tuple(block["wall_s"]), step_s=())
        for block in record.raw["blocks"]
    ]


def numbers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each record: images per second, and seconds until the first batch."""
    return [
        {"samples_per_s": throughput_per_s(_blocks(record)), "first_batch_s": record.raw.get("first_batch_s")}
        if record.status == "ok"
        else {}
        for record in records
    ]
