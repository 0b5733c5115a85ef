"""The parts of a training step: what every rank's clock saw of them, and what follows from it; pure functions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.stats import nearest_rank

DATA, H2D, FORWARD, BACKWARD, ISSUE, WAIT, OPTIMIZER = (
    *("data", "h2d", "forward", "backward", "issue", "wait", "optimizer"),
)
"""Waiting for a batch; its copy to the device; loss; gradients; handing buckets over; waiting for them; the update."""
PHASES = (DATA, H2D, FORWARD, BACKWARD, ISSUE, WAIT, OPTIMIZER)
OWN = (DATA, H2D, FORWARD, BACKWARD, ISSUE, OPTIMIZER)
"""What a rank does by itself: all but waiting for the others."""
STEP = "step"
"""Mark of a step's end; what lies before it belongs to the optimizer."""
TRAIN, NO_SYNC, LOCAL = "train", "no_sync", "local"
"""Kinds of blocks: training as it is; without the gradients' communication; without that of SyncBN either."""
CHRONIC = 0.03
"""A rank whose median lateness is a larger share of the step is a straggler, else it had a few slow steps."""
SPIKE = 1.5
"""A step longer than this many medians is a spike."""

WORDS = {
    DATA: "data wait",
    H2D: "host to device",
    FORWARD: "forward",
    BACKWARD: "backward",
    ISSUE: "communication",
    WAIT: "waiting for other ranks",
    OPTIMIZER: "optimizer",
}


@dataclass(frozen=True, kw_only=True)
class StepBlock:
    """Consecutive steps of one kind between two barriers, as every rank's clock saw them."""

    round: int
    arm: str
    """TRAIN, NO_SYNC or LOCAL."""
    samples: int
    """Of all ranks together."""
    wall_s: tuple[float, ...]
    """Seconds of the whole block, per rank."""
    phase_s: dict[str, tuple[tuple[float, ...], ...]]
    """Phase -> rank -> seconds in each step; a phase that never occurred is left out."""

    @property
    def ranks(self) -> int:
        """How many took part."""
        return len(self.wall_s)

    @property
    def step_s(self) -> tuple[tuple[float, ...], ...]:
        """Rank -> seconds of each step."""
        return tuple(
            tuple(math.fsum(parts) for parts in zip(*(ranks[rank] for ranks in self.phase_s.values()), strict=True))
            for rank in range(self.ranks)
        )

    @property
    def slowest_s(self) -> tuple[float, ...]:
        """Seconds of each step on the rank that needed longest."""
        return tuple(max(ranks) for ranks in zip(*self.step_s, strict=True))

    def of(self, phase: str, rank: int) -> tuple[float, ...]:
        """Seconds of one phase in each step of one rank; zeros if it never occurred."""
        ranks = self.phase_s.get(phase)
        return ranks[rank] if ranks is not None else (0.0,) * len(next(iter(self.phase_s.values()))[rank])


def by_step(names: Sequence[str], seconds: Sequence[float]) -> dict[str, list[float]]:
    """Intervals, each named by the mark at its end -> phase -> seconds in each step. A mark STEP ends a step."""
    found: dict[str, list[float]] = {}
    step = 0
    for name, interval_s in zip(names, seconds, strict=True):
        times = found.setdefault(OPTIMIZER if name == STEP else name, [])
        times.extend([0.0] * (step + 1 - len(times)))
        times[step] += interval_s
        step += name == STEP
    return {name: times + [0.0] * (step - len(times)) for name, times in found.items()}


def read_blocks(raw: dict[str, Any], ranks: int) -> tuple[StepBlock, ...]:
    """The blocks of a train_step record. Raises KeyError, TypeError or ValueError if they are not as they should be."""
    blocks = tuple(
        StepBlock(
            round=int(block["round"]),
            arm=str(block["arm"]),
            samples=int(block["samples"]),
            wall_s=tuple(float(value) for value in block["wall_s"]),
            phase_s={
                str(name): tuple(tuple(float(value) for value in steps) for steps in times)
                for name, times in block["phase_s"].items()
            },
        )
        for block in raw["blocks"]
    )
    for block in blocks:
        lengths = {len(steps) for times in block.phase_s.values() for steps in times}
        if len(block.wall_s) != ranks or {len(times) for times in block.phase_s.values()} != {ranks}:
            raise ValueError(f"expected times of {ranks} ranks in round {block.round}")
        if len(lengths) != 1 or 0 in lengths or block.samples < 1:
            raise ValueError(f"expected equally many steps, at least one, in round {block.round}")
        values = [*block.wall_s, *(value for times in block.phase_s.values() for steps in times for value in steps)]
        if not all(math.isfinite(value) and value >= 0 for value in values) or min(block.wall_s) <= 0:
            raise ValueError(f"expected finite seconds in round {block.round}")
    if not any(block.arm == TRAIN for block in blocks):
        raise ValueError("expected at least one block of training, got none")
    return blocks


def of_arm(blocks: Sequence[StepBlock], arm: str) -> list[StepBlock]:
    """The blocks of one kind."""
    return [block for block in blocks if block.arm == arm]


def over_blocks(blocks: Sequence[StepBlock], value: Callable[[StepBlock], float]) -> float:
    """Median over blocks of what each block says: blocks, not steps, are the sample."""
    return median(value(block) for block in blocks)


def mean_step_s(blocks: Sequence[StepBlock]) -> float:
    """Seconds per step: all time over all steps, of the slowest rank of each block. What throughput follows from."""
    return math.fsum(max(block.wall_s) for block in blocks) / sum(len(block.step_s[0]) for block in blocks)


def critical_ranks(block: StepBlock) -> tuple[int, ...]:
    """The rank that each step had to wait for: the one that waited least, or without waits the slowest one."""
    ranks = range(block.ranks)
    if WAIT in block.phase_s:
        return tuple(min(ranks, key=waits.__getitem__) for waits in zip(*block.phase_s[WAIT], strict=True))
    return tuple(max(ranks, key=times.__getitem__) for times in zip(*block.step_s, strict=True))


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Where a step's time goes on one rank, or on the rank that each step had to wait for; the parts add up."""

    step_s: float
    parts_s: dict[str, float]
    """DATA, H2D, FORWARD, BACKWARD and OPTIMIZER -> seconds; backward without the exposed communication."""
    exposed_s: float | None
    """Step time minus that without communication; None if that was not measured."""

    @property
    def rest_s(self) -> float:
        """What medians of parts leave of the median step."""
        return self.step_s - math.fsum(self.parts_s.values()) - (self.exposed_s or 0.0)


def breakdown(blocks: Sequence[StepBlock], rank: int | None = None) -> Breakdown:
    """A rank's step, or with None that of the critical rank of each step. Medians of steps, then of blocks.

    Exposed communication pairs the blocks of a round: with communication minus without, on the same rank, or with None
    on the slowest ones.
    """
    train = of_arm(blocks, TRAIN)

    def times(block: StepBlock, phases: Sequence[str]) -> float:
        chosen = critical_ranks(block) if rank is None else (rank,) * len(block.step_s[0])
        columns = [[block.of(phase, each) for each in range(block.ranks)] for phase in phases]
        return median(math.fsum(column[which][step] for column in columns) for step, which in enumerate(chosen))

    def step(block: StepBlock) -> float:
        return median(block.slowest_s if rank is None else block.step_s[rank])

    exposed_s = _exposed(blocks, step, rank)
    parts = {name: over_blocks(train, lambda block, name=name: times(block, (name,))) for name in PHASES}  # type: ignore[misc]
    gradients_s = over_blocks(train, lambda block: times(block, (BACKWARD, ISSUE, WAIT)))
    parts[BACKWARD] = gradients_s - (exposed_s or 0.0)
    del parts[ISSUE], parts[WAIT]
    return Breakdown(step_s=over_blocks(train, step), parts_s=parts, exposed_s=exposed_s)


def _exposed(blocks: Sequence[StepBlock], step: Callable[[StepBlock], float], rank: int | None) -> float | None:
    alone = {block.round: _free_running(block, rank) for block in of_arm(blocks, NO_SYNC)}
    pairs = [step(block) - alone[block.round] for block in of_arm(blocks, TRAIN) if block.round in alone]
    return median(pairs) if pairs else None


def _free_running(block: StepBlock, rank: int | None) -> float:
    """Median step of a block in which ranks do not wait for each other: of one rank, or of the slowest."""
    medians = [median(steps) for steps in block.step_s]
    return max(medians) if rank is None else medians[rank]


def free_steps_s(blocks: Sequence[StepBlock]) -> list[float]:
    """Rank -> seconds of a step in blocks without communication: medians of steps, then of blocks."""
    return [
        over_blocks(blocks, lambda block, rank=rank: _free_running(block, rank))  # type: ignore[misc]
        for rank in range(blocks[0].ranks)
    ]


def lateness_s(blocks: Sequence[StepBlock]) -> list[float] | None:
    """Rank -> how much later than the first rank it was, per step; None if nothing tells.

    All ranks leave a collective together, so the one that came last waited least: max over ranks of the wait, minus its
    own. With SyncBN they meet in every layer instead, and steps without any communication are compared.
    """
    train, local = of_arm(blocks, TRAIN), of_arm(blocks, LOCAL)
    if local:
        steps = free_steps_s(local)
        return [each - min(steps) for each in steps]
    if not train or train[0].ranks < 2 or any(WAIT not in block.phase_s for block in train):
        return None

    def late(block: StepBlock, rank: int) -> float:
        return median(max(waits) - waits[rank] for waits in zip(*block.phase_s[WAIT], strict=True))

    return [over_blocks(train, lambda block, rank=rank: late(block, rank)) for rank in range(train[0].ranks)]  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """The rank that the others wait for."""

    rank: int
    late_s: float
    """Per step, against the rank that waits longest."""
    phase: str
    """Where it spends more than the others: one of OWN."""
    chronic: bool
    """False if it is too little to speak of."""


def straggler(blocks: Sequence[StepBlock]) -> Straggler | None:
    """The rank that waits least, and the phase in which it is slower than the fastest other; None if unknown."""
    late = lateness_s(blocks)
    if late is None:
        return None
    rank = max(range(len(late)), key=late.__getitem__)
    seen = of_arm(blocks, LOCAL) or of_arm(blocks, TRAIN)

    def excess(phase: str) -> float:
        means = [over_blocks(seen, lambda block, each=each: median(block.of(phase, each))) for each in range(len(late))]  # type: ignore[misc]
        return means[rank] - min(value for each, value in enumerate(means) if each != rank)

    step_s = over_blocks(of_arm(blocks, TRAIN), lambda block: median(block.slowest_s))
    return Straggler(rank=rank, late_s=late[rank], phase=max(OWN, key=excess), chronic=late[rank] > CHRONIC * step_s)


def spikes(block: StepBlock) -> list[str]:
    """What each spike of a block was: `all ranks`, `rank N`, or `communication` if no rank itself was slower.

    A rank that is late ends its own step late and makes the others' next step longer: such pairs count once.
    """
    usual_s = median(block.slowest_s)
    own = [
        [math.fsum(parts) for parts in zip(*(block.of(phase, rank) for phase in OWN), strict=True)]
        for rank in range(block.ranks)
    ]
    usual_own = [median(times) for times in own]
    found: list[tuple[int, str]] = []
    for number, step_s in enumerate(block.slowest_s):
        if step_s <= SPIKE * usual_s:
            continue
        half = (step_s - usual_s) / 2
        extra = [times[number] - usual for times, usual in zip(own, usual_own, strict=True)]
        waits = [block.of(WAIT, rank)[number] for rank in range(block.ranks)]
        kind = "communication"
        if min(extra) > half:
            kind = "all ranks"
        elif max(extra) > half:
            kind = f"rank {extra.index(max(extra))}"
        elif max(waits) - min(waits) > half:
            kind = f"rank {waits.index(min(waits))}"
        if not (found and found[-1] == (number - 1, kind) and kind.startswith("rank")):
            found.append((number, kind))
    return [kind for _, kind in found]


def percentiles_s(blocks: Sequence[StepBlock], rank: int | None = None) -> tuple[list[float], int]:
    """p50, p95, p99 and the maximum of steps in seconds, of one rank or with None of the slowest one; and how many."""
    train = of_arm(blocks, TRAIN)
    steps = [step for block in train for step in (block.slowest_s if rank is None else block.step_s[rank])]
    return [nearest_rank(steps, percent) for percent in (50, 95, 99, 100)], len(steps)
