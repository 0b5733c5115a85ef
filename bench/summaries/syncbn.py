"""What SyncBatchNorm costs: the time of a step with it over the time of a step without, round by round."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.launch_id import launch_of
from bench.record import Record
from bench.section import Fact, Section, Table
from bench.stats import ENOUGH_ROUNDS, paired_ratios, ratio_interval, unpaired_interval
from bench.text import NA, number, percent, plural, value_text

COLUMNS = (
    "model",
    "ranks",
    "batch per rank",
    "BatchNorm step ms",
    "SyncBatchNorm step ms",
    "cost ms",
    "time ratio (95 % interval)",
    "rounds",
    "status",
)
NOTE = (
    "A step takes as long as on its slowest rank. Step: median over rounds of each round's median. Ratio: geometric "
    "mean over rounds of SyncBatchNorm's median step over BatchNorm's of the same round, which took turns in the same "
    "processes; above 1 SyncBatchNorm is slower."
)


def summarise(records: Sequence[Record]) -> Section:
    """One row per model and setting that has both."""
    pairs: dict[str, dict[bool, Record]] = {}
    for record in records:
        setting = {name: value for name, value in record.cell.items() if name != "sync_bn"}
        pairs.setdefault(value_text(setting), {})[bool(record.cell.get("sync_bn"))] = record
    found = [_compared(pair) for pair in pairs.values()]
    table = Table(title="Cost of SyncBatchNorm", columns=COLUMNS, rows=tuple(row for row, _, _ in found), note=NOTE)
    return Section(
        facts=tuple(fact for _, fact, _ in found if fact is not None),
        tables=(table,),
        caveats=tuple(dict.fromkeys(caveat for _, _, caveat in found if caveat)),
    )


def medians_s(record: Record) -> dict[int, float]:
    """Round -> the median step of the block, each step as long as on its slowest rank."""
    found: dict[int, float] = {}
    blocks: list[dict[str, Any]] = record.raw.get("blocks") or []
    for block in blocks:
        found[block["round"]] = median(max(ranks) for ranks in zip(*block["step_s"], strict=True))
    return found


def _compared(pair: dict[bool, Record]) -> tuple[tuple[str, ...], Fact | None, str]:
    """The row, the line of the verdict and a caveat or nothing, of a model without and with SyncBatchNorm."""
    cell = next(iter(pair.values())).cell
    names = tuple(value_text(cell.get(name)) for name in ("model", "ranks", "batch_per_rank"))
    steps = {sync_bn: medians_s(record) for sync_bn, record in pair.items() if record.status == "ok"}
    ms = [number(1e3 * median(steps[kind].values())) if steps.get(kind) else NA for kind in (False, True)]
    if not (steps.get(False) and steps.get(True)):
        failed = [f"{record.status}: {value_text(record.error)}" for record in pair.values() if record.status != "ok"]
        return (*names, *ms, NA, NA, NA, "; ".join(failed) or "only one of the two was measured"), None, ""
    shared = sorted(steps[True].keys() & steps[False].keys())
    costs_ms = [1e3 * (steps[True][each] - steps[False][each]) for each in shared]
    interval, count = ratio_interval(paired_ratios(steps[True], steps[False])), len(shared)
    caveats = []
    if len({launch_of(record) for record in pair.values()}) > 1:  # rounds with one number were not neighbours
        both = [list(steps[kind].values()) for kind in (True, False)]
        costs_ms = [1e3 * (median(both[0]) - median(both[1]))]
        interval, count = unpaired_interval(*both), min(map(len, both))
        caveats.append(f"SyncBatchNorm and BatchNorm of {names[0]} were measured in two launches: drift may be in it.")
    if interval is None:
        ratio, value = NA, NA
    else:
        ratio = f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"
        value = f"{percent(interval.mean - 1)} of a step ({percent(interval.low - 1)} to {percent(interval.high - 1)})"
    cost = number(median(costs_ms)) if costs_ms else NA
    row = (*names, *ms, cost, ratio, str(count), "ok")
    details = (
        f"{names[0]}, {names[1]} ranks, batch {names[2]} per rank",
        f"{cost} ms per step",
        plural(count, "round"),
    )
    if count < ENOUGH_ROUNDS:
        caveats.append(f"Few rounds ({count}, better {ENOUGH_ROUNDS} or more) behind the cost of SyncBatchNorm.")
    return row, Fact(label="SyncBatchNorm", value=value, details=details), " ".join(caveats)


def numbers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each record: seconds of a median step."""
    return [{"step_p50_s": median(steps_s)} if (steps_s := medians_s(record).values()) else {} for record in records]
