"""Processes as Linux shows them: who descends from whom, and an end for all that belong to a launch."""

import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
SWEEPS = 100
EVERYBODYS = {0, 1}
"""Process ids that no launch may call its own, not even as the first process of a container."""


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def die_with(parent: int) -> None:
    """End this process when its parent ends; at once if that has happened already."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def name_process(name: str) -> None:
    """Name this process's main thread, as top and ps -L show it; 15 bytes at most."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _fields(pid: int) -> list[str] | None:
    """state, parent, group, session ... of /proc/PID/stat, or None if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _all() -> Iterator[tuple[int, list[str]]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            fields = _fields(int(entry.name))
            if fields is not None and fields[0] != "Z":
                yield int(entry.name), fields


def descendants(roots: Collection[int]) -> set[int]:
    """Process ids of all that live below one of `roots`."""
    parents = {pid: int(fields[1]) for pid, fields in _all()}
    found: set[int] = set()
    grown = set(roots)
    while grown:
        grown = {pid for pid, parent in parents.items() if parent in grown and pid not in found}
        found |= grown
    return found


def _marked(mark: bytes) -> set[int]:
    """Processes that were started with a variable `NAME=value` in their environment."""
    found = set()
    for pid, _ in _all():
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
        except OSError:
            continue
    return found


def sweep(roots: Collection[int], sessions: Collection[int], mark: bytes, spared: Collection[int]) -> int:
    """Kill everything that belongs to a launch until nothing of it is left -> how many processes it met.

    What belongs to it descends from one of `roots`, is of one of the sessions, or has the mark in its environment.
    Everything descends from 0 and 1, and the kernel's own threads are of session 0: these are left out.
    """
    roots, sessions = set(roots) - EVERYBODYS, set(sessions) - EVERYBODYS
    met: set[int] = set()
    for _ in range(SWEEPS):
        own = {pid for pid, fields in _all() if int(fields[3]) in sessions}
        found = (descendants(roots) | own | _marked(mark)) - set(spared)
        if not found:
            break
        met |= found
        for pid in found:
            kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return len(met)


def kill(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone, or was never born; 0 would mean all of the caller's group."""
    if pid <= 0:
        return
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
