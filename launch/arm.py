"""An arm of a comparison, as the comparing process sees it: a launch that trains a block when it is asked to."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from launch.exit_codes import shell_code
from launch.processes import die_with
from launch.reporter import SOCKET, private_path
from launch.torchrun import PRELOAD, ROOT, agent_command, worker_environment

SCRIPT = ROOT / "launch" / "compare_arms.py"
GRACE_S = 20.0
"""How long an arm has to end when it is not needed any more."""


class ArmLost(Exception):
    """An arm ended, or did not answer in time."""

    def __init__(self, message: str, code: int) -> None:
        """`code` is what it ended with, 1 if it was not by itself."""
        super().__init__(message)
        self.code = code


class Arm:
    """Starts when it is made; use it in a `with` statement, at whose end all of it is gone."""

    def __init__(self, words: Sequence[str], ranks: int, tree: Path) -> None:
        self.name = " ".join(words) or "no options"
        self.environment: dict[str, Any] = {}
        self.parameters: int | None = None
        self._lines: Any = None
        self._connection: socket.socket | None = None
        self._folder = private_path("ringmark-arm")
        self._folder.mkdir(mode=0o700)  # only this user may look into it
        self._listener = socket.socket(socket.AF_UNIX)
        path = str(self._folder / SOCKET)
        self._listener.bind(path)
        self._listener.listen(1)
        self._process = self._start([path, *words], ranks, tree)

    def _start(self, arguments: Sequence[str], ranks: int, tree: Path) -> "subprocess.Popen[bytes]":
        """Start the ranks, each of which runs SCRIPT with these arguments and the packages of `tree`."""
        paths = [str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = worker_environment(os.environ, ranks) | {"PYTHONPATH": os.pathsep.join(paths)}
        options = ("--preload", ",".join(PRELOAD), "--standalone", "--nproc-per-node", str(ranks))
        parent = os.getpid()
        # A terminal's Ctrl-C is the comparison's, which then ends its arms; and an arm never outlives it.
        return subprocess.Popen(
            agent_command(*options, str(SCRIPT), *arguments),
            env=environment,
            stdout=sys.stderr,
            start_new_session=True,
            preexec_fn=lambda: die_with(parent),
        )

    def __enter__(self) -> "Arm":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            with contextlib.suppress(OSError):  # of an arm that is gone, to which a question was still to be sent
                self._lines.close()
        if self._connection is not None:
            self._connection.close()  # rank 0 reads the end of the file, and all ranks leave
        self._listener.close()
        if self._lines is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def ready(self, timeout_s: float) -> None:
        """Wait until it can be asked. Raises ArmLost."""
        if self._lines is not None:
            return
        deadline = time.monotonic() + timeout_s
        self._listener.settimeout(0.2)
        while self._connection is None:
            with contextlib.suppress(TimeoutError):
                self._connection = self._listener.accept()[0]
            if self._connection is None:
                self._check_alive()
                if time.monotonic() > deadline:
                    raise self._late("ready", timeout_s)
        self._lines = self._connection.makefile("rw", encoding="utf-8")
        hello = self._answer(timeout_s)
        self.environment, self.parameters = hello["environment"], hello["parameters"]

    def ask(self, steps: int, timeout_s: float) -> dict[str, Any]:
        """Have a block of that many steps trained -> its times. Raises ArmLost."""
        with contextlib.suppress(OSError):  # told by what is read
            self._lines.write(json.dumps({"steps": steps}) + "\n")
            self._lines.flush()
        return self._answer(timeout_s)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._connection is not None
        self._connection.settimeout(timeout_s)
        try:
            text = self._lines.readline()
        except TimeoutError:
            raise self._late("done with a block", timeout_s) from None
        except OSError:
            text = ""
        if not text.endswith("\n"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
            self._check_alive()
            raise ArmLost(f"the arm with {self.name} closed its connection", 1)
        found: dict[str, Any] = json.loads(text)
        return found

    def _late(self, what: str, timeout_s: float) -> ArmLost:
        return ArmLost(f"the arm with {self.name} was not {what} after {timeout_s:g} s; give more, --timeout-s", 1)

    def _check_alive(self) -> None:
        code = self._process.poll()
        if code is not None:
            raise ArmLost(f"the arm with {self.name} ended with exit code {shell_code(code)}", shell_code(code) or 1)
