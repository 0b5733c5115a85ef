"""Loader processes: they live over epochs, give what is asked for now, and survive the signals of their rank."""

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddp import discover
from ddp.input_config import InputConfig
from ddp.mistake import Mistake
from ddp.source import Dataset, Split, array_split, part_of
from ddp.stores import StreamStore, held_in_memory
from tests.test_ddp_datasets import image_folder


def _tells_its_reader(index: int) -> np.ndarray:
    """An image whose pixels are its index and the process that read it."""
    if index == 99:
        raise Mistake("expected an image in 99.png, got none; replace it")
    return np.array([index, os.getpid()], dtype=np.int32).view(np.uint8).reshape(1, 1, 8)


SPLIT = Split(labels=np.zeros(100, dtype=np.int64), read=_tells_its_reader)


def store(workers: int = 2) -> StreamStore:
    return StreamStore(SPLIT, workers, torch.device("cpu"))


def told(images: Tensor) -> tuple[list[int], set[int]]:
    """The indices and the processes of some images."""
    pairs = images.flatten(1).contiguous().numpy().view(np.int32)
    return pairs[:, 0].tolist(), set(pairs[:, 1].tolist())


BATCHES = [torch.arange(start, start + 3) for start in range(0, 30, 3)]


def test_the_same_processes_serve_every_epoch_and_do_not_end_on_sigterm() -> None:
    """T16. Breaks if processes that live over epochs go on with what they were first given to read."""
    reader, found = store(), []
    for batches in (BATCHES, [batch.flip(0) + 1 for batch in reversed(BATCHES)]):
        answers = [told(images) for images in reader.read(batches)]
        assert [indices for indices, _ in answers] == [batch.tolist() for batch in batches]
        found.append(set().union(*(pids for _, pids in answers)))
        for pid in found[0]:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                os.kill(pid, number)
    assert found[0] == found[1]
    assert len(found[0]) == 2
    assert os.getpid() not in found[0]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_epoch_that_was_abandoned_leaves_nothing_for_the_next_one(workers: int) -> None:
    reader = store(workers)
    for taken in (1, 4):
        abandoned = reader.read(BATCHES)
        for _ in range(taken):
            next(abandoned)
        del abandoned
    assert [told(images)[0] for images in reader.read([BATCHES[5], BATCHES[2]])] == [[15, 16, 17], [6, 7, 8]]


def test_a_second_reader_at_the_same_time_is_an_error_not_other_images() -> None:
    reader = store(0)
    first, second = reader.read(BATCHES), reader.read(BATCHES)
    next(first), next(second)
    with pytest.raises(RuntimeError, match="expected one reader of a split at a time"):
        next(first)


def test_no_process_is_started_for_a_rank_without_batches() -> None:
    reader = StreamStore(replace(SPLIT, read=lambda index: np.empty(0)), 1, torch.device("cpu"))
    assert list(reader.read([])) == []
    assert reader._loader._iterator is None


def test_a_broken_image_is_told_by_the_rank_as_one_sentence() -> None:
    with pytest.raises(Mistake) as caught:
        list(store(1).read([torch.tensor([1, 99])]))
    assert str(caught.value) == "expected an image in 99.png, got none; replace it"


LINGERS = """
import tempfile
folder = tempfile.TemporaryDirectory()  # what is to be done at the exit is done in an order: this comes late
import numpy, torch
from ddp.source import array_split
from ddp.stores import StreamStore
store = StreamStore(array_split(numpy.zeros((9, 1, 2, 2), numpy.uint8), [0] * 9), 2, torch.device("cpu"))
images = store.read([torch.arange(3)] * 3)
next(images)
"""


def test_processes_that_are_still_in_use_do_not_keep_their_rank_from_ending() -> None:
    assert subprocess.run([sys.executable, "-c", LINGERS], timeout=30).returncode == 0


@pytest.mark.parametrize("name", ["synthetic", "imagefolder"])
def test_what_reads_a_split_can_be_sent_to_processes_that_are_not_forked(name: str, tmp_path: Path) -> None:
    config = InputConfig(data=name, data_dir=image_folder(tmp_path))
    dataset = discover.find("ddp.datasets", name, kind="data set").load(config, (3, 8, 8), 10)
    for split in (dataset.train, part_of(dataset.train, np.array([3, 1]))):
        assert np.array_equal(pickle.loads(pickle.dumps(split.read))(1), split.read(1))  # noqa: S301


def test_a_part_of_a_split_reads_its_rows() -> None:
    whole = array_split(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), [0, 1, 2, 3, 4, 5])
    part = pickle.loads(pickle.dumps(part_of(whole, np.array([4, 0]))))  # noqa: S301
    assert part.labels.tolist() == [4, 0]
    assert [int(part.read(index).item()) for index in range(len(part))] == [4, 0]


def test_auto_keeps_images_in_memory_only_if_they_fit_the_budget() -> None:
    split = array_split(np.zeros((50, 1, 8, 8), dtype=np.uint8), [0] * 50)
    dataset = Dataset(train=split, test=split, shape=(1, 8, 8), stored=(1, 8, 8), classes=("a",))
    assert dataset.size_bytes == 6400
    assert held_in_memory(InputConfig(cache_gib=6400 / 2**30), dataset)
    assert not held_in_memory(InputConfig(cache_gib=6399 / 2**30), dataset)
    assert held_in_memory(InputConfig(cache="memory", cache_gib=0), dataset)
    assert not held_in_memory(InputConfig(cache="none"), dataset)
