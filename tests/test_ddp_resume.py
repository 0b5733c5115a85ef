"""What a run goes on from: the buckets that it needs, another number of ranks, and what it refuses."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddp import checkpoint, resume
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.fit import fit
from ddp.mistake import Mistake
from ddp.progress import Silent
from tests.ranks import run_ranks
from tests.resume_runs import SAMPLES, STEPS_PER_EPOCH, config_of, dataset, differing, ledger, net, newest_step, run


def same(a: Any, b: Any) -> bool:
    """Whether all ranks of two launches ended with the same bits."""
    return [differing(*pair) for pair in zip(a, b, strict=True)] == [[]] * len(a)


@pytest.mark.parametrize("world_size", [3, 4])
def test_with_syncbn_a_resumed_run_has_the_bits_of_one_that_was_never_stopped(tmp_path: Path, world_size: int) -> None:
    """T5. Breaks if DDP's first pass, which sums in another arrangement than all later ones, is one that counts."""
    options: dict[str, Any] = {"sync_bn": True, "checkpoint_every": 2, "resume": "auto"}
    golden = run(config_of(tmp_path / "golden", **options), world_size)
    run(config_of(tmp_path / "run", stop_after=4, **options), world_size)
    assert same(run(config_of(tmp_path / "run", **options), world_size), golden)


def test_without_settled_buckets_it_would_not_at_three_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T5. Breaks if the pass for nothing makes no difference, so that the test above could not fail."""
    golden = run(config_of(tmp_path / "golden"), 3)
    run(config_of(tmp_path / "run", stop_after=2), 3)
    monkeypatch.setattr(resume, "settle_buckets", lambda trainer, shape, classes: None)
    assert not same(run(config_of(tmp_path / "run", resume="auto"), 3), golden)


def test_a_checkpoint_may_take_longer_than_a_step_may_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T10. Breaks if ranks wait for rank 0's writing in the group that training uses, whose timeout is 5 s here."""
    commit = checkpoint._commit

    def slow(*arguments: Any) -> Any:
        time.sleep(8)
        return commit(*arguments)

    monkeypatch.setattr(checkpoint, "_commit", slow)

    def work(ctx: DistContext) -> int:
        return len(fit(net(), dataset(), replace(config_of(tmp_path), epochs=1), ctx, Silent()).epochs)

    assert run_ranks(work, 3, group_timeout_s=5) == [1, 1, 1]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("step", [1, 2, STEPS_PER_EPOCH, 4])
def test_another_number_of_ranks_goes_on_with_the_samples_that_are_left(
    tmp_path: Path, world_size: int, step: int
) -> None:
    """T7. Breaks if an epoch is begun anew or gone on with at another place or in another order than it was left."""
    run(config_of(tmp_path, stop_after=step), 4)
    done = run(config_of(tmp_path, resume="auto"), world_size)
    steps = ledger(tmp_path, 0) | ledger(tmp_path, 1)
    assert not ledger(tmp_path, 0).keys() & ledger(tmp_path, 1).keys()
    for epoch in range(2):
        seen = [index for n in range(STEPS_PER_EPOCH) for index in steps[epoch * STEPS_PER_EPOCH + n + 1]]
        assert sorted(seen) == list(range(SAMPLES))
    assert done[0]["epochs"][0]["train_samples"] == SAMPLES


def refusal(config: TrainConfig, world_size: int = 1) -> str:
    """What the run says instead of starting; the same on every rank."""

    def work(ctx: DistContext) -> str:
        with pytest.raises((Mistake, checkpoint.CheckpointError)) as caught:
            fit(net(), dataset(), config, ctx, Silent())
        return str(caught.value)

    texts = run_ranks(work, world_size)
    assert len(set(texts)) == 1
    return str(texts[0])


def test_a_checkpoint_of_another_run_is_refused_with_both_values(tmp_path: Path) -> None:
    config = config_of(tmp_path, resume="auto")
    run(replace(config, stop_after=1), 2)
    assert "expected seed 0 as in the checkpoint, got 1" in refusal(replace(config, seed=1), 2)
    assert "expected global batch 24 as in the checkpoint, got 12" in refusal(replace(config, global_batch_size=12))


def test_an_old_run_is_not_overwritten_by_a_new_one(tmp_path: Path) -> None:
    run(config_of(tmp_path), 2)
    assert "expected no checkpoints of an earlier run in" in refusal(config_of(tmp_path), 2)


def test_auto_without_a_checkpoint_starts_anew_and_needs_a_folder(tmp_path: Path) -> None:
    done = run(config_of(tmp_path, resume="auto"), 1)[0]
    assert len(done["epochs"]) == 2
    assert "expected --out with --resume auto, got none" in refusal(TrainConfig(resume="auto"))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    golden = run(config_of(tmp_path / "golden"), 2)
    run(config_of(tmp_path / "run", checkpoint_every=1, stop_after=3), 2)
    newest = checkpoint.find(tmp_path / "run" / "checkpoints")[0]
    (newest / "shared.pt").write_bytes(b"damaged")
    assert same(run(config_of(tmp_path / "run", checkpoint_every=1, resume="auto"), 2), golden)


def test_a_run_that_is_complete_is_not_trained_again(tmp_path: Path) -> None:
    first = run(config_of(tmp_path), 2)
    assert newest_step(tmp_path) == 2 * STEPS_PER_EPOCH
    assert same(run(config_of(tmp_path, resume="auto"), 2), first)
    assert ledger(tmp_path, 1) == {}
