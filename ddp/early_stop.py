"""When to stop early: pure functions of the results of the complete epochs, so that a resumed run decides alike."""

import math
from typing import Any

DIGITS = 12
"""Decimals of a difference of scores that count."""
Epochs = list[dict[str, Any]]
"""Results in the order of the epochs, each with a `test_score`, of which more is better; None where there is none."""


def score(result: dict[str, Any]) -> float:
    """The score of an epoch; below all others where it has none."""
    value = result["test_score"]
    return -math.inf if value is None else float(value)


def best(epochs: Epochs) -> dict[str, Any] | None:
    """The result with the best score, the earliest among equals; the last one if none has a score; None without any."""
    if epochs and all(result["test_score"] is None for result in epochs):
        return epochs[-1]
    return max(epochs, key=score, default=None)


def exhausted(epochs: Epochs, patience: int, min_delta: float) -> bool:
    """Whether the last `patience` epochs brought no better score than the best before them.

    Better means by more than `min_delta`. A patience of 0 is never exhausted, nor is any where no epoch has a score.
    """
    if patience == 0 or len(epochs) <= patience or all(result["test_score"] is None for result in epochs):
        return False
    before, recent = (max(score(result) for result in part) for part in (epochs[:-patience], epochs[-patience:]))
    # Rounded, since 0.49 is no more than 0.29 better than 0.2, but 0.49 - 0.2 > 0.29.
    return not round(recent - before, DIGITS) > min_delta
