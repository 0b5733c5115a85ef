"""What torch really says in ranks that lose another, or wait for it in vain: read from real ones, not from memory."""

import faulthandler
import os
import signal
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ddp.context import set_timeout
from launch.events import LastWords
from launch.stacks import process_state
from launch.victims import is_victim, timed_out, words_in_log
from tests.hanging_ranks import hanging_ranks
from tests.waiting import wait_until


def dies() -> None:
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


def leaves() -> None:
    os._exit(0)


def comes_late() -> None:
    time.sleep(50)


def words_of_peers(fault: Callable[[], None], folder: Path, timeout_s: float) -> list[LastWords]:
    """What ranks 0 and 2 say when rank 1 does that instead of joining them in an all_reduce."""

    def work(rank: int) -> None:
        assert dist.group.WORLD is not None
        set_timeout(dist.group.WORLD, timedelta(seconds=timeout_s))  # only now: to join may take longer
        if rank == 1:
            fault()
        try:
            dist.all_reduce(torch.ones(4))
        except BaseException as error:
            lines = [type(error).__name__, str(error), *traceback.format_exc().splitlines()]
            (folder / f"{rank}.tmp").write_text("\n".join(lines))
            (folder / f"{rank}.tmp").rename(folder / f"{rank}.words")
            comes_late()  # the other one is to see rank 1 gone, not this one

    with hanging_ranks(work, 3, folder):
        files = [folder / f"{rank}.words" for rank in (0, 2)]
        wait_until(lambda: all(file.exists() for file in files))
        said = [file.read_text().split("\n", 2) for file in files]
    return [LastWords(time_s=0.0, type=kind, message=text, traceback=(rest,)) for kind, text, rest in said]


@pytest.mark.parametrize(("fault", "late"), [(dies, False), (leaves, False), (comes_late, True)])
def test_peers_of_a_rank_that_fails_are_victims(fault: Callable[[], None], late: bool, tmp_path: Path) -> None:
    for words in words_of_peers(fault, tmp_path, timeout_s=1.0 if late else 20.0):
        assert is_victim(words.type, words.message), words
        assert timed_out(words) == late, words


def test_an_abort_from_c_leaves_its_words_in_the_log(tmp_path: Path) -> None:
    def mismatched(rank: int) -> None:
        faulthandler.disable()  # the test's own, which would show the abort
        log = os.open(tmp_path / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 2)
        dist.all_reduce(torch.ones(1000 if rank == 1 else 3))
        comes_late()

    with hanging_ranks(mismatched, 3, tmp_path) as handles:
        found: list[LastWords] = []

        def have_spoken() -> bool:
            gone = [each.rank for each in handles if process_state(each.pid) == "gone"]
            found.extend(words for rank in gone if (words := words_in_log(tmp_path / f"{rank}.log", 1.0)))
            return bool(found)

        wait_until(have_spoken)
    assert found[0].type == "EnforceNotMet"
    assert "mismatch" in found[0].message
    assert not is_victim(found[0].type, found[0].message)
