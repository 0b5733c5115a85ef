"""Ranks that one command starts itself, by --strategy ddp-spawn: no torchrun, one machine."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import TYPE_CHECKING

from ddp.mistake import require

if TYPE_CHECKING:
    from torch.distributed import TCPStore

    from ddp.config import TrainConfig
    from ddp.env import RankInfo

STRATEGY = "ddp-spawn"
HOST = "127.0.0.1"
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TOLD_BY_RANKS = (2, 5, 75, 130, 143)
"""Exit codes of which the ranks themselves have said what they mean."""
GRACE_S = 30.0
"""How long the other ranks have to end when one has failed."""


def ranks_to_spawn(config: "TrainConfig", info: "RankInfo") -> int | None:
    """How many ranks this process is to start, or None if it is one itself: --spawn-ranks, or one for each GPU.

    Raises Mistake under torchrun, which would start each of them several times.
    """
    if config.strategy != STRATEGY:
        return None
    if info.launched:
        require(
            multiprocessing.parent_process() is not None,
            f"no torchrun with --strategy {STRATEGY}, which starts its ranks itself",
            f"{info.world_size} started by torchrun",
            "use --strategy ddp, or start with python -m launch.train",
        )
        return None
    if config.parallel.spawn_ranks is not None:
        return config.parallel.spawn_ranks
    if config.device == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def spawn(main: Callable[[], int], ranks: int, start_method: str = "spawn") -> int:
    """Run `main`, which stands at the top of a module, on new ranks -> 0, or the exit code of the first that fails.

    They get this process's arguments and torchrun's variables. Signals that ask for an end are passed on to them, which
    then stop in their own time; if one fails, the others are ended. Death by
    signal n becomes 128 + n. `fork` starts faster, and is wrong where this process has used a GPU.
    """
    from torch.multiprocessing.spawn import start_processes

    store = _local_store()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    with _passing_on() as (received, children):
        context = start_processes(_rank, (main, ranks, store.port), nprocs=ranks, join=False, start_method=start_method)
        children += context.processes
        for number in received:  # came while they were being started
            _send(children, number)
        rank = _first_to_fail(children)
        if rank is None:
            return 0
        _end(children)
        code = children[rank].exitcode
    assert code is not None
    if code not in TOLD_BY_RANKS and -code not in received:
        cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        print(f"ringmark: rank {rank} ended first, {cause}; the others were stopped", file=sys.stderr)
    return 128 - code if code < 0 else code


def _local_store() -> "TCPStore":
    """Where the ranks meet. The port is bound here, so nobody can take it before they come, and locally."""
    from torch.distributed import TCPStore

    listener = socket.create_server((HOST, 0))
    port = listener.getsockname()[1]
    return TCPStore(HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _rank(rank: int, main: Callable[[], int], ranks: int, port: int) -> None:
    """In a new process: be that rank, and end with the exit code of `main`."""
    from launch.worker import end_with

    for number in PASSED_ON:
        signal.signal(number, signal.SIG_DFL)  # a fork has the parent's
    os.setpgrp()  # a terminal's Ctrl-C comes once, from the parent, since a second one means to stop without saving
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the parent has the store: no rank is to make one
    }
    end_with(main)


@contextmanager
def _passing_on() -> Iterator[tuple[list[int], list[BaseProcess]]]:
    """Pass signals on for the length of a `with` block -> those received, and the list to put the children into."""
    received: list[int] = []
    children: list[BaseProcess] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        _send(children, number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield received, children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(children: Sequence[BaseProcess], number: int) -> None:
    for child in children:
        if child.pid is not None and child.is_alive():
            os.kill(child.pid, number)


def _first_to_fail(children: Sequence[BaseProcess]) -> int | None:
    """Wait until a rank fails or all have ended well -> the rank that failed first, or None."""
    running = {child.sentinel: rank for rank, child in enumerate(children)}
    while running:
        for sentinel in wait(list(running)):
            assert isinstance(sentinel, int)
            rank = running.pop(sentinel)
            children[rank].join()
            if children[rank].exitcode != 0:
                return rank
    return None


def _end(children: Sequence[BaseProcess]) -> None:
    """End what still runs: gently, and after a while by force."""
    _send(children, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
        if child.is_alive():
            child.kill()
            child.join()
