"""What in a scaling study gives reason to trust its numbers less."""

from collections.abc import Sequence

from bench.launch_id import launch_of
from bench.scaling import Measured, Study
from bench.stats import ENOUGH_ROUNDS, slowest_steps_s
from bench.text import plural
from bench.timed_blocks import skipped_steps

ENOUGH_STEPS = 20
ENOUGH_S = 2.0
"""A block should have this many steps or seconds."""
MOST_NAMES = 3
"""Cells that a sentence names."""


def caveats(study: Study) -> list[str]:
    """Sentences; none if there is nothing to say, or if nothing was measured."""
    cells = study.measured
    found: list[str] = []
    if not cells:
        return []
    if study.base is None or not study.base.blocks:
        found.append("No measured single process without DDP, so there is no efficiency.")
    if (rounds := min(cell.rounds for cell in cells)) < ENOUGH_ROUNDS:
        found.append(f"Few rounds ({rounds}, better {ENOUGH_ROUNDS} or more), so intervals are wide or missing.")
    blocks = [block for cell in cells for block in cell.blocks]
    if any(max(block.wall_s) < ENOUGH_S and len(block.step_s[0]) < ENOUGH_STEPS for block in blocks):
        found.append(f"Short blocks (below {ENOUGH_STEPS} steps and {ENOUGH_S:g} s), so noise weighs more.")
    if min(len(slowest_steps_s(cell.blocks)) for cell in cells) < ENOUGH_STEPS:
        found.append(f"Fewer than {ENOUGH_STEPS} steps in a cell, so its p95 is its slowest step.")
    if outside := sum(_is_outside(study, cell) for cell in cells):
        found.append(f"{plural(outside, 'efficiency value')} outside the interval: a few rounds were far slower.")
    found += _apart(study) + _threads(study) + _machine(cells)
    if unreadable := sum(cell.status == "unreadable" for cell in study.cells):
        found.append(f"{plural(unreadable, 'cell')} with numbers that cannot be used.")
    return found


def named(cells: Sequence[Measured]) -> str:
    """The cells by name, the first few of many."""
    names = [cell.name for cell in cells[:MOST_NAMES]]
    left = len(cells) - len(names)
    return "; ".join(names) + (f"; and {plural(left, 'more cell')}" if left > 0 else "")


def _is_outside(study: Study, cell: Measured) -> bool:
    value, interval = study.efficiency(cell, study.base), study.interval(cell)
    if value is None or interval is None:
        return False
    return not interval.low * (1 - 1e-9) <= value <= interval.high * (1 + 1e-9)


def _apart(study: Study) -> list[str]:
    """Cells whose base was measured at another time."""
    told = study.base is not None and launch_of(study.base.record) is not None
    others = [cell for cell in study.unpaired if told or launch_of(cell.record) is not None]
    found = []
    if silent := len(study.unpaired) - len(others):
        found.append(f"{plural(silent, 'cell')} recorded long before or after the base, so rounds do not pair.")
    if others:
        found.append(
            f"Base measured in another launch than {named(others)}: drift of the machine in between may be in the "
            "efficiency."
        )
    return found


def _threads(study: Study) -> list[str]:
    """Cells whose ranks had more or fewer threads than the base."""
    if study.base is None or (own := study.base.record.environment.get("threads_per_rank")) is None:
        return []
    found: dict[str, list[Measured]] = {}
    for cell in study.compared:
        threads = cell.record.environment.get("threads_per_rank")
        if threads is not None and threads != own:
            found.setdefault(str(threads), []).append(cell)
    start, end = f"Threads per rank differ: {own} in the base", "what threads do is in the efficiency"
    return [f"{start}, {threads} in {named(cells)}; {end}." for threads, cells in found.items()]


def _machine(cells: Sequence[Measured]) -> list[str]:
    """Blocks in which something else used the machine, and cells that had not warmed up."""
    doubts = [reasons for cell in cells for reasons in cell.contended or () if reasons]
    blocks = sum(len(cell.blocks) for cell in cells)
    found = []
    if doubts:
        found.append(f"{len(doubts)} of {plural(blocks, 'block')} contended ({doubts[0][0]}, ...).")
    capped = [cell for cell in cells if (cell.record.raw.get("warmup") or {}).get("capped")]
    if capped:
        found.append(f"Step times had not settled when warming up ended: {named(capped)}.")
    if skipping := [cell for cell in cells if skipped_steps(cell.record)]:
        found.append(f"fp16 skipped updates of the weights, whose time the rates lack: {named(skipping)}.")
    return found
