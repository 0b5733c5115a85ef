"""Whole runs inside forked ranks: what the loaders give, and what a run refuses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddp.config import InputConfig, OptimConfig, TrainConfig
from ddp.context import DistContext
from ddp.epoch import NonFiniteLossError
from ddp.fit import fit, save_model
from ddp.loader import augment_for, held_in_memory, make_loaders
from ddp.progress import Silent
from ddp.sampler import EvalBatches, TrainBatches
from ddp.source import Dataset, array_split
from tests.ranks import run_ranks


def dataset_of(samples: int = 64) -> Dataset:
    rng = np.random.default_rng(0)
    labels = np.arange(samples) % 4
    images = rng.integers(0, 100, (samples, 1, 8, 8), dtype=np.uint8)
    images[np.arange(samples), 0, labels] = 250  # a bright row tells the class
    split = array_split(images, labels)
    return Dataset(
        train=split, test=split, shape=(1, 8, 8), stored=(1, 8, 8), classes=tuple("abcd"), mean=(0.3,), std=(0.3,),
        flip=False,
    )  # fmt: skip


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


CONFIG = TrainConfig(
    epochs=4, global_batch_size=12, optim=OptimConfig(lr=0.05), input=InputConfig(augment="none", cache="memory")
)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_run_learns_and_every_rank_reports_the_same_numbers(cache: Any) -> None:
    def work(ctx: DistContext) -> list[dict[str, Any]]:
        config = TrainConfig(
            epochs=4,
            global_batch_size=12,
            optim=CONFIG.optim,
            input=InputConfig(augment="none", cache=cache, workers=1),
        )
        epochs = fit(net(), dataset_of(), config, ctx, Silent()).epochs
        return [{name: value for name, value in epoch.items() if not name.endswith("_s")} for epoch in epochs]

    results = run_ranks(work, 3)
    assert results[0] == results[1] == results[2]
    assert [epoch["train_samples"] for epoch in results[0]] == [64] * 4
    assert results[0][-1]["test_correct"] == 64
    assert results[0][-1]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_run_at_2_and_4_ranks_ends_with_the_model_of_1_rank() -> None:
    # the loaders give float32 images; a float64 model takes them after one cast
    class Wide(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.double())

    def wide(ctx: DistContext) -> dict[str, Tensor]:
        trainer = fit(Wide(*net().double()), dataset_of(), CONFIG, ctx, Silent()).trainer
        return trainer.module.state_dict()

    expected = run_ranks(wide, 1)[0]
    for ranks in (2, 4):
        for state in run_ranks(wide, ranks):
            torch.testing.assert_close(state, expected, rtol=0, atol=1e-12)


def test_images_in_memory_and_from_loader_processes_are_the_same_batches() -> None:
    def work(ctx: DistContext) -> bool:
        place: dict[str, Any] = {"rank": ctx.rank, "world_size": ctx.world_size}
        batches = []
        for cache in ("memory", "none"):
            config = InputConfig(cache=cache, workers=2, augment="crop-flip")  # type: ignore[arg-type]
            shares = (
                TrainBatches(samples=64, global_batch=12, seed=0, **place),
                EvalBatches(samples=64, batch=12, **place),
            )
            train, test = make_loaders(config, dataset_of(), shares, ctx, seed=0, channels_last=False)
            train.set_epoch(3)
            batches.append([*train, *test])
        pairs = zip(*batches, strict=True)
        return all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs)

    assert run_ranks(work, 2) == [True, True]


def test_each_epoch_has_an_order_of_its_own() -> None:
    def work(ctx: DistContext) -> list[int]:
        dataset, seen = dataset_of(), []

        def read(index: int) -> np.ndarray:
            seen.append(index)
            return dataset.train.read(index)

        watched = replace(dataset, train=replace(dataset.train, read=read))
        config = TrainConfig(epochs=2, global_batch_size=12, input=InputConfig(cache="none", workers=0))
        fit(net(), watched, config, ctx, Silent())
        return seen

    (seen,) = run_ranks(work, 1)
    first, second = seen[:64], seen[64:]
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second


def test_auto_keeps_images_in_memory_only_if_they_fit_the_budget() -> None:
    dataset = dataset_of()
    assert held_in_memory(InputConfig(), dataset)
    assert not held_in_memory(InputConfig(cache_gib=dataset.size_bytes / 2 / 2**30), dataset)
    assert held_in_memory(InputConfig(cache="memory", cache_gib=0), dataset)
    assert not held_in_memory(InputConfig(cache="none"), dataset)


@pytest.mark.parametrize(
    ("augment", "train", "expected"),
    [("auto", True, (True, False)), ("auto", False, (False, False)), ("none", True, (False, False)),
     ("crop-flip", True, (True, True)), ("crop", True, (True, False))],
)  # fmt: skip
def test_augmentation_is_what_suits_the_data_unless_asked_for(
    augment: Any, train: bool, expected: tuple[bool, bool]
) -> None:
    made = augment_for(InputConfig(augment=augment), dataset_of(), 0, train=train)
    assert (made.random, made.flip and made.random) == expected
    assert made.padding == 1  # an eighth of 8 pixels


def test_a_loss_that_is_no_number_stops_all_ranks() -> None:
    def work(ctx: DistContext) -> None:
        config = TrainConfig(optim=OptimConfig(lr=1e30, warmup=0), input=CONFIG.input, epochs=3, global_batch_size=12)
        with pytest.raises(NonFiniteLossError, match=r"expected a finite training loss, got (nan|inf) in epoch"):
            fit(net(), dataset_of(), config, ctx, Silent())

    run_ranks(work, 2)


def test_the_saved_model_replaces_the_old_one_whole(tmp_path: Any) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    module = net()
    save_model(path, module)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
    loaded = torch.load(path, weights_only=True)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in module.state_dict().items())
