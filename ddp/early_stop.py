"""When to stop early: pure functions of the results of the complete epochs, so that a resumed run decides alike."""

from typing import Any

Epochs = list[dict[str, Any]]
"""Results in the order of the epochs, each with `test_correct` and `test_samples`."""


def best(epochs: Epochs) -> dict[str, Any] | None:
    """The result with the most correct test samples, the earliest among equals; None without any."""
    return max(epochs, key=lambda result: result["test_correct"], default=None)


def exhausted(epochs: Epochs, patience: int, min_delta: float) -> bool:
    """Whether the last `patience` epochs brought no better accuracy than the best before them.

    Better means by more than `min_delta`, a share of the test samples. A patience of 0 is never exhausted.
    """
    if patience == 0 or len(epochs) <= patience:
        return False
    before, recent = (
        max(result["test_correct"] for result in part) for part in (epochs[:-patience], epochs[-patience:])
    )
    # A division rounds as a decimal does when it is read: 29 of 100 is no more than 0.29, but 29 > 0.29 * 100.
    return not (recent - before) / epochs[-1]["test_samples"] > min_delta
