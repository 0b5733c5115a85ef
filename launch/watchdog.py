"""Notices that nothing moves any more: no step, no processor time, no line in a log."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.events import Stack
from launch.stacks import RankHandle, collect

POLL_S = 0.5
"""How often is looked, at most; a hang is noticed so much later than it could be."""
BUSY = 0.05
"""Processor time that counts as progress, in cores over the whole timeout."""
TIMES = slice(11, 15)
"""Fields of /proc/PID/stat behind the name: user and system time of the process, and of children it has waited for."""


class Watchdog:
    """A thread that calls `on_hang(stacks, stalled_s)` once, after `timeout_s` seconds without progress of these ranks.

    Progress is a step that any rank reports, a log in the folder `logs` that grows, and, as long as no rank has ever
    reported a step, processor time: of a rank and its descendants, in portions of 5 % of a core over the timeout. From
    the first report on processor time says nothing, because ranks that wait for each other on GPUs spin. A script may
    report at any time, also between steps, when it compiles, evaluates or saves.

    Usage: `with Watchdog(ranks, timeout_s=60, on_hang=...) as dog: ... dog.progress(rank, step)`.
    """

    def __init__(
        self,
        ranks: Sequence[RankHandle],
        *,
        timeout_s: float,
        on_hang: Callable[[tuple[Stack, ...], float], None],
        logs: Path | None = None,
    ) -> None:
        """Watch these ranks of this machine. Raises ValueError for a timeout that is none."""
        if not 0 < timeout_s < float("inf"):
            raise ValueError(f"expected a timeout above 0 seconds, got {timeout_s}; give for example 300")
        self.steps: dict[int, int] = {}
        """The last step that each rank has reported."""
        self._ranks = tuple(ranks)
        self._timeout_s = timeout_s
        self._on_hang = on_hang
        self._logs = logs
        self._stopped = threading.Event()
        self._moved_s = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to watch; the time counts from here."""
        self._moved_s = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more. Waits for a call of `on_hang` that has begun, unless it is that which calls."""
        self._stopped.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def progress(self, rank: int, step: int) -> None:
        """A rank has told of itself; from any thread."""
        self.steps[rank] = step
        self._moved_s = time.monotonic()

    def _watch(self) -> None:
        pause_s = min(POLL_S, self._timeout_s / 4)
        busy_s = {each.pid: cpu_s(each.pid) for each in self._ranks}
        written = sizes(self._logs)
        while not self._stopped.wait(pause_s):
            now = time.monotonic()
            if (grown := sizes(self._logs)) != written:
                written, self._moved_s = grown, now
            if not self.steps and self._worked(busy_s):
                self._moved_s = now
            stalled_s = now - self._moved_s
            if stalled_s >= self._timeout_s:
                self._on_hang(collect(self._ranks), stalled_s)
                return

    def _worked(self, before_s: dict[int, float]) -> bool:
        """Whether a rank has used a portion of processor time; if so, its count in `before_s` starts anew."""
        worked = False
        for each in self._ranks:
            used_s = cpu_s(each.pid)
            if not 0 <= used_s - before_s[each.pid] <= BUSY * self._timeout_s:
                worked |= used_s > before_s[each.pid]  # it is less once a child was waited for by nobody
                before_s[each.pid] = used_s
        return worked


def cpu_s(pid: int) -> float:
    """Processor time in seconds of a process, of its descendants, and of those that it has waited for; 0 if gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    children: list[str] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += file.read_text().split()
        except OSError:  # the thread has just ended
            continue
    return sum(map(int, fields[TIMES])) / os.sysconf("SC_CLK_TCK") + sum(cpu_s(int(child)) for child in children)


def sizes(folder: Path | None) -> dict[str, int]:
    """Size in bytes of each file in a folder."""
    found: dict[str, int] = {}
    if folder is None or not folder.is_dir():
        return found
    for entry in os.scandir(folder):
        try:
            found[entry.name] = entry.stat().st_size
        except OSError:  # it has just gone
            continue
    return found
