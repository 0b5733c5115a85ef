"""Command lines for torchrun, and the processes that run them."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
BOOT = ROOT / "launch" / "boot.py"
PRELOAD = ("torch._dynamo", "torch.distributed.tensor", "rich.progress", "tyro")
"""What our own entries import besides torch, sooner or later, in every rank: once is enough."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A worker module, its arguments, and how many processes of it run on this machine."""

    nproc_per_node: int
    module: str
    argv: tuple[str, ...]
    max_restarts: int = 0
    ours: tuple[str, ...] = ()
    """Options of ringmark's launcher that torchrun does not have."""
    spawns: bool = False
    """Whether the module itself starts the processes (--strategy ddp-spawn), so that torchrun is not needed."""

    def arguments(self) -> list[str]:
        """Arguments for torchrun."""
        restarts = ["--max-restarts", str(self.max_restarts)] if self.max_restarts else []
        count = str(self.nproc_per_node)
        return ["--standalone", "--nproc-per-node", count, *restarts, "-m", self.module, *self.argv]

    def shown(self) -> str:
        """The line that a person can paste into a shell."""
        if self.spawns:
            return shlex.join(["python", "-m", self.module, *self.argv])
        return shlex.join(["torchrun", *self.arguments()])


def worker_environment(environ: Mapping[str, str], nproc_per_node: int) -> dict[str, str]:
    """The environment of the workers: ours, with our packages first and the cores shared out among the ranks."""
    paths = [str(ROOT), *filter(None, [environ.get("PYTHONPATH")])]
    threads = max(1, len(os.sched_getaffinity(0)) // nproc_per_node)
    return {
        "OMP_NUM_THREADS": str(threads),
        **environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",  # a folder `models` where the user stands must not be taken for ours
    }


def _command(launch: Launch) -> list[str]:
    if launch.spawns:
        return [sys.executable, "-m", launch.module, *launch.argv]
    return agent_command("--preload", ",".join(PRELOAD), *launch.ours, *launch.arguments())


def agent_command(*words: str) -> list[str]:
    """argv of the launcher, whatever there may be in the folder where the user stands."""
    return [sys.executable, "-P", str(BOOT), "agent", *words]


def replace_this_process(launch: Launch) -> NoReturn:
    """Become the launch, so that signals and the exit code are its own."""
    command = _command(launch)
    os.execve(command[0], command, worker_environment(os.environ, launch.nproc_per_node))


def run(launch: Launch) -> int:
    """Run a launch and wait for it -> its exit code; 130 after Ctrl-C, which the launch receives as well."""
    environment = worker_environment(os.environ, launch.nproc_per_node)
    process = subprocess.Popen(_command(launch), env=environment)
    interrupted = False
    while True:
        try:
            code = process.wait()
            return 130 if interrupted else 128 - code if code < 0 else code
        except KeyboardInterrupt:
            interrupted = True
