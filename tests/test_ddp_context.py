"""Who a rank is, and what ranks can say to each other."""

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ddp import shared
from ddp.context import DistContext, new_group, new_patient_group, pick_device
from ddp.env import ALONE, RankInfo, read_rank
from ddp.shared import shared_uint8
from tests.ranks import run_ranks

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1"}


def test_without_torchruns_variables_a_process_runs_alone() -> None:
    assert read_rank({"PATH": "/bin"}) == ALONE


def test_torchruns_variables_are_read() -> None:
    assert read_rank(TORCHRUN) == RankInfo(
        rank=3, world_size=4, local_rank=1, local_world_size=2, node_rank=1, launched=True
    )


@pytest.mark.parametrize("name", sorted(TORCHRUN))
def test_a_partial_torchrun_environment_is_refused_with_the_missing_names(name: str) -> None:
    with pytest.raises(ValueError, match=f"missing {name}; start with torchrun"):
        read_rank({key: value for key, value in TORCHRUN.items() if key != name})


def test_a_rank_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected whole numbers .* 'three'"):
        read_rank(TORCHRUN | {"RANK": "three"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
def test_asking_for_a_gpu_that_is_not_there_says_how_to_go_on() -> None:
    with pytest.raises(
        ValueError, match=r"expected a GPU for each of the 1 ranks .* got 0 visible GPUs; .* --device cpu"
    ):
        pick_device("cuda", ALONE)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gather_gives_every_rank_all_values_in_rank_order(world_size: int) -> None:
    def work(ctx: DistContext) -> list[object]:
        return ctx.gather({"rank": ctx.rank, "text": "ü" * ctx.rank, "list": [0.1] * ctx.rank, "none": None})

    expected = [{"rank": rank, "text": "ü" * rank, "list": [0.1] * rank, "none": None} for rank in range(world_size)]
    assert run_ranks(work, world_size) == [expected] * world_size


def test_sum_and_mean_are_over_the_ranks() -> None:
    def work(ctx: DistContext) -> tuple[float, float]:
        value = torch.tensor(float(ctx.rank))
        return float(ctx.sum(value.clone())), float(ctx.mean(value.clone()))

    assert run_ranks(work, 3) == [(3.0, 1.0)] * 3


def test_the_first_ranks_form_a_group_of_their_own() -> None:
    def work(ctx: DistContext) -> tuple[int, int, float] | None:
        part = ctx.first(2)
        return None if part is None else (part.rank, part.world_size, float(part.sum(torch.ones(()))))

    assert run_ranks(work, 3) == [(0, 2, 2.0), (1, 2, 2.0), None]


def test_a_rank_that_comes_late_still_finds_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(path: str, flags: int) -> int:
        time.sleep(0.3)
        return os.open(path, flags)

    monkeypatch.setattr(shared, "os", SimpleNamespace(**{**vars(os), "open": late}))

    def work(ctx: DistContext) -> int:
        array = shared_uint8((3,), ctx, "test")
        array[ctx.rank] = 1
        ctx.barrier()
        return int(array.sum())

    assert run_ranks(work, 3) == [3, 3, 3]


def test_ranks_of_a_node_share_one_array() -> None:
    def work(ctx: DistContext) -> list[int]:
        array = shared_uint8((ctx.world_size, 4), ctx, "test")
        assert array.shape == (ctx.world_size, 4)
        array[ctx.rank] = ctx.rank + 1
        ctx.barrier()
        return array.sum(1).tolist()

    assert run_ranks(work, 3) == [[4, 8, 12]] * 3


def test_a_part_of_the_ranks_waits_as_long_as_all_do() -> None:
    """torch's own timeout, of 10 or 30 minutes, would keep a benchmark of fewer ranks from telling that one hangs."""

    def work(ctx: DistContext) -> bool:
        part = ctx.first(2)
        if ctx.rank == 1:
            assert part is not None
            with pytest.raises(RuntimeError):
                part.barrier()
        ctx.patient.barrier()  # the others live, and wait here
        return True

    assert run_ranks(work, 3, group_timeout_s=4) == [True] * 3


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_group_is_returned_when_it_is_whole(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a rank may leave while others still connect to it, which ends them."""
    make = dist.new_group

    def work(ctx: DistContext) -> tuple[float, float]:
        made_s = []

        def slow(*arguments: Any, **options: Any) -> Any:
            group = make(*arguments, **options)
            time.sleep(ctx.rank / 2)
            made_s.append(time.monotonic())
            return group

        monkeypatch.setattr(dist, "new_group", slow)
        assert new_group(list(range(world_size)), 30) is not None
        return made_s[0], time.monotonic()

    made_s, returned_s = zip(*run_ranks(work, world_size), strict=True)
    assert max(made_s) < min(returned_s)


def test_a_group_that_does_not_come_about_is_no_matter_of_patience() -> None:
    def work(ctx: DistContext) -> bool:
        if ctx.rank == 0:
            time.sleep(4)
        else:
            with pytest.raises(RuntimeError):
                new_patient_group([0, 1], 1.0)
        return True

    assert run_ranks(work, 2) == [True] * 2


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_wait_longer_than_the_timeout_for_what_one_does_alone(world_size: int) -> None:
    """T10. Breaks if a checkpoint or an evaluation of one rank is awaited in the group that training uses."""

    def work(ctx: DistContext) -> list[int]:
        if ctx.is_main:
            time.sleep(4.5)
        ranks = ctx.patient.gather(ctx.rank)
        ctx.barrier()  # the group of training is still of use
        if ctx.is_main:
            time.sleep(4.5)
        else:
            with pytest.raises(RuntimeError):  # which does not wait that long
                ctx.barrier()
        return ranks

    assert run_ranks(work, world_size, group_timeout_s=3) == [list(range(world_size))] * world_size
