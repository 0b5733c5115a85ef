"""What ringmark's training loop costs over a bare one: speeds side by side, round by round."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.record import Record
from bench.section import Fact, Section, Table
from bench.stats import Block, paired_ratios, ratio_interval, throughput_per_round, throughput_per_s
from bench.text import NA, number, value_text

ARMS = ("ringmark", "bare", "bare again")


def summarise(records: Sequence[Record]) -> Section:
    """Speeds of the arms, and the ratios of ringmark and of the null comparison to the bare loop."""
    rows: list[tuple[str, ...]] = []
    facts: list[Fact] = []
    for record in records:
        cell = record.cell
        name = f"{cell.get('model')}, {cell.get('ranks')} ranks, batch {cell.get('batch_per_rank')} per rank"
        if record.status != "ok":
            rows.append((name, *(NA,) * 6, f"{record.status}: {value_text(record.error)}"))
            continue
        arms = {arm: _blocks(record, arm) for arm in ARMS}
        rounds = {arm: throughput_per_round(blocks) for arm, blocks in arms.items()}
        cost, null = (paired_ratios(rounds[arm], rounds["bare"]) for arm in ("ringmark", "bare again"))
        rows.append(
            (
                name,
                *(number(throughput_per_s(arms[arm])) for arm in ("ringmark", "bare")),
                f"{median(cost):.3f} ({_interval(cost)})",
                f"{min(cost):.3f} to {max(cost):.3f}",
                f"{median(null):.3f} ({_interval(null)})",
                str(len(cost)),
                "ok",
            )
        )
        details = (name, f"95 % interval {_interval(cost)}", f"the same code twice: {median(null):.3f}")
        facts.append(Fact(label="Loop cost", value=f"{median(cost):.3f} of the bare loop's speed", details=details))
    table = Table(
        title="Training loop against a bare hand-written DDP loop",
        columns=(
            "model",
            "ringmark samples/s",
            "bare samples/s",
            "median ratio (95 % interval of the mean)",
            "all rounds",
            "null: bare again / bare",
            "rounds",
            "status",
        ),
        rows=tuple(rows),
        note="Ratios of speeds per round, the arms taking turns in the same processes; above 1 ringmark is faster.",
    )
    return Section(facts=tuple(facts), tables=(table,))


def _blocks(record: Record, arm: str) -> list[Block]:
    return [
        Block(round=block["round"], samples=block["samples"], wall_s=tuple(block["wall_s"]), step_s=())
        for block in record.raw["blocks"]
        if block["arm"] == arm
    ]


def _interval(ratios: Sequence[float]) -> str:
    interval = ratio_interval(ratios)
    return NA if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def numbers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each record: samples per second of both loops, and the median ratio of their speeds."""
    return [_numbers(record) if record.status == "ok" else {} for record in records]


def _numbers(record: Record) -> dict[str, Any]:
    ours, bare = (_blocks(record, arm) for arm in ARMS[:2])
    ratios = paired_ratios(throughput_per_round(ours), throughput_per_round(bare))
    rates = {"samples_per_s": throughput_per_s(ours), "bare_samples_per_s": throughput_per_s(bare)}
    return rates | {"speed_of_bare": median(ratios)}
