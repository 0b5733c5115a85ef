"""What torch's flight recorder tells of ranks that hang where their stacks look alike."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from launch.recorder import Collective, ask, behind, serve
from tests.hanging_ranks import hanging_ranks, wait_until


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
        while True:
            os.read(os.pipe()[0], 1)
    works.pop().wait()
    works.append(dist.barrier(async_op=True))
    works.pop().wait()


def test_ranks_tell_what_they_began(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        skips_one(tmp_path, rank)

    with hanging_ranks(work, 3, tmp_path) as handles:
        files = [handle.stack_file for handle in handles]
        wait_until(lambda: [one.number for one in ask(files)] == [4, 3, 4])
        for _ in range(2):  # more than once
            found = ask(files)
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
        for name in ("second", "third"):
            dist.destroy_process_group()
            dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / name), 2), rank=rank, world_size=2)
        serve(tmp_path / f"{rank}.stack", rank)
        if rank == 0:
            dist.all_reduce(torch.ones(1))
        os.read(os.pipe()[0], 1)

    def joined(rank: int) -> None:
        for _ in range(5):
            dist.barrier()
        work(rank)

    with hanging_ranks(joined, 2, tmp_path) as handles:
        files = [handle.stack_file for handle in handles]
        wait_until(lambda: [(one.rank, one.number, one.name) for one in ask(files)][:1] == [(0, 1, "all_reduce")])


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
