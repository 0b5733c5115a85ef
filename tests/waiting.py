"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable


def wait_until(happened: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for something, but not for ever."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"nothing after {timeout_s} s"
        time.sleep(0.01)
