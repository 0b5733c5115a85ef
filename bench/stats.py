"""The arithmetic of the report: rates, efficiencies, percentiles, intervals; pure functions, units in the names."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.intervals import LogInterval, difference, interval

ENOUGH_ROUNDS = 6
"""Below this, an interval says little; our simulation of drifting machines found 8 pairs enough to see 2 %."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive training steps between two barriers, as every rank's clock saw them."""

    round: int
    """Blocks of different cells with the same round were measured beside each other."""
    samples: int
    """Samples of all ranks together."""
    wall_s: tuple[float, ...]
    """Seconds of the whole block, per rank."""
    step_s: tuple[tuple[float, ...], ...]
    """Seconds of each step, per rank."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % confidence interval of a mean ratio."""

    low: float
    mean: float
    """Geometric mean of the ratios."""
    high: float
    count: int
    """Ratios behind it."""


def throughput_per_s(blocks: Iterable[Block]) -> float:
    """Samples per second over all blocks: all samples / sum of the slowest rank's wall times, never a mean of rates.

    Raises ValueError without blocks. Source: Hoefler and Belli, SC'15, rule 3 (rates: summarise the costs).
    """
    blocks = tuple(blocks)
    if not blocks:
        raise ValueError("expected at least one block, got none; a rate needs a measurement")
    return sum(block.samples for block in blocks) / sum(max(block.wall_s) for block in blocks)


def throughput_per_round(blocks: Iterable[Block]) -> dict[int, float]:
    """Samples per second of each round; blocks that share a round are added up first."""
    rounds: dict[int, list[Block]] = {}
    for block in blocks:
        rounds.setdefault(block.round, []).append(block)
    return {number: throughput_per_s(members) for number, members in rounds.items()}


def slowest_steps_s(blocks: Iterable[Block]) -> tuple[float, ...]:
    """Seconds of every step, each counted as the maximum over ranks: a step ends when the last rank ends."""
    return tuple(max(ranks) for block in blocks for ranks in zip(*block.step_s, strict=True))


def nearest_rank(values: Sequence[float], percent: float) -> float:
    """The smallest value with at least `percent` % of the values at or below it; always a value that was measured.

    Raises ValueError for no values or a percentage outside (0, 100]. Source: Hyndman and Fan 1996, definition 1.
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"expected values and a percentage in (0, 100], got {len(values)} values and {percent} %")
    return sorted(values)[math.ceil(percent * len(values) / 100) - 1]


def efficiency(rate_per_s: float, ranks: int, base_rate_per_s: float) -> float:
    """X(n) / (n X_base), 1.0 is ideal.

    Weak scaling if both sides have the same batch per rank. With the same global batch it is strong scaling's S / n,
    where S = T_base / T(n), since T = global batch / X. Source: Gustafson 1988; Amdahl 1967.
    """
    if ranks < 1 or base_rate_per_s <= 0:
        raise ValueError(
            f"expected ranks of at least 1 and a positive base, got {ranks} ranks, {base_rate_per_s} per s"
        )
    return rate_per_s / (ranks * base_rate_per_s)


def paired_ratios(numerators: Mapping[int, float], denominators: Mapping[int, float]) -> tuple[float, ...]:
    """Ratio per round, for the rounds that both sides have, in the order of rounds."""
    return tuple(
        numerators[number] / denominators[number] for number in sorted(numerators.keys() & denominators.keys())
    )


def ratio_interval(ratios: Sequence[float]) -> Interval | None:
    """95 % interval of the geometric mean; None below two ratios, where nothing is known of the spread.

    The round is the sample, not the step: steps within a block are autocorrelated.
    """
    return _as_ratios(interval([math.log(ratio) for ratio in ratios], 0.05))


def unpaired_interval(rates: Sequence[float], base_rates: Sequence[float]) -> Interval | None:
    """95 % interval of the ratio of two geometric means, whose rounds were not measured beside each other.

    None below two rounds of either side.
    """
    now, then = ([math.log(rate) for rate in each] for each in (rates, base_rates))
    return _as_ratios(difference(now, then, 0.05))


def _as_ratios(found: LogInterval | None) -> Interval | None:
    if found is None:
        return None
    low, mean, high = (math.exp(log) for log in (found.low, found.mean, found.high))
    return Interval(low=low, mean=mean, high=high, count=found.count)


def distribution(values: Sequence[float], points: int = 200) -> tuple[tuple[float, float], ...]:
    """Empirical distribution: (value, share of values at or below it), thinned to at most about `points` pairs."""
    ordered = sorted(values)
    count = len(ordered)
    stride = max(1, math.ceil(count / points))
    kept = sorted({*range(0, count, stride), count - 1} - {-1})
    return tuple((ordered[index], (index + 1) / count) for index in kept)
