"""What a rank tells its launcher: datagrams to a socket that only this user can reach."""

import json
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.events import LastWords

VARIABLE = "RINGMARK_RANK_SOCKET"
"""Tells a rank where its launcher listens, beside torchrun's own variables."""
SOCKET = "ranks.sock"
LONGEST_PATH = 100
"""Bytes of a socket's path; Linux takes 107."""
LONGEST_MESSAGE = 2000
TRACEBACK_LINES = 20
LONGEST_LINE = 500


def private_path(prefix: str = "ringmark") -> Path:
    """Where a launch can have a folder of its own, which holds a socket: among temporary files, but never too deep."""
    name = f"{prefix}-{os.urandom(8).hex()}"
    wanted = Path(tempfile.gettempdir(), name)
    return wanted if len(os.fsencode(wanted / SOCKET)) <= LONGEST_PATH else Path("/tmp", name)


class Reporter:
    """Speaks for one rank. Whoever listens may be gone: then nothing is said, and nothing fails."""

    def __init__(self, address: str, rank: int) -> None:
        self._address, self._rank = address, rank
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def tell(self, kind: str, data: Mapping[str, Any], *, wait: bool = True) -> None:
        """Send one fact; without `wait` it is dropped where the launcher is too busy to take it."""
        text = json.dumps({"kind": kind, "rank": self._rank, "pid": os.getpid(), **data})
        try:
            self._socket.sendto(text.encode(), 0 if wait else socket.MSG_DONTWAIT, self._address)
        except OSError:
            return

    def step(self, step: int) -> None:
        """Tell that a step was made, for the watchdog."""
        self.tell("step", {"step": step}, wait=False)

    def words(self, words: LastWords) -> None:
        """Tell which exception ends this rank."""
        self.tell("words", asdict(words))


def last_words(error: BaseException) -> LastWords:
    """What is to be told of an exception that ends this rank."""
    lines = [line for part in traceback.format_exception(error) for line in part.splitlines()]
    return LastWords(
        time_s=time.time(),
        type=type(error).__name__,
        message=str(error)[:LONGEST_MESSAGE],
        traceback=tuple(line[:LONGEST_LINE] for line in lines[-TRACEBACK_LINES:]),
    )


def reporter(environ: Mapping[str, str]) -> Reporter | None:
    """The reporter of this rank, or None where no launcher of ours listens."""
    address, rank = environ.get(VARIABLE), environ.get("RANK", "")
    return Reporter(address, int(rank)) if address and rank.isdigit() else None
