"""A process that outlives the launcher for a moment: whatever ends it, nothing of the launch stays behind."""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from launch.processes import adopt_orphans, sweep

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
BACKSTOP_S = 20


class Guardian:
    """Reads a pipe whose other end only the launcher holds. When it closes, the launch is over, however it ended."""

    def __init__(self, folder: Path, mark: str, child: Callable[[], None] | None) -> None:
        """Fork the guardian, which runs `child` in a process of its own, whose orphans it adopts.

        `folder` is removed at the end; `mark` is NAME=value of the environment of all that was started.
        """
        read, self._write = os.pipe()
        launcher = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)  # until the guardian ignores them
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._write)
            try:
                _guard(read, folder, mark.encode(), child, launcher)
            finally:
                os._exit(0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
        os.close(read)

    def watch(self, session: int) -> None:
        """Have all processes of a session ended with the launch."""
        os.write(self._write, f"{session}\n".encode())

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


def _guard(read: int, folder: Path, mark: bytes, child: Callable[[], None] | None, launcher: int) -> None:
    os.setsid()  # a terminal's signals are the launcher's
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    adopt_orphans()
    if child is not None and os.fork() == 0:
        os.close(read)
        try:
            child()
        finally:
            os._exit(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how adopted orphans ended
    text = b""
    while part := os.read(read, 4096):
        text += part
    sessions = {int(line) for line in text.split()}
    sweep(os.getpid(), sessions, mark, spared={os.getpid(), launcher})
    shutil.rmtree(folder, ignore_errors=True)
