"""Stacks of ranks that hang in real collectives, asked for from outside, and which of the ranks is the odd one."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tests.ranks  # imports what DistributedDataParallel would import in each rank
from launch.events import Stack
from launch.stacks import RankHandle, collect, describe, name_ranks, odd_one_out, parse, process_state, waits_in
from tests.hanging_ranks import hanging_ranks
from tests.waiting import wait_until

assert tests.ranks
MAIN = "0x00007f5dc962eb80"
ANSWER = f"""Thread 0x00007f5dc0000640 (most recent call first):
  File "/lib/threading.py", line 324 in wait
Current thread {MAIN} [python] (most recent call first):
  Garbage-collecting
  File "/site/torch/distributed/distributed_c10d.py", line 4181 in all_reduce
  File "<frozen runpy>", line ??? in <module>
"""
WAITING = ("all_reduce (distributed_c10d.py:4181)", "wrapper (c10d_logger.py:83)", "step (train.py:14)")
BACKWARD = ("_engine_run_backward (graph.py:824)", "backward (__init__.py:347)", "step (train.py:9)")
READING = ("next (loader.py:12)", "step (train.py:3)")


def stack(rank: int, frames: tuple[str, ...] = WAITING, state: str = "sleeping") -> Stack:
    return Stack(rank=rank, host="n1", frames=frames, state=state)  # type: ignore[arg-type]


W, B, R = stack(0), stack(0, BACKWARD), stack(0, READING)


def stops_inside(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(4))


def skips_one(rank: int) -> None:
    if rank == 1:
        load()
    dist.all_gather_object([None] * 3, rank)


def load() -> None:
    time.sleep(100)


def trains_unevenly(rank: int) -> None:
    model = DistributedDataParallel(torch.nn.Linear(3, 3))
    loss = model(torch.ones(2, 3)).sum()
    if rank == 0:
        load()
    loss.backward()


def all_wait(handles: list[RankHandle], letters: str) -> bool:
    """Whether the ranks sleep or are stopped, as `letters` says of each."""
    states = {"S": "sleeping", "T": "stopped"}
    return all(process_state(each.pid) == states[letter] for each, letter in zip(handles, letters, strict=True))


def stand(handles: list[RankHandle], *places: str) -> bool:
    """Whether each rank sleeps in this collective or function."""
    found = [{waits_in(one.frames), *(frame.partition(" ")[0] for frame in one.frames)} for one in collect(handles)]
    are_there = all(place in names for place, names in zip(places, found, strict=True))
    return are_there and all_wait(handles, "S" * len(handles))


def test_a_rank_that_is_stopped_is_named_and_answers(tmp_path: Path) -> None:
    with hanging_ranks(stops_inside, 3, tmp_path) as handles:
        wait_until(lambda: all_wait(handles, "STS"))
        stacks = collect(handles)
        assert [one.state for one in stacks] == ["sleeping", "stopped", "sleeping"]
        assert all(
            any(frame.startswith("stops_inside (test_launch_stacks.py") for frame in one.frames) for one in stacks
        )
        assert [waits_in(one.frames) for one in stacks if one.rank != 1] == ["all_reduce", "all_reduce"]
        ranks, sentence = odd_one_out(stacks)
        assert ranks == (1,)
        assert sentence.startswith("rank 1 is stopped, in stops_inside (test_launch_stacks.py:")
        assert "the other 2 in all_reduce from stops_inside (test_launch_stacks.py:" in sentence


def test_a_rank_that_skips_a_collective_is_named(tmp_path: Path) -> None:
    with hanging_ranks(skips_one, 3, tmp_path) as handles:
        wait_until(lambda: stand(handles, "all_gather_object", "load", "all_gather_object"))
        first = collect(handles)
        wait_until(lambda: all_wait(handles, "SSS"))
        second = collect(handles)  # which must not be taken for the first
        assert first == second
        ranks, sentence = odd_one_out(second)
        assert ranks == (1,)
        assert sentence.startswith("rank 1 stands in load (test_launch_stacks.py:")
        assert second[1].frames[1].startswith("skips_one (test_launch_stacks.py")
        assert not any("idle" in frame for one in second for frame in one.frames)  # another thread's


def test_a_gradient_that_is_waited_for_is_a_collective(tmp_path: Path) -> None:
    with hanging_ranks(trains_unevenly, 2, tmp_path) as handles:
        wait_until(lambda: stand(handles, "load", "backward"))
        stacks = collect(handles)
        assert waits_in(stacks[1].frames) == "backward"
        ranks, sentence = odd_one_out(stacks)
        assert ranks == (0,)
        assert "rank 1 in backward from trains_unevenly (test_launch_stacks.py:" in sentence


def test_a_process_that_does_not_expect_the_signal_lives_on(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        try:
            wait_until(lambda: process_state(other.pid) == "sleeping")
            handle = RankHandle(rank=0, host="n1", pid=other.pid, stack_file=tmp_path / "none")
            assert collect([handle]) == (stack(0, ()),)
            assert other.poll() is None
            os.kill(other.pid, signal.SIGSTOP)
            wait_until(lambda: process_state(other.pid) == "stopped")
            assert collect([handle]) == (stack(0, (), "stopped"),)
            time.sleep(0.2)
            assert process_state(other.pid) == "stopped"  # it cannot answer, so it does not have to go on
        finally:
            other.kill()
        wait_until(lambda: process_state(other.pid) == "gone")  # but not reaped
        assert collect([handle])[0].state == "gone"
    assert collect([handle])[0].state == "gone"


def test_an_answer_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; from launch.stacks import SIGNAL, register; register(open(sys.argv[1], 'w'));"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL}); print(flush=True); time.sleep(60)"
    )
    root = Path(__file__).resolve().parent.parent
    words = [sys.executable, "-c", code, str(tmp_path / "stack")]
    with subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None
        try:
            deaf.stdout.readline()
            wait_until(lambda: process_state(deaf.pid) == "sleeping")
            start = time.monotonic()
            handle = RankHandle(rank=0, host="n1", pid=deaf.pid, stack_file=tmp_path / "stack")
            assert collect([handle], timeout_s=0.3) == (stack(0, ()),)
            assert time.monotonic() - start < 5
        finally:
            deaf.kill()


def test_the_main_thread_is_read() -> None:
    frames = ("all_reduce (distributed_c10d.py:4181)", "<module> (<frozen runpy>:???)")
    assert parse(ANSWER, MAIN) == frames
    assert parse(ANSWER, "") == frames  # the one that got the signal
    assert parse(ANSWER, "0x00007f5dc0000640") == ("wait (threading.py:324)",)
    assert parse(ANSWER + ANSWER, MAIN) == frames
    assert parse("", MAIN) == ()
    deep = ANSWER + 200 * '  File "/a/b.py", line 1 in f\n'
    assert len(parse(deep, MAIN)) == 50


def test_where_a_rank_waits() -> None:
    assert waits_in(WAITING) == "all_reduce"
    assert describe(stack(0)) == "all_reduce from step (train.py:14)"
    assert waits_in(BACKWARD) == "backward"
    assert waits_in(("hook (train.py:1)", *BACKWARD)) is None  # its own code runs inside
    helper = (
        "_store_based_barrier (distributed_c10d.py:900)",
        "init_process_group (distributed_c10d.py:1)",
        "main (a.py:1)",
    )
    assert describe(stack(0, helper)) == "init_process_group from main (a.py:1)"
    assert waits_in(READING) is None
    assert describe(stack(0, ())) == "an unknown place"


@pytest.mark.parametrize(
    ("odd", "start", "stacks"),
    [
        ((1,), "rank 1 stands in next (loader.py:12), the other 7 in all_r", [W, R, W, W, W, W, W, W]),
        ((0,), "rank 0 stands in next (loader.py:12), rank 1 in all_reduce", [R, W]),
        ((), "ranks 0-1 stand in all_reduce", [W, W]),
        ((), "rank 0 stands in all_reduce from step (train.py:14); rank 1 stands in backward", [W, B]),
        ((2,), "rank 2 stands in backward from step (train.py:9), the other 2", [W, W, B]),
        ((), "ranks 0-2 stand in next (loader.py:12); rank 3 stands in all", [R, R, R, W]),
        ((3,), "rank 3 stands in sync (gpu.py:1)", [R, R, R, stack(0, ("sync (gpu.py:1)",))]),
        ((), "rank 0 stands in next (loader.py:12); rank 1", [R, stack(0, ("sync (gpu.py:1)",))]),
        ((2,), "rank 2 stands in an unknown place", [W, W, stack(0, ())]),
        ((), "ranks 0-1 stand in an unknown place", [stack(0, ()), stack(0, ())]),
        ((0, 1), "ranks 0-1 are stopped", [stack(0, state="stopped"), stack(0, state="stopped")]),
        ((1,), "rank 1 is waiting for a disk, in next", [W, stack(0, READING, "waiting for a disk"), R]),
        ((1,), "rank 1 is gone, rank 0 in all_reduce", [W, stack(0, (), "gone")]),
        ((), "", []),
    ],
)
def test_the_odd_one_out(odd: tuple[int, ...], start: str, stacks: list[Stack]) -> None:
    ranks, sentence = odd_one_out([replace(one, rank=rank) for rank, one in enumerate(stacks)])
    assert (ranks, sentence[: len(start)]) == (odd, start)


def test_names_of_ranks() -> None:
    assert name_ranks([5]) == "rank 5"
    assert name_ranks([3, 0, 1, 2, 5, 2]) == "ranks 0-3, 5"
    assert name_ranks(range(0, 40, 2)) == "ranks 0, 2, 4, 6, 8, 10, 12, 14 and more, 20 in all"
