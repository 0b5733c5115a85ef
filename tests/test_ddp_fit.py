"""Whole runs inside forked ranks: what the loaders give, and what a run refuses."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddp.augment import augment_for
from ddp.augment_config import AugmentConfig
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.data import make_loaders
from ddp.epoch import NonFiniteLossError
from ddp.evaluate import evaluate
from ddp.fit import fit, save_weights
from ddp.input_config import InputConfig
from ddp.loader import Batch
from ddp.optim_config import OptimConfig
from ddp.progress import Silent
from ddp.self_check import RanksDifferError
from ddp.source import Dataset, array_split
from ddp.trainer import make_trainer
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
        batches = []
        for cache in ("memory", "none"):
            images = InputConfig(cache=cache, workers=2, augment="crop-flip")  # type: ignore[arg-type]
            config = TrainConfig(global_batch_size=12, eval_batch_size=12, input=images)
            train, test = make_loaders(config, dataset_of(), ctx)
            train.set_epoch(3)
            batches.append([*train, *test])
        pairs = zip(*batches, strict=True)
        return all(torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) for a, b in pairs)

    assert run_ranks(work, 2) == [True, True]


def test_each_epoch_has_an_order_of_its_own() -> None:
    """T16. Breaks if the sampler is not told of a new epoch."""

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


def test_every_rank_draws_its_own_dropout_and_the_same_again_under_one_seed() -> None:
    """T16. Breaks if ranks are seeded alike, or by their number on the node, of which each node has the same."""

    def work(ctx: DistContext) -> list[tuple[float, ...]]:
        drawn = []
        for seed in (0, 1, 0):
            config = replace(CONFIG, epochs=1, seed=seed, input=InputConfig(cache="none", workers=0))
            fit(net(), dataset_of(12), config, replace(ctx, local_rank=0), Silent())
            drawn.append((float(torch.rand(())), np.random.rand(), random.random()))
        return drawn

    drawn = run_ranks(work, 3)
    assert all(first == again for first, _, again in drawn)
    for generator in range(3):
        assert len({draws[generator] for rank in drawn for draws in rank}) == 6


@pytest.mark.parametrize(
    ("augment", "train", "expected"),
    [("auto", True, (True, False)), ("auto", False, (False, False)), ("none", True, (False, False)),
     ("crop-flip", True, (True, True)), ("crop", True, (True, False))],
)  # fmt: skip
def test_augmentation_is_what_suits_the_data_unless_asked_for(
    augment: Any, train: bool, expected: tuple[bool, bool]
) -> None:
    made = augment_for(InputConfig(augment=augment), AugmentConfig(), dataset_of(), 0, train=train)
    assert (made.random, made.flip and made.random) == expected
    assert made.padding == 1  # an eighth of 8 pixels


def test_a_loss_that_is_no_number_stops_all_ranks() -> None:
    def work(ctx: DistContext) -> None:
        config = TrainConfig(optim=OptimConfig(lr=1e30, warmup=0), input=CONFIG.input, epochs=3, global_batch_size=12)
        with pytest.raises(NonFiniteLossError, match=r"gradients in step \d+, got a loss of"):
            fit(net(), dataset_of(), config, ctx, Silent())

    run_ranks(work, 2)


def test_the_saved_model_replaces_the_old_one_whole(tmp_path: Any) -> None:
    def work(ctx: DistContext) -> None:
        path = tmp_path / "model.pt"
        path.write_bytes(b"old")
        trainer = make_trainer(net(), CONFIG, ctx, 1)
        save_weights(path, trainer)
        assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
        loaded = torch.load(path, weights_only=True)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in trainer.module.state_dict().items())

    run_ranks(work, 1)


def test_the_best_weights_and_the_last_are_kept_and_a_run_stops_early(tmp_path: Path) -> None:
    class Said(Silent):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, text: str) -> None:
            self.lines.append(text)

    def work(ctx: DistContext) -> tuple[list[int], list[str], dict[str, Tensor]]:
        said = Said()
        config = replace(CONFIG, epochs=20, out=tmp_path, patience=2, min_delta=0.01)
        done = fit(net(), dataset_of(), config, ctx, said)
        return [epoch["test_correct"] for epoch in done.epochs], said.lines, done.trainer.module.state_dict()

    correct, said, last = run_ranks(work, 2)[0]
    assert len(correct) < 20
    best = correct.index(max(correct))
    assert max(correct[-2:]) <= max(correct[:-2]) + 0.01 * 64
    accuracy = f"{max(correct) / 64:.2%}"
    expected = f"stopped early: no better accuracy in 2 epochs than {accuracy} of epoch {best + 1}, whose weights"
    assert any(line.startswith(expected) for line in said)
    saved = {name: torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("best", "model")}
    assert all(torch.equal(saved["model"][name], tensor) for name, tensor in last.items())
    assert any(not torch.equal(saved["best"][name], tensor) for name, tensor in last.items())


def test_with_an_average_its_weights_are_tested_and_saved_and_training_goes_on_from_its_own(tmp_path: Path) -> None:
    def work(ctx: DistContext) -> tuple[Any, Any, Any]:
        plain = fit(net(), dataset_of(), CONFIG, ctx, Silent())
        optim = replace(CONFIG.optim, ema_decay=0.9)
        averaged = fit(net(), dataset_of(), replace(CONFIG, optim=optim, out=tmp_path), ctx, Silent())
        losses = [[epoch["test_loss"] for epoch in done.epochs] for done in (plain, averaged)]
        assert averaged.trainer.ema is not None
        states = [done.trainer.module.state_dict() for done in (plain, averaged)]
        return losses, states, averaged.trainer.ema.shared_state()["parameters"]

    losses, (plain, averaged), ema = run_ranks(work, 2)[0]
    assert all(a != b for a, b in zip(*losses, strict=True))
    assert all(torch.equal(plain[name], tensor) for name, tensor in averaged.items())
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(saved[name], tensor) for name, tensor in ema.items())


@pytest.mark.parametrize("world_size", [2, 4])
def test_without_syncbn_the_statistics_of_all_samples_are_evaluated_and_saved(tmp_path: Path, world_size: int) -> None:
    """T15. Breaks if each rank evaluates the statistics of its own samples, or all evaluate those of rank 0."""
    images = np.random.default_rng(0).integers(0, 9, (8, 1, 8, 8)) + 30 * np.arange(8).reshape(8, 1, 1, 1)
    dataset = replace(dataset_of(), train=array_split(images.astype(np.uint8), np.arange(8) % 4))
    config = replace(CONFIG, epochs=1, global_batch_size=8, out=tmp_path)

    def work(ctx: DistContext) -> tuple[dict[str, Tensor], float, float]:
        done = fit(nn.Sequential(nn.BatchNorm2d(1, momentum=1.0), *net()), dataset, config, ctx, Silent())
        again = evaluate(done.trainer.module, make_loaders(config, dataset, ctx)[1], ctx, "off")
        return done.trainer.module.state_dict(), done.epochs[0]["test_loss"], again.loss

    pixels = (images / 255 - 0.3) / 0.3
    for state, tested, again in run_ranks(work, world_size):
        saved = torch.load(tmp_path / "model.pt", weights_only=True)
        assert all(torch.equal(saved[name], tensor) for name, tensor in state.items())
        assert float(state["0.running_mean"]) == pytest.approx(pixels.mean(), rel=1e-5)
        assert float(state["0.running_var"]) == pytest.approx(pixels.var(), rel=1e-2)  # unbiased within a rank
        assert tested == again


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_rank_whose_weights_went_astray_is_named_at_the_next_check(world_size: int) -> None:
    class Flip(Silent):
        """Changes the last bit of one weight of rank 1 after step 3."""

        def __init__(self, module: nn.Module, rank: int) -> None:
            self.module, self.rank, self.steps = module, rank, 0

        def step(self, batch: Batch) -> None:
            self.steps += 1
            if self.steps == 3 and self.rank == 1:
                bias: Any = self.module[1].bias  # type: ignore[index]
                bias.data.view(torch.int32)[2] ^= 1

    def work(ctx: DistContext) -> str:
        module = net()
        try:
            fit(module, dataset_of(), replace(CONFIG, check_every=2), ctx, Flip(module, ctx.rank))
        except RanksDifferError as error:
            return str(error)
        return ""

    texts = run_ranks(work, world_size)
    if world_size == 1:
        assert texts == [""]
    else:
        assert len(set(texts)) == 1
        assert "after step 4, got a different 1.bias" in texts[0]
        assert "on rank 1" in texts[0]


@pytest.mark.parametrize("compiled", ["inside", "outside"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_compiled_run_computes_what_a_plain_one_does(compiled: Any, accumulate: int) -> None:
    def work(ctx: DistContext) -> list[list[float]]:
        losses = []
        for choice in ("off", compiled):
            config = replace(CONFIG, compile=choice, compile_backend="aot_eager", accumulate=accumulate)
            losses.append([epoch["train_loss"] for epoch in fit(net(), dataset_of(), config, ctx, Silent()).epochs])
        return losses

    plain, fast = run_ranks(work, 2)[0]
    assert fast == pytest.approx(plain, rel=1e-5)


def test_blends_of_samples_are_learned_the_same_way_at_any_number_of_ranks() -> None:
    def work(ctx: DistContext) -> list[float]:
        config = replace(CONFIG, augment=AugmentConfig(mixup=1.0))
        return [epoch["train_loss"] for epoch in fit(net(), dataset_of(), config, ctx, Silent()).epochs]

    alone = run_ranks(work, 1)[0]
    plain = run_ranks(lambda ctx: fit(net(), dataset_of(), CONFIG, ctx, Silent()).epochs, 1)[0]
    for ranks in (2, 4):
        assert run_ranks(work, ranks)[0] == pytest.approx(alone, rel=1e-5)
    assert alone[-1] > 2 * plain[-1]["train_loss"]
