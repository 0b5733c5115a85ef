"""Early stopping: the best epoch, and when the patience for a better one is over."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp.early_stop import best, exhausted

COUNTS = st.lists(st.integers(0, 100), max_size=12)
"""Correct test samples of each epoch, of 100."""
DELTAS = st.integers(0, 30).map(lambda percent: percent / 100)


def epochs_of(counts: list[int]) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "test_score": correct / 100, "test_loss": 1.0} for epoch, correct in enumerate(counts, start=1)
    ]


def stop_epoch(counts: list[int], patience: int, min_delta: float) -> int | None:
    """The epoch after which a run with these results ends early."""
    ends = [n for n in range(len(counts) + 1) if exhausted(epochs_of(counts[:n]), patience, min_delta)]
    return ends[0] if ends else None


@pytest.mark.parametrize(
    ("counts", "patience", "min_delta", "expected"),
    [
        ([50, 50], 1, 0.0, 2),
        ([50, 51, 51], 1, 0.0, 3),
        ([50, 40, 51, 50, 50, 50], 3, 0.0, 6),
        ([50, 40, 30, 51, 50, 50], 3, 0.0, None),  # the third came just in time
        ([50, 52, 54], 1, 0.02, 2),
        ([50, 53, 56], 1, 0.02, None),
        ([50, 51, 52, 53], 2, 0.02, 3),
        ([50, 51, 53, 54], 2, 0.02, None),  # slow but steady: what counts is the gain over all the patience
        ([20, 49], 1, 0.29, 2),  # 29 of 100 is not more than 0.29, though 29 > 0.29 * 100
        ([20, 50], 1, 0.29, None),
        ([], 1, 0.0, None),
        ([50], 1, 0.0, None),
    ],
)
def test_a_run_ends_after_the_epoch_that_exhausts_the_patience(
    counts: list[int], patience: int, min_delta: float, expected: int | None
) -> None:
    assert stop_epoch(counts, patience, min_delta) == expected


def test_recent_epochs_are_compared_with_the_best_of_all_before_them() -> None:
    """Also in a run that went on after its patience was over, since that was raised in between."""
    assert exhausted(epochs_of([90, 50, 60]), patience=1, min_delta=0.0)
    assert exhausted(epochs_of([50, 90, 50, 60, 80]), patience=2, min_delta=0.0)


@given(counts=COUNTS, min_delta=DELTAS)
def test_a_patience_of_0_never_ends(counts: list[int], min_delta: float) -> None:
    assert stop_epoch(counts, 0, min_delta) is None


@given(counts=st.lists(st.integers(0, 100), max_size=12, unique=True).map(sorted), patience=st.integers(1, 12))
def test_what_only_gets_better_never_ends(counts: list[int], patience: int) -> None:
    assert stop_epoch(counts, patience, 0.0) is None


@given(counts=COUNTS.map(lambda counts: sorted(counts, reverse=True)), patience=st.integers(1, 12), min_delta=DELTAS)
def test_what_never_gets_better_ends_as_soon_as_it_can(counts: list[int], patience: int, min_delta: float) -> None:
    assert stop_epoch(counts, patience, min_delta) == (patience + 1 if len(counts) > patience else None)


@given(counts=COUNTS, patience=st.integers(1, 11), longer=st.integers(1, 11), min_delta=DELTAS)
def test_a_longer_patience_never_ends_earlier(counts: list[int], patience: int, longer: int, min_delta: float) -> None:
    first, second = stop_epoch(counts, patience, min_delta), stop_epoch(counts, patience + longer, min_delta)
    assert second is None or (first is not None and first < second)


@given(counts=COUNTS, patience=st.integers(1, 12), min_delta=DELTAS, more=DELTAS)
def test_a_larger_least_gain_never_ends_later(counts: list[int], patience: int, min_delta: float, more: float) -> None:
    first, second = stop_epoch(counts, patience, min_delta + more), stop_epoch(counts, patience, min_delta)
    assert second is None or (first is not None and first <= second)


@given(counts=COUNTS)
def test_the_best_is_the_earliest_of_the_most_correct(counts: list[int]) -> None:
    result = best(epochs_of(counts))
    if result is None:
        assert counts == []
    else:
        assert result["test_score"] == max(counts) / 100
        assert max(counts) not in counts[: result["epoch"] - 1]
