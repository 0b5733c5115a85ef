"""The timed blocks of a record, whatever its case: what gates and trends over time are made of; a pure function."""

import math
from typing import Any

from bench.phases import TRAIN
from bench.record import UNUSABLE, Record
from bench.stats import Block

OWN_ARM = {"train_step": TRAIN, "loop_cost": "ringmark"}
"""Of cases that measure several kinds of blocks: the kind whose speed is the cell's."""


def timed_blocks(record: Record) -> tuple[Block, ...]:
    """Blocks with samples and every rank's wall time; empty if the record has none, or if one cannot be used.

    Blocks of other kinds are left out: the arms of a comparison are no single speed.
    """
    try:
        if record.status != "ok":
            return ()
        own = OWN_ARM.get(record.case)
        ranks = record.cell.get("ranks", 1)
        return tuple(_block(each, ranks) for each in record.raw["blocks"] if each.get("arm") == own)
    except UNUSABLE:
        return ()


def skipped_steps(record: Record) -> int:
    """Updates that fp16 skipped during a record's blocks; 0 also for records from before they were counted."""
    counts = [block.get("skipped_steps") for block in record.raw["blocks"]]
    return sum(count for count in counts if isinstance(count, int))


def _block(block: dict[str, Any], ranks: Any) -> Block:
    wall_s = tuple(float(value) for value in block["wall_s"])
    if len(wall_s) != ranks or block["samples"] < 1 or not all(math.isfinite(each) and each > 0 for each in wall_s):
        raise ValueError(f"expected samples and positive, finite seconds of {ranks} ranks, got {block}")
    return Block(round=int(block["round"]), samples=int(block["samples"]), wall_s=wall_s, step_s=())
