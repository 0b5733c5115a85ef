"""Random numbers that are a function of seed, epoch, index and stream."""

import pytest
import torch

from ddp.draws import Draws, Stream, random_bits


def test_random_bits_are_those_of_the_published_generator() -> None:
    # SplitMix64 seeded with 0 gives this first number; key 0 needs seed 0 and epoch -1, index 1 its first step.
    assert int(random_bits(0, -1, torch.tensor([1]))[0]) & (2**64 - 1) == 0xE220A8397B1DCDAF


def test_streams_seeds_and_epochs_are_independent() -> None:
    indices = torch.arange(20_000)
    drawn = [Draws(0, 1, indices).uniform(stream) for stream in Stream]
    drawn += [Draws(seed, epoch, indices).uniform(Stream.HUE) for seed, epoch in ((1, 1), (0, 2), (1, 0), (2, 3))]
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))
    assert correlation.abs().max() < 5 / 20_000**0.5
    assert len({int(first) for first in torch.stack(drawn)[:, 0] * 2**24}) == len(drawn)


def test_uniform_numbers_have_mean_and_variance_of_their_distribution() -> None:
    drawn = Draws(0, 0, torch.arange(100_000)).uniform(Stream.HUE)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() < 1e-3
    assert 1 - 1e-3 < drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(1 / 2, abs=5 * (1 / 12 / 100_000) ** 0.5)
    assert drawn.var().item() == pytest.approx(1 / 12, rel=0.01)


def test_whole_numbers_below_a_count_occur_equally_often() -> None:
    draws = Draws(0, 0, torch.arange(70_000))
    times = draws.below(Stream.PARTNER, 7).bincount()
    assert len(times) == 7
    assert (times - 10_000).abs().max() < 5 * 93  # 93 is the standard deviation
    limits = torch.arange(1, 70_001)
    drawn = draws.below(Stream.PARTNER, limits)
    assert (drawn >= 0).all()
    assert (drawn < limits).all()


def test_attempts_are_numbers_of_their_own() -> None:
    bits = Draws(0, 0, torch.arange(1000)).attempts(Stream.CROP_SIZE, 10)
    assert bits.shape == (1000, 10)
    assert len(bits.unique()) == 10_000
    alone = Draws(0, 0, torch.tensor([7])).attempts(Stream.CROP_SIZE, 10)
    assert torch.equal(alone[0], bits[7])
