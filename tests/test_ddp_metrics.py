"""What is derived from a confusion matrix is what sklearn derives, and undefined where sklearn's is."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from ddp.metrics import accuracy, classification_report, f1, macro, precision, predicted, recall, support

MATRICES = st.integers(2, 6).flatmap(
    lambda classes: st.lists(
        st.lists(st.sampled_from([0, 0, 1, 2, 9]), min_size=classes, max_size=classes),
        min_size=classes,
        max_size=classes,
    )
)
UNEVEN = [[3, 1, 0], [1, 4, 0], [0, 2, 0]]
"""Three classes, of which the last is never predicted."""


def samples_of(confusion: list[list[int]]) -> tuple[list[int], list[int]]:
    """Truth and prediction of every sample."""
    cells = [(row, column) for row, counts in enumerate(confusion) for column, n in enumerate(counts) for _ in range(n)]
    return [row for row, _ in cells], [column for _, column in cells]


def known(value: float) -> float | None:
    return None if math.isnan(value) else pytest.approx(float(value), abs=1e-12)


@given(confusion=MATRICES.filter(lambda rows: any(map(any, rows))))
def test_every_measure_is_that_of_sklearn(confusion: list[list[int]]) -> None:
    truth, prediction = samples_of(confusion)
    labels = range(len(confusion))
    theirs = precision_recall_fscore_support(truth, prediction, labels=labels, zero_division=np.nan)
    for measure, expected in zip((precision, recall, f1), theirs, strict=False):
        assert list(measure(confusion)) == [known(value) for value in expected]
        assert macro(measure(confusion)) == known(np.mean(expected))
    assert list(support(confusion)) == theirs[3].tolist()
    assert accuracy(confusion) == known(accuracy_score(truth, prediction))


def test_precision_divides_by_predictions_and_recall_by_samples() -> None:
    assert support(UNEVEN) == (4, 5, 2)
    assert predicted(UNEVEN) == (4, 7, 0)
    assert precision(UNEVEN) == (3 / 4, 4 / 7, None)
    assert recall(UNEVEN) == (3 / 4, 4 / 5, 0)
    assert f1(UNEVEN) == (6 / 8, 8 / 12, 0)
    assert accuracy(UNEVEN) == 7 / 11


def test_nothing_is_known_without_samples() -> None:
    nothing = [[0, 0], [0, 0]]
    assert accuracy(nothing) is None
    assert precision(nothing) == recall(nothing) == f1(nothing) == (None, None)
    assert macro(()) is None


def test_a_macro_average_does_not_leave_out_the_classes_it_does_not_know() -> None:
    assert macro((0.5, None, 1.0)) is None
    assert macro((0.5, 0.0, 1.0)) == 0.5


def test_the_report_is_aligned_and_says_what_is_not_defined() -> None:
    assert classification_report(UNEVEN, ("cat", "snow leopard", "dog")).splitlines() == [
        "class          precision  recall      F1  support",
        "cat               0.7500  0.7500  0.7500        4",
        "snow leopard      0.5714  0.8000  0.6667        5",
        "dog                  n/a  0.0000  0.0000        2",
        "macro average        n/a  0.5167  0.4722       11",
        "accuracy                          0.6364       11",
        "n/a: a denominator is 0, for a class that has no samples or was never predicted",
    ]


def test_a_report_in_which_all_is_defined_has_no_footnote() -> None:
    assert "n/a" not in classification_report([[1, 1], [0, 1]], ("a", "b"))
    assert "denominator" not in classification_report([[1, 1], [0, 1]], ("n/a", "b"))


def test_a_class_name_cannot_break_the_table() -> None:
    report = classification_report([[1, 0], [0, 1]], ("a\nb", "\x1b[31mred"))
    assert len(report.splitlines()) == 5
    assert "\x1b" not in report


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")])
def test_names_that_do_not_fit_the_matrix_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"expected a confusion matrix of {len(names)} x {len(names)} for the names"):
        classification_report([[1, 0], [0, 1]], names)


def test_a_matrix_that_is_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[2, 1, 2\]"):
        classification_report([[1, 0], [0]], ("a", "b"))
