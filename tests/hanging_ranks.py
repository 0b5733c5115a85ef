"""Real gloo ranks that hang, forked from the test process, with the handles that a launcher has of them."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from launch.stacks import RankHandle, register
from tests import forks
from tests.waiting import wait_until

HOST = "n1"
Work = Callable[[int], None]


def idle() -> None:
    """A thread beside the main one, as loaders have them."""
    time.sleep(100)


def be_rank(work: Work, rank: int, world_size: int, folder: Path, timeout_s: float) -> None:
    """In the child: join the group, tell of it in a file, do what hangs, and end at once."""
    torch.set_num_threads(1)
    register(open(folder / f"{rank}.stack", "w"))  # noqa: SIM115
    threading.Thread(target=idle, daemon=True).start()
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s))
    dist.barrier()
    (folder / f"{rank}.joined").touch()
    work(rank)
    os._exit(0)


@contextmanager
def hanging_ranks(work: Work, world_size: int, folder: Path, timeout_s: float = 50) -> Iterator[list[RankHandle]]:
    """Ranks that have joined and now do `work(rank)`; they are killed at the end."""
    ranks = [forks.start(be_rank, work, rank, world_size, folder, timeout_s) for rank in range(world_size)]
    try:
        wait_until(lambda: all((folder / f"{rank}.joined").exists() for rank in range(world_size)))
        yield [
            RankHandle(rank=rank, host=HOST, pid=process.pid or 0, stack_file=folder / f"{rank}.stack")
            for rank, process in enumerate(ranks)
        ]
    finally:
        for process in ranks:
            process.kill()
        for process in ranks:
            process.join()
