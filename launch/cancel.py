"""`ringmark cancel`: ask a run to save and stop, and end it if it does not."""

import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import run_folder, slurm_text
from launch.argv import UsageError, parse
from launch.run_record import user
from launch.slurm_text import QueueEntry, SlurmError, ask, check_ids

POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class CancelOptions:
    """Flags of `ringmark cancel RUN`."""

    now: bool = False
    """End it at once, without a checkpoint."""
    wait: float = 120.0
    """Seconds that its ranks have to save and stop before they are ended."""

    def __post_init__(self) -> None:
        if not self.wait >= 0:
            raise ValueError(f"expected --wait of at least 0 s, got {self.wait}; such as 60")


def one_run(argv: Sequence[str], command: str) -> tuple[Path, list[str]]:
    """The run folder among the words, and the other words. Raises UsageError or ValueError if it is not there."""
    rest = list(argv)
    if rest and not rest[0].startswith("-"):
        text = rest.pop(0)
    elif len(rest) > 1 and not rest[-1].startswith("-") and "=" not in rest[-1]:
        text = rest.pop()
    elif {"-h", "--help"} & set(rest):
        return Path(), rest
    else:
        raise UsageError(f"expected the folder of a run, got none; ringmark {command} RUN")
    return run_folder.find(text), rest


def cancel(argv: Sequence[str]) -> int:
    """`ringmark cancel RUN [--now] [--wait S]` -> 0 when nothing of it runs or waits any more, 1 if SLURM refuses.

    The file `stop` is written first, so that nothing starts the run again, whatever happens next. Jobs that only wait
    are taken out of the queue; those that run may save and end by themselves for a while.
    """
    run, words = one_run(argv, "cancel")
    options = parse(CancelOptions, words, prog="ringmark cancel RUN", description="Ask a run to save and stop.")
    run_folder.ask_to_stop(run, f"cancelled by {user() or 'somebody'} on {socket.gethostname()}")
    ids = [job.job_id for job in run_folder.jobs(run)]
    try:
        alive = living(ids)
        if not alive:
            print("nothing of this run is in the queue; it will not be started again")
            return 0
        waiting = [entry.job_id for entry in alive if entry.state == "PENDING"]
        end(waiting)
        if waiting:
            print(f"taken out of the queue: {', '.join(waiting)}")
        if not options.now:
            alive = await_end(ids, options.wait)
        end([entry.job_id for entry in alive if entry.job_id not in waiting])
        left = await_end(ids, 0.0 if not alive else 60.0)
    except SlurmError as error:
        print(f"ringmark cancel: {error}; the run is asked to stop all the same", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ringmark: not waiting any longer; the run stays asked to save and stop", file=sys.stderr)
        return 130
    if left:
        names = ", ".join(f"{entry.job_id} {entry.state}" for entry in left)
        print(f"ringmark cancel: SLURM has not ended {names} yet; look again with ringmark status", file=sys.stderr)
        return 1
    print("ended" if alive else "stopped by itself")
    return 0


def living(job_ids: Sequence[str]) -> list[QueueEntry]:
    """Those of the jobs, or of their tasks, that run or wait."""
    return [entry for entry in slurm_text.queue(job_ids).values() if not entry.over]


def await_end(job_ids: Sequence[str], timeout_s: float) -> list[QueueEntry]:
    """Wait until none of the jobs lives -> those that still do after the time."""
    deadline = time.monotonic() + timeout_s
    told = False
    while (alive := living(job_ids)) and time.monotonic() < deadline:
        if not told:
            names = ", ".join(entry.job_id for entry in alive)
            print(f"waiting up to {timeout_s:.0f} s for {names} to end ...", flush=True)
            told = True
        time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
    return alive


def end(job_ids: Sequence[str]) -> None:
    """scancel these jobs. Raises SlurmError."""
    if job_ids:
        check_ids(job_ids)
        ask(["scancel", "--quiet", *job_ids])
