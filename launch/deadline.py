"""When a job has to stop: its end as SLURM knows it, a person's wish in a file, and what SLURM is doing to it."""

import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from os import environ
from pathlib import Path
from types import TracebackType
from typing import Literal

POLL_S = 0.5
ASK_EVERY_S = 60.0
"""How often SLURM's controller, which serves everybody, is asked for the end of the job: it may be moved."""
COMMAND_TIMEOUT_S = 10.0
STOP_S = 2.0
WIDTH = 40
COLUMNS = ("State", "Reason", "EndTime", "RestartCnt")
JOB_ID = re.compile(r"\d+(_\d+)?", re.ASCII)
ENDING_STATES = frozenset({"COMPLETING", "CANCELLED"})
Ending = Literal["not yet", "cancelled", "time limit", "requeued"]


@dataclass(frozen=True)
class JobFacts:
    """What SLURM's controller knows of a job."""

    state: str
    """RUNNING; COMPLETING as soon as its processes are being ended, whatever for."""
    reason: str
    """TimeLimit, or None as a word."""
    end_s: float | None
    """Seconds since the epoch when it ends or has ended, by the controller's clock; None if there is no end."""
    restarts: int
    """How often it was put back into the queue."""


def job_facts(job_id: str) -> JobFacts | None:
    """A job of this cluster, None if SLURM does not answer or has forgotten it. Raises ValueError for no job id.

    From columns of fixed width: what `scontrol show job` prints holds names that people chose.
    """
    if not JOB_ID.fullmatch(job_id):
        raise ValueError(f"expected a job id, got {job_id!r}; give the number that sbatch printed")
    form = ",".join(f"{column}:{WIDTH}" for column in COLUMNS)
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", f"--Format={form}"],
            env={**environ, "SLURM_TIME_FORMAT": "standard"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != 1:
        return None
    state, reason, end, restarts = (lines[0][start : start + WIDTH].strip() for start in range(0, 4 * WIDTH, WIDTH))
    if not restarts.isdigit():
        return None
    return JobFacts(state, reason, _stamp_s(end), int(restarts))


def _stamp_s(text: str) -> float | None:
    """Seconds since the epoch of a local time; None for N/A and such."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def end_time_s(job_id: str) -> float | None:
    """When the job's time ends, in seconds since the epoch; None if that is unknown, or there is no end."""
    facts = job_facts(job_id)
    return None if facts is None else facts.end_s


def how_it_ends(job_id: str, restarts: int = 0) -> Ending | None:
    """What SLURM is doing to a job that asks about itself; None if it cannot be asked.

    `restarts` is SLURM_RESTART_COUNT, 0 where unset. While the processes of a job are being ended its state is
    COMPLETING, for whatever reason; but at the time limit the reason says so, and a job that was preempted or requeued
    counts one more restart from the first moment. What is left is somebody's scancel.
    """
    facts = job_facts(job_id)
    if facts is None:
        return None
    if facts.restarts > restarts:
        return "requeued"
    if facts.reason == "TimeLimit" or facts.state == "TIMEOUT":
        return "time limit"
    return "cancelled" if facts.state in ENDING_STATES else "not yet"


def job_cancelled(job_id: str, restarts: int = 0) -> bool | None:
    """Whether somebody has cancelled the job, as the job itself sees it; None if SLURM cannot be asked."""
    ending = how_it_ends(job_id, restarts)
    return None if ending is None else ending == "cancelled"


class Deadline:
    """Calls `on_stop` once, with a reason, when the end is `margin_s` away or the stop file is there.

    `end_time` gives the end in seconds since the epoch, or None; it is asked now and once a minute. When it has nothing
    to say any more, what it said last holds. Runs in a thread of its own until `close`. An exception of `on_stop` is
    printed and kept in `failure`.
    """

    def __init__(
        self,
        on_stop: Callable[[str], None],
        *,
        margin_s: float,
        stop_file: Path | None = None,
        end_time: Callable[[], float | None] | None = None,
    ) -> None:
        if not margin_s >= 0:
            raise ValueError(f"expected a margin of 0 s or more, got {margin_s}; give the seconds that a stop takes")
        self._on_stop, self._end_time = on_stop, end_time
        self._margin_s, self._stop_file = margin_s, stop_file
        self.failure: Exception | None = None
        self.end_s: float | None = None
        self._asked_s: float | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deadline", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; `on_stop` is not called any more."""
        self._closing.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_S)

    def __enter__(self) -> "Deadline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while (reason := self._reason()) is None:
                if self._closing.wait(POLL_S):
                    return
            if not self._closing.is_set():
                self._on_stop(reason)
        except Exception as error:
            self.failure = error
            traceback.print_exc(file=sys.stderr)

    def _reason(self) -> str | None:
        """Why it is time to stop, or None."""
        if self._stop_file is not None and self._stop_file.exists():
            return f"the file {self._stop_file} asks for it"
        now_s = time.monotonic()
        if self._end_time is not None and (self._asked_s is None or now_s - self._asked_s >= ASK_EVERY_S):
            self._asked_s = now_s
            self.end_s = self._end_time() or self.end_s
        if self.end_s is None or (left_s := self.end_s - time.time()) > self._margin_s:
            return None
        return f"the job's time ends at {datetime.fromtimestamp(self.end_s):%H:%M:%S}, in {max(0.0, left_s):.0f} s"
