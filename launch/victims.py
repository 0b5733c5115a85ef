"""Whether a rank's last words are only those of a victim: it lost another rank, or waited for it in vain.

torch has no codes for this, so its texts are recognised, as gloo, NCCL and the store of torch 2.11 to 2.15 write them.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from launch.events import LastWords

VICTIM_WAIT_S = 10.0
"""How long a rank that only lost its peer waits to be ended; the launcher could not tell otherwise who was first."""
LOST = (
    "connection closed by",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket closed",
    "no route to host",
    "network is unreachable",
    "remote process exited",
    "ncclremoteerror",
    "communicator was aborted",
    "connection was likely closed",
    "application timeout caused pair closure",
)
"""Texts of a rank that has lost another."""
LATE = (
    "timed out waiting",
    "collective operation timeout",
    "timed out after",
    "has timed out",
    "wait timeout",
    "timeout waiting for key",
    "socket timeout",
    "connection timed out",
    "operation timed out",
    "monitoredbarrier",
)
"""Texts of a rank that has waited for another in vain."""
NETWORK_TYPES = frozenset({"DistBackendError", "DistNetworkError", "DistStoreError", "EnforceNotMet", "IoException"})
STORE_TYPES = frozenset({"DistNetworkError", "DistStoreError"})
"""Of these any text is a victim's, except that a port was taken."""
NETWORK_TEXTS = ("gloo/", "gloo::", "nccl", "monitoredbarrier", "c10d", "tcpstore", "processgroup")
"""What a RuntimeError says if it comes from the network of the ranks and not from the user's own."""
OWN_TEXTS = ("address already in use", "failed to listen", "eaddrinuse")
MEMORY_TYPES = frozenset({"MemoryError", "OutOfMemoryError"})
MEMORY_TEXTS = ("can't allocate memory", "cuda out of memory", "hip out of memory", "cannot allocate memory")
EXCEPTION = re.compile(r"([A-Za-z_][\w.]*): (.*)")
LOADER = re.compile(r"DataLoader worker .*(killed by signal: Killed|exited unexpectedly)", re.DOTALL)
THROWN = re.compile(r"terminate called after throwing an instance of '([\w:]+)'")
WHAT = "what():"
TAIL_BYTES = 64 * 1024


def is_victim(kind: str, message: str, traceback: Sequence[str] = ()) -> bool:
    """Whether a rank only reacted to what happened to another, also if it raised something else because of that.

    `kind` is the name of the exception's class, `traceback` the lines of its traceback.
    """
    if _is_for_memory(kind, message):
        return False
    before = (match for line in traceback if (match := EXCEPTION.match(line)))
    return any(_of_network(one, text) for one, text in [(kind, message), *(match.groups() for match in before)])


def timed_out(words: LastWords) -> bool:
    """Whether a victim waited in vain, rather than lose a connection."""
    return _has(words.message, LATE) and not _has(words.message, LOST)


def killed_for_memory(words: LastWords) -> bool:
    """Whether host or device had too little memory for this rank."""
    return _is_for_memory(words.type, words.message)


def loader_was_killed(words: LastWords) -> bool:
    """Whether a process that loads data for this rank was killed, by nobody that the rank knows."""
    return LOADER.search(words.message) is not None


def words_in_log(path: Path, time_s: float) -> LastWords | None:
    """Last words of a rank that C++ has aborted, from the end of its log; None if there are none.

    NCCL's watchdog and gloo end a process that way, and then there is no exception of Python that could be reported.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    found = [(index, match) for index, line in enumerate(lines) if (match := THROWN.search(line))]
    if not found:
        return None
    index, match = found[-1]
    what = next((line.partition(WHAT)[2].strip() for line in lines[index : index + 5] if WHAT in line), "")
    return LastWords(time_s=time_s, type=match[1].rpartition("::")[2], message=what[:2000])


def _is_for_memory(kind: str, message: str) -> bool:
    return kind in MEMORY_TYPES or (kind == "RuntimeError" and _has(message, MEMORY_TEXTS))


def _of_network(kind: str, text: str) -> bool:
    kind = kind.rpartition(".")[2]
    if _has(text, OWN_TEXTS):
        return False
    if kind in STORE_TYPES:
        return True
    ours = kind in NETWORK_TYPES or (kind == "RuntimeError" and _has(text, NETWORK_TEXTS))
    return ours and (_has(text, LOST) or _has(text, LATE))


def _has(text: str, parts: tuple[str, ...]) -> bool:
    lower = text.lower()
    return any(part in lower for part in parts)
