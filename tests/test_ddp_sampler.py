"""Which samples a rank sees: exactly once each, and the same global batches at any number of ranks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp.sampler import EvalBatches, Share, TrainBatches


def epoch_of(samples: int, global_batch: int, world_size: int, epoch: int = 1, seed: int = 0) -> list[list[list[int]]]:
    """[step][rank] -> sample ids."""
    ranks = []
    for rank in range(world_size):
        batches = TrainBatches(samples=samples, global_batch=global_batch, rank=rank, world_size=world_size, seed=seed)
        batches.set_epoch(epoch)
        ranks.append([share.indices.tolist() for share in batches])
    return [list(step) for step in zip(*ranks, strict=True)]


@settings(deadline=None, max_examples=150)
@given(samples=st.integers(1, 200), per_rank=st.integers(1, 16), world_size=st.integers(1, 5))
def test_every_sample_is_seen_once_and_no_rank_is_ever_without_data(
    samples: int, per_rank: int, world_size: int
) -> None:
    """T13. Breaks if ranks have unequal numbers of steps, or none of a step's samples: DDP's join would be needed."""
    if samples < world_size:
        with pytest.raises(ValueError, match="one sample for each rank"):
            epoch_of(samples, per_rank * world_size, world_size)
        return
    steps = epoch_of(samples, per_rank * world_size, world_size)
    assert sorted(index for step in steps for share in step for index in share) == list(range(samples))
    assert all(len(share) >= 1 for step in steps for share in step)


@settings(deadline=None, max_examples=60)
@given(samples=st.integers(12, 200), multiple=st.integers(1, 4))
def test_the_global_batches_do_not_depend_on_the_number_of_ranks(samples: int, multiple: int) -> None:
    # 12 is divisible by 1, 2, 3 and 4; a joined tail may make the last batch longer, so it is left out
    full = samples // (12 * multiple)
    unions = [
        [sorted(index for share in step for index in share) for step in epoch_of(samples, 12 * multiple, ranks)]
        for ranks in (1, 2, 3, 4)
    ]
    assert all(union[: full - 1] == unions[0][: full - 1] for union in unions)


def test_the_count_of_a_step_is_the_denominator_of_its_mean() -> None:
    for rank in range(3):
        shares = list(TrainBatches(samples=31, global_batch=12, rank=rank, world_size=3, seed=0))
        assert [share.global_count for share in shares] == [12, 12, 7]
    assert [sum(len(share) for share in step) for step in epoch_of(31, 12, 3)] == [12, 12, 7]


def test_a_tail_smaller_than_the_ranks_joins_the_batch_before_it() -> None:
    steps = epoch_of(26, 12, 3)
    assert [[len(share) for share in step] for step in steps] == [[4, 4, 4], [5, 5, 4]]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    """T16. Breaks if the order is not drawn from the epoch and the seed, or from anything else."""
    first = epoch_of(50, 10, 2, epoch=1)
    assert first == epoch_of(50, 10, 2, epoch=1)
    assert first != epoch_of(50, 10, 2, epoch=2)
    assert first != epoch_of(50, 10, 2, epoch=1, seed=1)


def test_drop_last_leaves_out_the_incomplete_batch_and_needs_a_full_one() -> None:
    batches = TrainBatches(samples=31, global_batch=12, rank=0, world_size=3, seed=0, drop_last=True)
    assert [share.global_count for share in batches] == [12, 12]
    with pytest.raises(ValueError, match="at least 12 training samples, one full batch"):
        TrainBatches(samples=11, global_batch=12, rank=0, world_size=3, seed=0, drop_last=True)


@settings(deadline=None, max_examples=100)
@given(samples=st.integers(1, 300), batch=st.integers(1, 64), world_size=st.integers(1, 5))
def test_evaluation_deals_whole_batches_that_do_not_depend_on_the_ranks(
    samples: int, batch: int, world_size: int
) -> None:
    def dealt(ranks: int) -> list[list[int]]:
        plans = [EvalBatches(samples=samples, batch=batch, rank=rank, world_size=ranks) for rank in range(ranks)]
        assert [len(plan) for plan in plans] == [len(list(plan)) for plan in plans]
        return sorted(share.indices.tolist() for plan in plans for share in plan)

    assert dealt(world_size) == dealt(1)
    assert torch.cat([share.indices for share in EvalBatches(samples, batch, 0, 1)]).tolist() == list(range(samples))


LABELS = np.array([0] * 40 + [1] * 9 + [2])
"""50 samples; the last class has one."""


def balanced(rank: int = 0, world_size: int = 1, epoch: int = 1, done: int = 0) -> list[Share]:
    batches = TrainBatches(
        samples=50, global_batch=12, rank=rank, world_size=world_size, seed=3, balance=LABELS
    )  # fmt: skip
    batches.set_epoch(epoch, done)
    assert len(batches) == len(list(batches))
    return list(batches)


def test_balanced_epochs_are_as_long_as_others_and_have_all_classes_equally_often() -> None:
    for epoch in (1, 2):
        drawn = torch.cat([share.indices for share in balanced(epoch=epoch)]).numpy()
        assert sorted(np.bincount(LABELS[drawn]).tolist()) == [16, 17, 17]
        assert len(set(drawn[LABELS[drawn] == 0].tolist())) > 8  # not the same few
    first, again, other = balanced(), balanced(), balanced(epoch=2)
    assert all(torch.equal(one.indices, two.indices) for one, two in zip(first, again, strict=True))
    assert any(not torch.equal(one.indices, two.indices) for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_balanced_draws_are_the_same_at_any_number_of_ranks_and_a_resumed_epoch_goes_on(world_size: int) -> None:
    for done in (0, 12, 36):
        ranks = [balanced(rank, world_size, done=done) for rank in range(world_size)]
        for step, whole in zip(zip(*ranks, strict=True), balanced()[done // 12 :], strict=False):
            size = min(len(whole.indices), 12)  # a short tail may have been joined
            dealt = torch.empty(sum(len(share.indices) for share in step), dtype=torch.int64)
            for rank, share in enumerate(step):
                dealt[rank::world_size] = share.indices
            assert dealt[:size].tolist() == whole.indices[:size].tolist()


def test_a_sample_has_another_key_each_time_it_is_drawn_in_an_epoch() -> None:
    indices, keys = (torch.cat(parts) for parts in zip(*((s.indices, s.keys) for s in balanced()), strict=True))
    assert len(set(keys.tolist())) == 50
    assert (keys % 50).tolist() == indices.tolist()
    last = keys[indices == 49]
    assert last.tolist() == [49 + 50 * time for time in range(len(last))]
    plain = list(TrainBatches(samples=50, global_batch=12, rank=0, world_size=1, seed=3))
    assert all(torch.equal(share.indices, share.keys) for share in plain)
