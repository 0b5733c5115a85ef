"""Batches taken ahead of their use: none is lost, repeated or taken too early."""

from collections.abc import Iterator

import pytest
import torch

from ddp.prefetch import Copier, ahead


@pytest.mark.parametrize("count", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_all_items_come_in_their_order(length: int, count: int) -> None:
    assert list(ahead(iter(range(length)), count)) == list(range(length))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_items_are_taken_early_as_asked_for(count: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(10):
            taken += 1
            yield number

    for number in ahead(items(), count):
        assert taken == min(10, number + 1 + count)


def test_a_reader_that_stops_early_ends_the_source_at_once() -> None:
    ended, taken = [], []

    def items() -> Iterator[int]:
        try:
            for number in range(10):
                taken.append(number)
                yield number
        finally:
            ended.append(True)

    for number in ahead(items(), 2):
        if number == 3:
            break
    del number
    assert (ended, taken) == ([True], [0, 1, 2, 3, 4, 5])


def test_tensors_stay_what_they_are_on_a_cpu() -> None:
    copier, tensors = Copier(torch.device("cpu")), [torch.arange(3), torch.ones(2, dtype=torch.uint8)]
    copies = copier.start(tensors)
    assert copies.done is None
    assert all(copy is tensor for copy, tensor in zip(copier.finish(copies), tensors, strict=True))
