"""Folds: every training sample is tested on once, and each class is spread evenly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp.folds import fold_numbers, folded, training_samples
from ddp.input_config import InputConfig
from ddp.source import Dataset, array_split


def dataset_of(labels: list[int]) -> Dataset:
    split = array_split(np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1), labels)
    return Dataset(train=split, test=split, shape=(1, 1, 1), stored=(1, 1, 1), classes=("a", "b", "c", "d"))


@settings(deadline=None, max_examples=80)
@given(labels=st.lists(st.integers(0, 3), min_size=8, max_size=80), folds=st.integers(2, 8), seed=st.integers(0, 99))
def test_each_sample_is_in_one_fold_and_classes_and_sizes_are_even(labels: list[int], folds: int, seed: int) -> None:
    parts = [folded(dataset_of(labels), InputConfig(folds=folds, fold=fold), seed) for fold in range(folds)]
    tested = [sorted(int(part.test.read(index).item()) for index in range(len(part.test))) for part in parts]
    assert sorted(sample for fold in tested for sample in fold) == list(range(len(labels)))
    for fold, part in enumerate(parts):
        trained = [int(part.train.read(index).item()) for index in range(len(part.train))]
        assert sorted(trained + tested[fold]) == list(range(len(labels)))
        assert part.train.labels.tolist() == [labels[sample] for sample in trained]
        assert len(trained) == training_samples(len(labels), InputConfig(folds=folds, fold=fold))
    for samples in (range(len(labels)), *([i for i, label in enumerate(labels) if label == c] for c in range(4))):
        sizes = [len(set(samples) & set(fold)) for fold in tested]
        assert max(sizes) - min(sizes) <= 1


def test_folds_are_a_function_of_seed_and_labels() -> None:
    labels = np.arange(40) % 3
    assert fold_numbers(labels, 5, 1).tolist() == fold_numbers(labels, 5, 1).tolist()
    assert fold_numbers(labels, 5, 1).tolist() != fold_numbers(labels, 5, 2).tolist()
    assert fold_numbers(labels, 5, 1).tolist() != (np.arange(40) % 5).tolist()


def test_without_folds_a_data_set_is_what_it_was() -> None:
    dataset = dataset_of([0, 1, 2])
    assert folded(dataset, InputConfig(), 0) is dataset
    assert training_samples(3, InputConfig()) == 3


def test_more_folds_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 4 training samples, one for each of --folds 4, got 3"):
        folded(dataset_of([0, 1, 2]), InputConfig(folds=4), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "expected --folds of at least 2, or 0 for the test set, got 1"),
        ({"folds": -1}, "expected --folds of at least 2"),
        ({"folds": 3, "fold": 3}, "expected --fold from 0 to 2 with --folds 3, got 3"),
        ({"folds": 3, "fold": -1}, "expected --fold from 0 to 2"),
        ({"fold": 1}, "expected --fold from 0 to 0 with --folds 0, got 1"),
        ({"prefetch": -1}, "expected --prefetch of at least 0, got -1"),
        ({"cache_dir": "x"}, "expected --cache disk with --cache-dir, got --cache auto; add --cache disk"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InputConfig(**options)  # type: ignore[arg-type]
