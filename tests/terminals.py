"""A terminal of its own for a process, in which keys can be pressed, and that can be closed."""

import os
import pty
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from tests.launches import environment

POLL_S = 0.02


class Terminal:
    """A process in the foreground of a new terminal."""

    def __init__(self, folder: Path, argv: Sequence[str]) -> None:
        self.said = b""
        """What it has written so far."""
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            for number in (signal.SIGHUP, signal.SIGINT):  # whoever runs the tests may ignore them
                signal.signal(number, signal.SIG_DFL)
            os.execve(argv[0], list(argv), environment(folder))
        self._code: int | None = None
        self._open = True

    def type(self, keys: bytes) -> None:
        """Press keys; \\x03 is Ctrl-C."""
        os.write(self._master, keys)

    def listen(self, seconds: float) -> None:
        """Read for so long what it writes."""
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            if not self._open or not select.select([self._master], [], [], left_s)[0]:
                time.sleep(max(0.0, min(left_s, POLL_S)))
                continue
            try:
                self.said += os.read(self._master, 65536)
            except OSError:  # nobody has the other end open
                time.sleep(min(left_s, POLL_S))

    def hear(self, word: bytes, count: int, timeout_s: float) -> bool:
        """Wait until it has said a word so often -> whether it has."""
        deadline = time.monotonic() + timeout_s
        while self.said.count(word) < count and time.monotonic() < deadline:
            self.listen(POLL_S)
        return self.said.count(word) >= count

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code, -n for death by signal n; None if it runs on."""
        deadline = time.monotonic() + timeout_s
        while self._code is None and time.monotonic() < deadline:
            self.listen(POLL_S)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def close(self) -> None:
        """Close the window."""
        if self._open:
            self._open = False
            os.close(self._master)
