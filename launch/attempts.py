"""What happened in each attempt of a run, and whether another one is worth it: a file, and a pure policy.

attempts.append(run_dir, attempt)
decision = decide(attempts.read(run_dir)[0], go_on=spec.go_on, max_attempts=spec.max_attempts, cancelled=cancelled)
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from launch.exit_codes import CRASHED, DONE, HANG, INTERRUPTED, OUT_OF_MEMORY, STOPPED, TERMINATED

FILE_NAME = "attempts.jsonl"
CHECKPOINTS, CHECKPOINT, MANIFEST = "checkpoints", re.compile(r"step-(\d{9,})"), "MANIFEST.json"
"""How ddp/checkpoint.py lays out a run's checkpoints; importing it would import torch."""
KILLED, BUS_ERROR = 137, 135
"""By SIGKILL and SIGBUS: what a machine does to a process rather than what a program does."""
MACHINES = frozenset({HANG, CRASHED, KILLED, BUS_ERROR, TERMINATED})
"""Codes of failures that may not come again on other nodes, or at another time."""
SAME_FAILURES = 3
"""So many attempts without progress are enough."""
LONGEST_SIGNATURE = 200


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt that has ended."""

    number: int
    """From 0."""
    job_id: str | None
    hosts: tuple[str, ...]
    started_s: float | None
    """Seconds since the epoch; None if unknown."""
    ended_s: float | None
    """The same; None if nobody was left to see it."""
    code: int
    """Exit code of the launch."""
    cause: str
    """The verdict's."""
    step_before: int | None
    """Step of the newest checkpoint when it started; None if unknown."""
    step_after: int | None
    """The same when it ended."""
    exception: str | None = None
    """Name of the culprit's exception; None if it ended without one."""
    signature: str = ""
    """Equal for equal failures; see `signature`."""


@dataclass(frozen=True)
class Decision:
    """What to do after an attempt."""

    action: Literal["requeue", "follow", "stop"]
    reason: str
    """A sentence for a person."""


def signature(cause: str, exception: str | None, message: str, frame: str) -> str:
    """Text that is equal for equal failures, wherever and whenever they happen: numbers do not count."""
    words = " ".join((cause, exception or "", re.sub(r"0x[0-9a-fA-F]+|\d+(\.\d+)?", "#", message), frame))
    return " ".join(words.split())[:LONGEST_SIGNATURE]


def append(run_dir: Path, attempt: Attempt) -> None:
    """Add a line that survives a power failure; one that was torn before stays by itself. Raises OSError."""
    path = run_dir / FILE_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size_bytes = os.fstat(descriptor).st_size
        torn = size_bytes > 0 and os.pread(descriptor, 1, size_bytes - 1) != b"\n"
        text = ("\n" if torn else "") + json.dumps(asdict(attempt)) + "\n"
        data = text.encode()
        if os.write(descriptor, data) != len(data):
            raise OSError(f"{path}: the disk took a part of the line only")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(run_dir: Path) -> tuple[list[Attempt], int]:
    """The attempts so far, and how many lines are none: torn by a full disk or a machine that went down."""
    try:
        lines = (run_dir / FILE_NAME).read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    found, torn = [], 0
    for line in lines:
        try:
            if line:
                found.append(_attempt(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError):
            torn += 1
    return found, torn


def _attempt(data: Mapping[str, Any]) -> Attempt:
    """Fields that a newer version may have added are left out."""
    known = {each.name: data[each.name] for each in fields(Attempt) if each.name in data}
    if not isinstance(known["number"], int) or not isinstance(known["code"], int):
        raise ValueError("no attempt")
    return Attempt(**known | {"hosts": tuple(known["hosts"])})


def last_step(out: Path | None) -> int | None:
    """Step of the newest committed checkpoint below a run's `--out`; 0 before the first, None if unknown."""
    if out is None:
        return None
    steps = [0]
    try:
        for path in (out / CHECKPOINTS).iterdir():
            match = CHECKPOINT.fullmatch(path.name)
            if match and not path.is_symlink() and (path / MANIFEST).is_file():
                steps.append(int(match[1]))
    except FileNotFoundError:
        return 0
    except OSError:  # such as a file system that is gone
        return None
    return max(steps)


def decide(
    attempts: Sequence[Attempt],
    *,
    go_on: Literal["never", "requeue", "follow"],
    max_attempts: int,
    cancelled: bool | None,
    requeued: bool = False,
) -> Decision:
    """What to do after the last of these attempts.

    `cancelled`: whether a person has asked for the end, by scancel, Ctrl-C or the stop file. None, if nobody can say,
    is taken for yes where the attempt was asked to end: scontrol requeues what was cancelled without a word.
    `requeued`: SLURM has put the job back into its queue itself, as it does at a preemption.
    """
    if not attempts:
        raise ValueError("expected an attempt to decide after, got none; append it first")
    last = attempts[-1]
    why_not = _why_never(last, cancelled) or _why_not_again(attempts, go_on, max_attempts)
    if why_not is None and requeued:
        why_not = "SLURM has put the job back into the queue itself"
    if why_not is not None or go_on == "never":
        return Decision("stop", why_not or "")
    how = "goes back into the queue" if go_on == "requeue" else "goes on in a follow-up job"
    return Decision(go_on, f"attempt {last.number} {_how_it_ended(last)}, {_progress_in(last)}; the run {how}")


def _why_never(last: Attempt, cancelled: bool | None) -> str | None:
    """Why no attempt may follow, whatever was asked for."""
    if last.code == DONE:
        return "the run is done"
    if cancelled or last.code == INTERRUPTED:
        return "the run was stopped by a person; resubmit it to go on"
    if cancelled is None and last.code in (STOPPED, TERMINATED):
        return "nobody can say whether the run was cancelled by a person; resubmit it if it was not"
    if last.code == STOPPED or _is_the_machines(last):
        return None
    return f"attempt {last.number} {_how_it_ended(last)}, which would happen again; correct it, and resubmit the run"


def _is_the_machines(last: Attempt) -> bool:
    """Whether it may go well elsewhere; of memory that ran out, only where the host's did, without an exception."""
    return last.code in MACHINES or (last.code == OUT_OF_MEMORY and last.exception is None)


def _why_not_again(attempts: Sequence[Attempt], go_on: str, max_attempts: int) -> str | None:
    """Why this run is not worth one more attempt."""
    last, recent = attempts[-1], attempts[-SAME_FAILURES:]
    if go_on == "never":
        return f"attempt {last.number} {_how_it_ended(last)}, {_progress_in(last)}; resubmit the run to go on"
    if len(attempts) >= max_attempts:
        return f"{len(attempts)} attempts have been made, which is the most that was asked for"
    if len(recent) < SAME_FAILURES:
        return None
    before, after = recent[0].step_before, last.step_after
    if before is not None and after is not None:
        if after > before:
            return None
        return f"{SAME_FAILURES} attempts made no progress: the newest checkpoint is still of step {after}"
    alike = {(each.code, each.signature) for each in recent}
    if last.code != STOPPED and len(alike) == 1:
        return f"{SAME_FAILURES} attempts ended alike, and no progress is known of: each {_how_it_ended(last)}"
    return None


def _how_it_ended(attempt: Attempt) -> str:
    if attempt.code == STOPPED:
        return "stopped with a checkpoint"
    what = f"{attempt.cause}: {attempt.exception}" if attempt.exception else attempt.cause
    return f"ended with exit code {attempt.code} ({what})"


def _progress_in(attempt: Attempt) -> str:
    before, after = attempt.step_before, attempt.step_after
    if before is None or after is None:
        return "its progress is unknown"
    return f"from step {before} to {after}" if after > before else f"at step {after}, where it began"
