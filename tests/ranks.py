"""Real gloo ranks, forked from the test process: they start in milliseconds, since torch is imported already."""

import faulthandler
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer imports it when it is made: 2 s in every rank, unless it is here already
import torch.distributed as dist

from ddp.context import DistContext, process_group
from ddp.env import RankInfo
from launch.stacks import RankHandle, collect, register
from tests import forks

Work = Callable[[DistContext], Any]


def _run(work: Work, rank: int, world_size: int, folder: Path, group_timeout_s: float) -> None:
    """In the child: join the group, do the work, leave its result or its traceback in a file, and end at once."""
    torch.set_num_threads(1)
    stack_file = open(folder / f"{rank}.stack", "w")  # noqa: SIM115
    register(stack_file)
    faulthandler.enable(stack_file)  # what a segmentation fault leaves
    outcome: tuple[bool, Any]
    info = RankInfo(
        rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size, node_rank=0, launched=True
    )
    try:
        store = dist.FileStore(str(folder / "store"), world_size)
        with process_group(info, device=torch.device("cpu"), timeout_s=group_timeout_s, store=store) as ctx:
            outcome = (True, work(ctx))
    except BaseException:
        outcome = (False, traceback.format_exc())
    (folder / f"{rank}.tmp").write_bytes(pickle.dumps(outcome))
    (folder / f"{rank}.tmp").rename(folder / f"{rank}.pickle")
    os._exit(0)


def _outcome(folder: Path, rank: int, exitcode: int | None) -> tuple[bool, Any]:
    file = folder / f"{rank}.pickle"
    if file.exists():
        outcome: tuple[bool, Any] = pickle.loads(file.read_bytes())  # noqa: S301
        return outcome
    return False, f"it died: exit code {exitcode}\n{(folder / f'{rank}.stack').read_text()}"


def run_ranks(
    work: Work, world_size: int, *, timeout_s: float = 120, may_die: bool = False, group_timeout_s: float = 60
) -> list[Any]:
    """Run `work(ctx)` on that many ranks -> its results in rank order; a failure shows its traceback.

    With `may_die` a rank must have been killed by SIGKILL; its result, and that of one that failed thereby, is None.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = [forks.start(_run, work, rank, world_size, folder, group_timeout_s) for rank in range(world_size)]
        deadline = time.monotonic() + timeout_s
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        killed = any(process.exitcode == -signal.SIGKILL for process in ranks)
        hung = [
            RankHandle(rank=rank, host="", pid=process.pid or 0, stack_file=folder / f"{rank}.stack")
            for rank, process in enumerate(ranks)
            if process.is_alive()
        ]
        stacks = collect(hung) if hung else ()
        for process in ranks:
            process.kill()
            process.join()
        where = "\n".join(f"rank {each.rank}, {each.state}: {', '.join(each.frames[:12])}" for each in stacks)
        assert not hung, f"{len(hung)} of {world_size} ranks still ran after {timeout_s} s:\n{where}"
        outcomes = [_outcome(folder, rank, process.exitcode) for rank, process in enumerate(ranks)]
    # All of them: the first rank's "connection reset" is often but the echo of what another one tells.
    failed = [
        f"rank {rank} of {world_size} failed:\n{value}" for rank, (good, value) in enumerate(outcomes) if not good
    ]
    assert not failed or (may_die and killed), "\n".join(failed)
    return [value if good else None for good, value in outcomes]
