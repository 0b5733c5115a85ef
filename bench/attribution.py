"""Where the efficiency went: what a step loses at N ranks against one process without DDP, in parts that add up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.phases import (
    DATA,
    H2D,
    LOCAL,
    NO_SYNC,
    TRAIN,
    WAIT,
    StepBlock,
    free_steps_s,
    mean_step_s,
    of_arm,
    over_blocks,
)
from bench.stats import nearest_rank
from bench.text import number, percent, plural

ENOUGH = 0.02
"""A loss below this share of a step is none to explain, and an unexplained part above it is said."""
NOTABLE = 0.1
"""So is an unexplained part above this share of the loss, if there is one to explain."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One reason why a step takes longer at N ranks."""

    name: str
    seconds: float
    """Per step; below zero where N ranks are faster."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """The loss of N ranks against the base, taken apart.

    Weak scaling: both have the same batch per rank. Strong: the same batch of all ranks together, so that each rank
    has a share of the base's work, and ought to need that share of its time.
    """

    ranks: int
    share: float
    """A rank's batch over the base's: 1 in weak scaling, 1 / ranks in strong scaling."""
    base_step_s: float
    """The base's step times `share`."""
    step_s: float
    parts: tuple[Part, ...]
    """Measured ones first; the last one is what they leave unexplained. They add up to `loss_s`."""

    @property
    def loss_s(self) -> float:
        """Seconds by which a step takes longer than the base's."""
        return self.step_s - self.base_step_s

    @property
    def efficiency(self) -> float:
        """The base's step time, or its share, over that of N ranks."""
        return self.base_step_s / self.step_s

    @property
    def kind(self) -> str:
        """Weak or strong scaling."""
        return "weak" if self.share == 1 else "strong"

    @property
    def unexplained_s(self) -> float:
        """What the measured parts leave."""
        return self.parts[-1].seconds

    @property
    def doubt(self) -> str:
        """What is to be said of the unexplained part; empty if it is a small part of the step, and of the loss."""
        of_step, of_loss = abs(self.unexplained_s) / self.step_s, 0.0
        if abs(self.loss_s) > ENOUGH * self.step_s:
            of_loss = abs(self.unexplained_s / self.loss_s)
        if of_step <= ENOUGH and of_loss <= NOTABLE:
            return ""
        share = f", {percent(of_loss)} of the loss," if of_loss else ""
        return f"{percent(of_step)} of a step{share} stays unexplained, spikes or drift"

    @property
    def largest(self) -> Part:
        """The part that costs most."""
        return max(self.parts, key=lambda part: part.seconds)

    @property
    def is_loss(self) -> bool:
        """Whether there is a loss to speak of."""
        return self.loss_s > ENOUGH * self.step_s

    @property
    def sentence(self) -> str:
        """What a person should remember."""
        times = f"a step takes {number(1e3 * self.step_s)} ms instead of {number(1e3 * self.base_step_s)} ms"
        start = (
            f"At {plural(self.ranks, 'rank')} {times} ({percent(self.efficiency)} efficiency of {self.kind} scaling)"
        )
        if not self.is_loss:
            return f"{start}: there is no loss to speak of."
        worst = self.largest
        share = f"{number(1e3 * worst.seconds)} ms, {percent(worst.seconds / self.loss_s)} of the loss"
        return f"{start}; the largest share is {worst.name}: {share}."


UNEXPLAINED = "unexplained"
STRAGGLERS, COMMUNICATION, SYNC_BN = "stragglers", "exposed communication", "SyncBN"
DATA_WAIT, KERNELS = "data wait", "slower computing at N ranks"
MEANINGS = {
    DATA_WAIT: "batches and their copies, on a typical rank, beyond the base's",
    KERNELS: "forward, backward and update of a typical rank that waits for nobody: cores, memory or power shared, and "
    "in strong scaling a smaller batch, which no device works off as fast",
    SYNC_BN: "steps without the gradients' communication, with SyncBN minus without",
    STRAGGLERS: "what the others wait for the latest rank",
    COMMUNICATION: "step minus the same without communication, less the waits for late ranks",
    UNEXPLAINED: "spikes and drift: means of whole blocks against medians of steps",
}


def attribute(base: Sequence[StepBlock], blocks: Sequence[StepBlock]) -> Attribution | None:
    """Compare N ranks with the base of the same batch, per rank or of all; None if either lacks what it takes.

    The steps compared are: the base's; a typical rank's and the slowest rank's without any communication; with that of
    SyncBN; training. Each part is the difference between two of them, so their sum is the whole difference; throughput
    follows from means, which medians do not add up to, and that difference is the part that stays unexplained.
    """
    alone, train, no_sync = of_arm(base, TRAIN), of_arm(blocks, TRAIN), of_arm(blocks, NO_SYNC)
    if not alone or alone[0].ranks != 1 or not train or not no_sync:
        return None
    local = of_arm(blocks, LOCAL) or no_sync
    share = _batch(train[0]) / _batch(alone[0])
    free = free_steps_s(local)
    typical_s = nearest_rank(free, 50)
    rank = free.index(typical_s)
    base_s = share * over_blocks(alone, lambda block: median(block.slowest_s))
    step_s = over_blocks(train, lambda block: median(block.slowest_s))
    data_s = _data_s(local, rank) - share * _data_s(alone, 0)
    sync_bn_s = max(free_steps_s(no_sync)) - max(free) if of_arm(blocks, LOCAL) else 0.0
    steady_s = max(free) - typical_s
    exposed_s = step_s - max(free_steps_s(no_sync))
    random_s = min(max(0.0, exposed_s), max(0.0, _waits_for_late_s(train) - steady_s))
    parts = [
        Part(name=DATA_WAIT, seconds=data_s),
        Part(name=KERNELS, seconds=typical_s - base_s - data_s),
        *([Part(name=SYNC_BN, seconds=sync_bn_s)] if of_arm(blocks, LOCAL) else []),
        Part(name=STRAGGLERS, seconds=steady_s + random_s),
        Part(name=COMMUNICATION, seconds=exposed_s - random_s),
    ]
    base_mean_s, mean_s = share * mean_step_s(alone), mean_step_s(train)
    explained_s = math.fsum(part.seconds for part in parts)
    parts.append(Part(name=UNEXPLAINED, seconds=mean_s - base_mean_s - explained_s))
    return Attribution(ranks=train[0].ranks, share=share, base_step_s=base_mean_s, step_s=mean_s, parts=tuple(parts))


def _batch(block: StepBlock) -> float:
    """Samples of one rank in a step."""
    return block.samples / (block.ranks * len(block.step_s[0]))


def _data_s(blocks: Sequence[StepBlock], rank: int) -> float:
    def times(block: StepBlock) -> float:
        return median(map(sum, zip(block.of(DATA, rank), block.of(H2D, rank), strict=True)))

    return over_blocks(blocks, times)


def _waits_for_late_s(train: Sequence[StepBlock]) -> float:
    """What a typical rank waits longer than the one that came last, per step; 0 if waits are not known."""
    if any(WAIT not in block.phase_s for block in train):
        return 0.0

    def late(block: StepBlock) -> float:
        steps = zip(*block.phase_s[WAIT], strict=True)
        # Counted from the longest wait: who works as long as a typical rank waits as long as one.
        return median(-nearest_rank([-wait for wait in waits], 50) - min(waits) for waits in steps)

    return over_blocks(train, late)
