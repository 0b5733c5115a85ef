"""A run that is stopped and resumed ends as if it had never been stopped: to the last bit, sample by sample."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddp import checkpoint, resume
from ddp.config import InputConfig, Mistake, OptimConfig, TrainConfig
from ddp.context import DistContext
from ddp.fit import fit
from ddp.progress import Silent
from ddp.source import Dataset, array_split
from tests.ranks import run_ranks

SAMPLES, GLOBAL_BATCH = 60, 24
STEPS_PER_EPOCH = 3


class Crash(Exception):
    """Stands for a rank that dies: nothing is saved."""


class Watch(Silent):
    """Calls `act(step)` after each step."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act, self.steps = act, 0

    def step(self) -> None:
        self.steps += 1
        self.act(self.steps)


def net() -> nn.Module:
    """Everything that has a state: BatchNorm, dropout, many parameters, so that DDP has several buckets to arrange."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(288, 400), nn.ReLU(), nn.Linear(400, 900), nn.ReLU(), nn.Linear(900, 4),
    )  # fmt: skip


def dataset_of(seen: list[int]) -> Dataset:
    """60 images; `seen` collects the indices that are read for training."""
    rng = np.random.default_rng(0)
    split = array_split(rng.integers(0, 256, (SAMPLES, 1, 8, 8), dtype=np.uint8), rng.integers(0, 4, SAMPLES))

    def read(index: int) -> np.ndarray:
        seen.append(index)
        return split.read(index)

    return Dataset(
        train=replace(split, read=read), test=split, shape=(1, 8, 8), stored=(1, 8, 8), classes=tuple("abcd"),
        mean=(0.5,), std=(0.3,),
    )  # fmt: skip


def config_of(out: Path, **options: Any) -> TrainConfig:
    return TrainConfig(
        out=out, epochs=2, global_batch_size=GLOBAL_BATCH, optim=OptimConfig(lr=0.05),
        input=InputConfig(cache="none", workers=0), **options,
    )  # fmt: skip


def run(config: TrainConfig, world_size: int, act: Callable[[int, int], None] = lambda rank, step: None) -> list[Any]:
    """(final state, results, ids seen, stopped) of every rank; a Crash ends a rank without a state."""

    def work(ctx: DistContext) -> Any:
        seen: list[int] = []
        try:
            done = fit(net(), dataset_of(seen), config, ctx, Watch(lambda step: act(ctx.rank, step)))
        except Crash:
            return None, None, seen, True
        state = {
            "model": done.trainer.module.state_dict(),
            "optimizer": done.trainer.optimizer.state_dict(),
            "scheduler": done.trainer.scheduler.state_dict(),
            "random": torch.get_rng_state(),
        }
        results = [{key: value for key, value in epoch.items() if key[-2:] != "_s"} for epoch in done.epochs]
        return state, results, seen, done.stopped

    return run_ranks(work, world_size)


def stop_at(step: int, how: str) -> Callable[[int, int], None]:
    """End a run after that step: by a signal to one rank only, or by the death of all."""

    def act(rank: int, now: int) -> None:
        if now == step and how == "crash":
            raise Crash
        if now == step and rank == 0:
            os.kill(os.getpid(), {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}[how])

    return act


def differing(a: Any, b: Any) -> list[str]:
    """Names of the tensors and values in which two nested states differ, in any bit."""
    if isinstance(a, Tensor):
        return [] if torch.equal(a, b) else ["tensor"]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return ["keys"]
        return [f"{key}.{name}" for key in a for name in differing(a[key], b[key])]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return ["length"]
        return [f"{n}.{name}" for n, pair in enumerate(zip(a, b, strict=True)) for name in differing(*pair)]
    return [] if a == b else [f"{a} {b}"]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"sync_bn": True, "accumulate": 2}], ids=["plain", "SyncBN, accumulated"])
def test_a_resumed_run_has_the_bits_of_one_that_was_never_stopped(
    tmp_path: Path, world_size: int, options: dict[str, Any]
) -> None:
    golden = run(config_of(tmp_path / "golden", **options), world_size)
    for step, how in ((1, "SIGTERM"), (2, "SIGUSR1"), (2, "crash"), (STEPS_PER_EPOCH, "SIGTERM"), (4, "crash")):
        config = config_of(tmp_path / f"{step}{how}", checkpoint_every=1, resume="auto", **options)
        stopped = run(config, world_size, stop_at(step, how))
        assert all(rank[3] for rank in stopped), (step, how)
        resumed = run(config, world_size)
        for rank in range(world_size):
            assert differing(resumed[rank][:2], golden[rank][:2]) == [], (step, how, rank)


def test_without_settled_buckets_it_would_not_at_three_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP sums gradients in another arrangement in its first pass; this is what the pass for nothing is for."""
    golden = run(config_of(tmp_path / "golden"), 3)
    config = config_of(tmp_path / "run", checkpoint_every=1, resume="auto")
    run(config, 3, stop_at(2, "SIGTERM"))
    monkeypatch.setattr(resume, "settle_buckets", lambda trainer, shape: None)
    assert differing(run(config, 3)[0][:2], golden[0][:2]) != []


@pytest.mark.parametrize("left_out", ["model", "optimizer", "scheduler", "progress", "random", "buffers", "meter"])
def test_every_item_of_the_state_is_needed(tmp_path: Path, left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = run(config_of(tmp_path / "golden"), 2)
    config = config_of(tmp_path / "run", checkpoint_every=1, resume="auto")
    run(config, 2, stop_at(4, "SIGTERM"))
    load = checkpoint.load

    def forgetful(path: Path, rank: int) -> Any:
        manifest, shared, own = load(path, rank)
        fresh = run_fresh(rank)
        for state, other in ((shared, fresh[0]), (own, fresh[1])):
            if state is not None and left_out in state and left_out in other:
                state[left_out] = other[left_out]
        return manifest, shared, own

    def run_fresh(rank: int) -> tuple[dict[str, Any], dict[str, Any]]:
        first = sorted((tmp_path / "first" / "checkpoints").iterdir())[0]
        _, shared, own = load(first, rank)
        assert own is not None
        return shared, own

    run(config_of(tmp_path / "first", checkpoint_every=1, resume="auto"), 2, stop_at(1, "SIGTERM"))
    monkeypatch.setattr(checkpoint, "load", forgetful)
    try:
        resumed = run(config, 2)
    except AssertionError:  # the run itself noticed
        return
    assert [differing(resumed[rank][:2], golden[rank][:2]) for rank in range(2)] != [[], []]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("step", [1, STEPS_PER_EPOCH])  # the ranks agree one step later
def test_another_number_of_ranks_goes_on_with_the_samples_that_are_left(
    tmp_path: Path, world_size: int, step: int
) -> None:
    config = config_of(tmp_path, resume="auto")
    first = run(config, 4, stop_at(step, "SIGTERM"))
    second = run(config, world_size)
    ids = [[index for rank in part for index in rank[2]] for part in (first, second)]
    assert len(ids[0]) % SAMPLES > 0  # in the midst of an epoch
    assert sorted(ids[0] + ids[1]) == sorted(list(range(SAMPLES)) * 2)
    assert second[0][1][0]["train_samples"] == SAMPLES


def refusal(config: TrainConfig, world_size: int = 1) -> str:
    """What the run says instead of starting; the same on every rank."""

    def work(ctx: DistContext) -> str:
        with pytest.raises((Mistake, checkpoint.CheckpointError)) as caught:
            fit(net(), dataset_of([]), config, ctx, Silent())
        return str(caught.value)

    texts = run_ranks(work, world_size)
    assert len(set(texts)) == 1
    return str(texts[0])


def test_a_checkpoint_of_another_run_is_refused_with_both_values(tmp_path: Path) -> None:
    config = config_of(tmp_path, resume="auto")
    run(config, 2, stop_at(1, "SIGTERM"))
    assert "expected seed 0 as in the checkpoint, got 1" in refusal(replace(config, seed=1), 2)
    assert "expected global batch 24 as in the checkpoint, got 12" in refusal(replace(config, global_batch_size=12))


def test_an_old_run_is_not_overwritten_by_a_new_one(tmp_path: Path) -> None:
    run(config_of(tmp_path), 2)
    assert "expected no checkpoints of an earlier run in" in refusal(config_of(tmp_path), 2)


def test_auto_without_a_checkpoint_starts_anew_and_needs_a_folder(tmp_path: Path) -> None:
    assert len(run(config_of(tmp_path, resume="auto"), 1)[0][1]) == 2
    assert "expected --out with --resume auto, got none" in refusal(TrainConfig(resume="auto"))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    golden = run(config_of(tmp_path / "golden"), 2)
    config = config_of(tmp_path / "run", checkpoint_every=1, resume="auto")
    run(config, 2, stop_at(2, "SIGTERM"))
    newest = checkpoint.find(tmp_path / "run" / "checkpoints")[0]
    (newest / "shared.pt").write_bytes(b"damaged")
    assert differing(run(config, 2)[0][:2], golden[0][:2]) == []


def test_a_run_that_is_complete_is_not_trained_again(tmp_path: Path) -> None:
    config = config_of(tmp_path, resume="auto")
    first = run(config, 2)
    again = run(config, 2)
    assert again[0][2] == []
    assert differing(again[0][1], first[0][1]) == []
