"""Two arms that took turns: log ratios of their blocks, an interval, and a verdict that says when it knows nothing.

The block is the sample, never the step: steps within a block are autocorrelated.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

FEW_PAIRS = 10
"""Below this the interval is Student's; from here on it is bootstrapped."""
ALPHA = 0.05
"""Share of intervals that may miss the truth at the first look; each further look halves it."""
RESAMPLES = 9999
SETTLED = 0.05
"""A window of steps has settled if its median is this close to that of the steps behind it."""
SPIKE = 1.5
"""A step that takes this many times the median is a spike."""

Word = Literal["faster", "slower", "same", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class LogInterval:
    """A confidence interval of a mean log ratio."""

    low: float
    mean: float
    high: float
    count: int
    """Ratios behind it."""
    alpha: float

    @property
    def width(self) -> float:
        """High end minus low end, as ratios: 0.02 is two percent."""
        return math.exp(self.high) - math.exp(self.low)

    def within(self, margin: float) -> bool:
        """Whether all of it is within the margin, which is a share: 0.02 reaches from 1 / 1.02 to 1.02."""
        return -math.log1p(margin) < self.low and self.high < math.log1p(margin)


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


def alpha_at(pairs: int, first: int, most: int) -> float:
    """The share of misses that is allowed after so many pairs: halved at each look, so that looking often is no way."""
    return ALPHA / 2.0 ** sum(look < pairs for look in looks(first, most))


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


def interval(logs: Sequence[float], alpha: float) -> LogInterval | None:
    """The interval of the mean that misses it in a share `alpha` of cases; None below two values.

    Student's t below FEW_PAIRS values, else the bootstrap, bias-corrected and accelerated (Efron 1987), over pairs.
    """
    if len(logs) < 2:
        return None
    count = len(logs)
    mean = math.fsum(logs) / count
    spread = max(logs) - min(logs)
    if spread <= 1e-12 * max(1.0, abs(mean)):
        return LogInterval(low=mean, mean=mean, high=mean, count=count, alpha=alpha)
    low, high = _student(logs, mean, alpha) if count < FEW_PAIRS else _bootstrap(logs, alpha)
    return LogInterval(low=low, mean=mean, high=high, count=count, alpha=alpha)


def _student(logs: Sequence[float], mean: float, alpha: float) -> tuple[float, float]:
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # here, since scipy takes a while to load

    count = len(logs)
    variance = math.fsum((value - mean) ** 2 for value in logs) / (count - 1)
    half = float(stdtrit(count - 1, 1 - alpha / 2)) * math.sqrt(variance / count)
    return mean - half, mean + half


def _bootstrap(logs: Sequence[float], alpha: float) -> tuple[float, float]:
    import numpy as np
    from scipy.stats import bootstrap  # type: ignore[import-untyped]

    # A generator of its own, so that the same record gives the same interval again.
    found = bootstrap(
        (np.asarray(logs),),
        np.mean,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1000,  # a few megabytes at a time, even for a thousand pairs
        confidence_level=1 - alpha,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def judge(ratios: Sequence[float], nulls: Sequence[float], alpha: float, margin: float) -> Verdict:
    """What the log ratios of B to A say, with a margin of equivalence as a share: 0.02.

    `same` needs all of the interval within the margin (two one-sided tests). `slower` and `faster` need all of it on
    one side of zero, and a mean beyond the margin that is also larger than any difference that the same code may have
    shown from itself.
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
    reach = math.inf if null is None else max(null.high, -null.low)
    if size <= reach:
        amount = f"{100 * math.expm1(reach):.1f} %" if math.isfinite(reach) else "an unknown amount"
        why = f"this machine is too noisy: the same code may differ from itself by {amount}"
        return Verdict(word="inconclusive", interval=found, null=null, why=why)
    return Verdict(word="slower" if found.low > 0 else "faster", interval=found, null=null)


def spikes(step_s: Sequence[Sequence[float]]) -> tuple[int, int]:
    """(system-wide, of one rank or some): steps beyond SPIKE medians on all ranks, and on fewer than all.

    A step of a single rank cannot be told apart, and counts as system-wide.
    """
    limits = [SPIKE * median(steps) for steps in step_s]
    whole = partial = 0
    for ranks in zip(*step_s, strict=True):
        late = sum(value > limit for value, limit in zip(ranks, limits, strict=True))
        whole += late == len(ranks)
        partial += 0 < late < len(ranks)
    return whole, partial
