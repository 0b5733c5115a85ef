"""Arms of a comparison that are forks of the test process: they start in milliseconds, since torch is imported."""

import os
import signal
import subprocess
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer imports it when it is made; here once for all forks

from ddp.env import ALONE
from launch import compare_arms
from launch.arm import Arm
from tests import forks


class Forked:
    """A rank that is a fork of this process, with the methods of a Popen that an arm needs."""

    def __init__(self, path: str, words: Sequence[str]) -> None:
        self._process = forks.start(_be_rank, path, words)

    def send_signal(self, number: int) -> None:
        self.kill()

    def kill(self) -> None:
        self._process.kill()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout_s: float | None = None) -> int | None:
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked rank", timeout_s or 0.0)
        return self._process.exitcode


def _be_rank(path: str, words: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    try:
        os._exit(compare_arms.prepare(words, path, ALONE)())
    except BaseException:
        traceback.print_exc()
        os._exit(1)


class ForkedArm(Arm):
    """An arm of one rank that starts in milliseconds; everything else is as in `ringmark compare`."""

    def _start(self, arguments: Sequence[str], ranks: int, tree: Path) -> Any:
        return Forked(arguments[0], arguments[1:])
