"""When a run has warmed up: two windows of steps in a row agree and show no trend; pure functions."""

import math
from collections.abc import Sequence
from statistics import median

LEAST = 5
"""Steps that are never looked at: DDP arranges its buckets anew, allocators and caches fill."""
WINDOW = 10
"""Steps in a window."""
TOLERANCE = 0.02
"""How far the medians of the two windows may differ, as a share."""
SIGNIFICANT = 1.96
"""Standard deviations of Mann and Kendall's statistic from which on a trend is taken for one: 5 %, two-sided."""


def trend(values: Sequence[float]) -> float:
    """Standard deviations by which values rise (or fall, if negative) more often than chance would have them.

    Source: Mann, "Nonparametric tests against trend", Econometrica 1945; Kendall, "Rank Correlation Methods".
    """
    count = len(values)
    if count < 3:
        return 0.0
    pairs = ((a, b) for place, a in enumerate(values) for b in values[place + 1 :])
    score = sum((b > a) - (b < a) for a, b in pairs)
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return (score - (score > 0) + (score < 0)) / deviation


def settled(step_s: Sequence[float]) -> bool:
    """Whether the last two windows of these steps, counted from the very first, are alike."""
    if len(step_s) < LEAST + 2 * WINDOW:
        return False
    last = step_s[-2 * WINDOW :]
    before, after = median(last[:WINDOW]), median(last[WINDOW:])
    return abs(after - before) <= TOLERANCE * before and abs(trend(last)) < SIGNIFICANT
