"""A process that outlives the launcher for a moment: whatever ends it, nothing of the launch stays behind."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from launch.processes import EVERYBODYS, sweep

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

SESSION, LAST = "session", "last"
"""What the launcher says of a process that it has started."""


class Guardian:
    """Reads a pipe whose other end only the launcher holds. When it closes, the launch is over, however it ended."""

    def __init__(self, folder: Path, mark: str) -> None:
        """Fork the guardian. Before any thread, and before anything large is imported.

        `folder` is removed at the end; `mark` is NAME=value of the environment of all that was started.
        """
        read, self._write = os.pipe()
        launcher = os.getpid()
        with signals_blocked():
            self.pid = os.fork()
            if self.pid == 0:
                os.close(self._write)
                try:
                    _guard(read, folder, mark.encode(), launcher)
                finally:
                    os._exit(0)
        os.close(read)

    def watch(self, session: int) -> None:
        """Have all processes of a session ended with the launch, and what descends from its leader."""
        _check(session)
        os.write(self._write, f"{SESSION} {session}\n".encode())

    def watch_adopter(self, session: int) -> None:
        """The same, and its leader, which adopts orphans, after all others."""
        _check(session)
        os.write(self._write, f"{LAST} {session}\n".encode())

    def release(self) -> None:
        """In a child of the launcher: let go of the pipe, which only the launcher may hold."""
        os.close(self._write)

    def end(self) -> None:
        """The launch is over: wait until everything of it is gone. A handler of signals may call it meanwhile again."""
        if self._write >= 0:
            write, self._write = self._write, -1
            os.close(write)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _check(session: int) -> None:
    """Raise ValueError for what is no session of a process that somebody has started: all of it would be killed."""
    if session in EVERYBODYS:
        raise ValueError(f"expected the session of a process that was started, got {session}; report this")


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Around a fork, until the child ignores them: the launcher's signals wait."""
    signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)


def ignore_signals() -> None:
    """In a process that ends with its launcher, and not by what a terminal or SLURM sends to all of a launch."""
    os.setsid()
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)


def _guard(read: int, folder: Path, mark: bytes, launcher: int) -> None:
    ignore_signals()
    text = b""
    while part := os.read(read, 4096):
        text += part
    said = [line.split() for line in text.decode().splitlines()]
    sessions = {int(pid) for _, pid in said}
    adopters = {int(pid) for kind, pid in said if kind == LAST}
    spared = {os.getpid(), launcher}
    roots = sessions | ({launcher} if os.getppid() == launcher else set())  # it may be gone, and its number another's
    sweep(roots, sessions, mark, spared | adopters)
    sweep(roots, sessions, mark, spared)
    shutil.rmtree(folder, ignore_errors=True)
