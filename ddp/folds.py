"""Cross-validation: the training set in equal parts, of which one takes the place of the test set. Imports no torch."""

from dataclasses import replace

import numpy as np

from ddp.input_config import InputConfig
from ddp.mistake import require
from ddp.source import Dataset, part_of


def fold_numbers(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each sample, int64 [samples]: a function of labels [samples, ...] and seed.

    Each class, in random order, is dealt to the folds in turn, going on where the class before it ended; so neither the
    samples of a class in two folds nor the sizes of two folds differ by more than one. Samples that have no classes are
    dealt in random order.
    """
    keys = np.random.SeedSequence((seed, folds)).generate_state(len(labels), np.uint64)
    shuffled = np.argsort(keys, kind="stable")
    classes = labels if labels.ndim == 1 else np.zeros(len(labels))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    numbers = np.empty(len(labels), dtype=np.int64)
    numbers[by_class] = np.arange(len(labels)) % folds
    return numbers


def training_samples(samples: int, config: InputConfig) -> int:
    """How many of the training set's samples are trained on. Raises Mistake if there is not one for each fold."""
    if not config.folds:
        return samples
    require(
        samples >= config.folds,
        f"at least {config.folds} training samples, one for each of --folds {config.folds}",
        samples,
        "use fewer folds or more data",
    )
    return samples - len(range(config.fold, samples, config.folds))


def folded(dataset: Dataset, config: InputConfig, seed: int) -> Dataset:
    """The data set of one fold: its training set without the fold, and the fold as the test set; as it is without
    --folds. Raises Mistake if there is not a sample for each fold."""
    if not config.folds:
        return dataset
    training_samples(len(dataset.train), config)
    tested = fold_numbers(dataset.train.labels, config.folds, seed) == config.fold
    train, test = (part_of(dataset.train, np.flatnonzero(chosen)) for chosen in (~tested, tested))
    return replace(dataset, train=train, test=test)
