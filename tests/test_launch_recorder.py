"""What torch's flight recorder tells of ranks that hang where their stacks look alike."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from launch.recorder import Collective, ask, behind, serve
from launch.stacks import RankHandle
from tests.hanging_ranks import hanging_ranks
from tests.waiting import wait_until


def last(rank: int, number: int, name: str = "all_reduce", group: str = "0 default_pg") -> Collective:
    return Collective(rank=rank, group=group, number=number, name=name, done=False)


def skips_one(folder: Path, rank: int) -> None:
    """All wait at the same line, for a barrier that rank 1 takes for an all_reduce that it skipped."""
    serve(folder / f"{rank}.stack", rank)
    works = [] if rank == 1 else [dist.all_reduce(torch.ones(1), async_op=True)]
    works.append(dist.all_reduce(torch.ones(1), async_op=True))
    if rank == 1:
        works.pop().wait()
        works.append(dist.all_reduce(torch.ones(1), async_op=True))
        stands(folder, rank)
    works.pop().wait()
    works.append(dist.barrier(async_op=True))
    stands(folder, rank)


def stands(folder: Path, rank: int) -> None:
    """Begin nothing more, and say so: who is asked while it begins something may be stopped for good."""
    (folder / f"{rank}.stands").touch()
    os.read(os.pipe()[0], 1)


def asked(handles: list[RankHandle]) -> tuple[Collective, ...]:
    """What the ranks tell once they all stand still."""
    files = [handle.stack_file for handle in handles]
    wait_until(lambda: all(file.with_suffix(".stands").exists() for file in files))
    return ask(files, timeout_s=20)


def test_ranks_tell_what_they_began(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        skips_one(tmp_path, rank)

    with hanging_ranks(work, 3, tmp_path) as handles:
        for _ in range(2):  # more than once
            found = asked(handles)
            assert [one.number for one in found] == [4, 3, 4]
            assert [(one.rank, one.name, one.done) for one in found if one.rank != 1] == [
                (0, "barrier", False),
                (2, "barrier", False),
            ]
            assert behind(found) == (
                (1,),
                "rank 1 began 3 collectives of group 0 default_pg, the last all_reduce; "
                "ranks 0, 2 began 4 collectives of group 0 default_pg, the last barrier",
            )


def test_a_group_that_was_made_anew_counts_from_one(tmp_path: Path) -> None:
    """As a fork does that inherits its parent's records, and a script that destroys its group and joins again."""

    def work(rank: int) -> None:
        serve(tmp_path / f"{rank}.stack", rank)
        for _ in range(5):
            dist.barrier()
        for name in ("second", "third"):
            dist.barrier()  # torch's init returns while others still connect: who is gone by then takes them along
            dist.destroy_process_group()
            dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / name), 2), rank=rank, world_size=2)
        works = [dist.all_reduce(torch.ones(1), async_op=True)] if rank == 0 else []
        stands(tmp_path, rank)
        del works

    with hanging_ranks(work, 2, tmp_path) as handles:
        assert asked(handles)[0] == last(0, 1)


def test_what_was_begun_before_is_not_told(tmp_path: Path) -> None:
    """A fork has its parent's records, of groups in which it is no member."""

    def work(rank: int) -> None:
        dist.barrier(group=dist.new_group([0, 1]))
        serve(tmp_path / f"{rank}.stack", rank)
        works = [dist.all_reduce(torch.ones(1), async_op=True)] if rank == 0 else []
        stands(tmp_path, rank)
        del works

    with hanging_ranks(work, 2, tmp_path) as handles:
        assert asked(handles) == (last(0, 2),)


def test_nobody_answers(tmp_path: Path) -> None:
    assert ask([tmp_path / "none"]) == ()
    os.mkfifo(tmp_path / "gone.ask")
    assert ask([tmp_path / "gone.stack"]) == ()


@pytest.mark.parametrize(
    ("odd", "found"),
    [
        ((), []),
        ((), [last(0, 3), last(1, 3)]),
        ((1,), [last(0, 3), last(1, 2)]),
        ((0,), [last(0, 2), last(1, 3)]),
        ((), [last(0, 3), last(1, 3, "barrier")]),
        ((1,), [last(0, 3), last(1, 3, "barrier"), last(2, 3)]),
        ((2,), [last(0, 3), last(1, 3), last(2, 4)]),
        ((1,), [last(0, 3), last(1, 3), last(0, 9, group="1 x"), last(1, 8, group="1 x")]),
        ((), [last(0, 9), last(1, 8, group="1 x")]),
        ((), [last(0, 1), last(1, 2), last(2, 3)]),
    ],
)
def test_who_is_behind(odd: tuple[int, ...], found: list[Collective]) -> None:
    assert behind(found)[0] == odd
