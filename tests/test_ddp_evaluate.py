"""Evaluation is exact: each sample once, and the same sums to the last bit at any number of ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddp.config import InputConfig
from ddp.context import DistContext
from ddp.evaluate import evaluate
from ddp.loader import make_loaders
from ddp.sampler import EvalBatches, TrainBatches
from ddp.source import Dataset, array_split
from tests.ranks import run_ranks


def dataset_of(samples: int) -> Dataset:
    """Random images with random labels."""
    rng = np.random.default_rng(0)
    split = array_split(rng.integers(0, 256, (samples, 3, 8, 8), dtype=np.uint8), rng.integers(0, 10, samples))
    return Dataset(train=split, test=split, shape=(3, 8, 8), stored=(3, 8, 8), classes=tuple("0123456789"), flip=False)


def evaluation_of(samples: int, world_size: int, cache: str = "memory") -> list[tuple[int, int, float]]:
    """(samples, correct, loss sum) as every rank sees it."""

    def work(ctx: DistContext) -> tuple[int, int, float]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
        module[-1].weight.data *= 40  # losses from 1e-7 to 100: their sum is rounded, so that its order matters
        place: dict[str, Any] = {"rank": ctx.rank, "world_size": ctx.world_size}
        shares = (
            TrainBatches(samples=samples, global_batch=samples, seed=0, **place),
            EvalBatches(samples=samples, batch=4, **place),  # many sums, so that their order matters
        )
        config = InputConfig(cache=cache, workers=1)  # type: ignore[arg-type]
        _, loader = make_loaders(config, dataset_of(samples), shares, ctx, seed=0, channels_last=False)
        result = evaluate(module, loader, ctx, "off")
        return result.samples, result.correct, result.loss_sum

    return run_ranks(work, world_size)


def test_1003_samples_give_the_same_sums_at_1_2_3_and_4_ranks() -> None:
    expected = evaluation_of(1003, 1)[0]
    assert expected[0] == 1003
    for world_size in (2, 3, 4):
        assert evaluation_of(1003, world_size) == [expected] * world_size


def test_a_test_set_smaller_than_the_ranks_hangs_no_one() -> None:
    assert evaluation_of(4, 4) == [evaluation_of(4, 1)[0]] * 4


def test_images_decoded_by_loader_processes_give_the_same_sums() -> None:
    assert evaluation_of(203, 2, cache="none") == evaluation_of(203, 2)


def test_a_lost_sample_is_an_error() -> None:
    def work(ctx: DistContext) -> None:
        place: dict[str, Any] = {"rank": ctx.rank, "world_size": ctx.world_size}
        shares = (
            TrainBatches(samples=20, global_batch=20, seed=0, **place),
            EvalBatches(samples=19, batch=4, **place),
        )
        _, loader = make_loaders(InputConfig(), dataset_of(20), shares, ctx, seed=0, channels_last=False)
        module = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        with pytest.raises(RuntimeError, match="expected to evaluate 20 samples once each, counted 19"):
            evaluate(module, loader, ctx, "off")

    run_ranks(work, 2)
