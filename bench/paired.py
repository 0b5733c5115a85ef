"""Two arms that took turns: log ratios of their blocks, an interval, and a verdict that says when it knows nothing.

The block is the sample, never the step: steps within a block are autocorrelated.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bench.intervals import LogInterval, interval

ALPHA = 0.05
"""Share of comparisons one of whose intervals may miss the truth."""
SETTLED = 0.05
"""A window of steps has settled if its median is this close to that of the steps behind it."""
SPIKE = 1.5
"""A step that takes this many times the median is a spike."""

Word = Literal["faster", "slower", "same", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison says of B against A."""

    word: Word
    interval: LogInterval | None
    """Of ln(B / A); None below two pairs."""
    null: LogInterval | None
    """The same of A against itself and of B against itself."""
    why: str = ""
    """What keeps it from a verdict."""


def order(pairs: int, seed: int) -> str:
    """Which arm runs when, as a word of A and B: ABBA and BAAB, each couple of them in an order of its own.

    Raises ValueError for an odd number of pairs. A shorter order is the beginning of a longer one.
    """
    if pairs < 2 or pairs % 2:
        raise ValueError(f"expected an even number of pairs, at least 2, got {pairs}; try {max(2, pairs + pairs % 2)}")
    generator = random.Random(seed)
    words: list[str] = []
    while len(words) < pairs // 2:
        words += generator.choice((["ABBA", "BAAB"], ["BAAB", "ABBA"]))
    return "".join(words[: pairs // 2])


def looks(first: int, most: int) -> tuple[int, ...]:
    """Numbers of pairs after which the data is looked at: each twice the one before, and the most at the end."""
    found = [first]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return tuple(found)


def alpha_at_each(first: int, most: int) -> float:
    """The share of misses that each look is allowed: together they have ALPHA (Bonferroni), so that looking often is no
    way to a verdict. With all of it at the first look, 8 pairs once called equal code slower, by 2.6 % of 0.1 to 5.0 %.
    """
    return ALPHA / len(looks(first, most))


def settled_from(steps_s: Sequence[float]) -> int:
    """How many steps at a block's beginning are warm-up: windows whose median is not yet that of what follows.

    At most a third of the block.
    """
    window = max(2, len(steps_s) // 10)
    start = 0
    while start + window <= len(steps_s) // 3:
        head, rest = median(steps_s[start : start + window]), median(steps_s[start + window :])
        if abs(head / rest - 1.0) <= SETTLED:
            break
        start += window
    return start


def block_statistic_s(step_s: Sequence[Sequence[float]]) -> float:
    """Median seconds of a step, each as long as its slowest rank, without the steps of the block's warm-up."""
    slowest = [max(ranks) for ranks in zip(*step_s, strict=True)]
    return median(slowest[settled_from(slowest) :])


def log_ratios(arms: str, values: Sequence[float]) -> tuple[float, ...]:
    """ln(B / A) of each pair of neighbouring blocks."""
    found = []
    for place in range(0, len(arms) - 1, 2):
        first, second = values[place], values[place + 1]
        found.append(math.log(second / first) if arms[place] == "A" else math.log(first / second))
    return tuple(found)


def null_ratios(arms: str, values: Sequence[float]) -> tuple[float, ...]:
    """What the same measurement says where there is no difference: of each ABBA, A against A and B against B.

    The later block is above the line in one and below it in the next, so that drift cancels as it does between arms.
    """
    found = []
    for number, place in enumerate(range(0, len(arms) - 3, 4)):
        outer = math.log(values[place + 3] / values[place])
        inner = math.log(values[place + 2] / values[place + 1])
        found.append((outer + inner) / 2 * (1 if number % 2 == 0 else -1))
    return tuple(found)


def grouped(values: Sequence[float], size: int) -> tuple[float, ...]:
    """The median of each so many values in a row; what is left at the end and is no whole group is left out."""
    return tuple(median(values[place : place + size]) for place in range(0, len(values) - size + 1, size))


def judge(ratios: Sequence[float], nulls: Sequence[float], alpha: float, margin: float) -> Verdict:
    """What the log ratios of B to A say, with a margin of equivalence as a share: 0.02.

    `same` needs all of the interval within the margin (two one-sided tests). `slower` and `faster` need all of it on
    one side of zero, and a mean beyond the margin. Where the null's interval leaves zero out, the same code differs
    from itself, and the mean must lie beyond all of that interval too. A null whose interval holds zero keeps nothing
    from a verdict, however wide it is: its blocks lie further apart than those of a pair, so it is less sure.
    """
    found, null = interval(ratios, alpha), interval(nulls, alpha)
    if found is None:
        return Verdict(word="inconclusive", interval=None, null=null, why="there are fewer than two pairs")
    if found.within(margin):
        return Verdict(word="same", interval=found, null=null)
    size = abs(found.mean)
    if found.low <= 0 <= found.high or size <= math.log1p(margin):
        reaches = "both faster and slower" if found.low <= 0 <= found.high else "over the margin"
        return Verdict(word="inconclusive", interval=found, null=null, why=f"the interval reaches {reaches}")
    reach = _reach(null)
    if size <= reach:
        amount = f"{100 * math.expm1(reach):.1f} %" if math.isfinite(reach) else "an unknown amount"
        why = f"this machine is too noisy: the same code differs from itself by up to {amount}"
        return Verdict(word="inconclusive", interval=found, null=null, why=why)
    return Verdict(word="slower" if found.low > 0 else "faster", interval=found, null=null)


def _reach(null: LogInterval | None) -> float:
    """How far the same code is known to differ from itself: 0 where its interval holds zero."""
    if null is None:
        return math.inf
    return 0.0 if null.low <= 0.0 <= null.high else max(null.high, -null.low)


def spikes(step_s: Sequence[Sequence[float]]) -> int:
    """Steps of a block, each as long as its slowest rank, beyond SPIKE medians.

    Not by rank: whoever is late, its all-reduce makes the others wait, and all steps are long.
    """
    slowest = [max(ranks) for ranks in zip(*step_s, strict=True)]
    limit = SPIKE * median(slowest)
    return sum(value > limit for value in slowest)
