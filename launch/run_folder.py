"""The folder of one run: made for its owner only, and what lies in it."""

import json
import os
import re
import secrets
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.private_files import write_private
from launch.spec import FILE_NAME as SPEC

SCRIPT = "job.sbatch"
RECORD = "record.json"
JOBS = "jobs.jsonl"
STOP = "stop"
DONE = "DONE"
ATTEMPTS = "attempts"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
STAMP_FORMAT = "%Y%m%dT%H%M%SZ"
STAMP = re.compile(r"-(\d{8}T\d{6}Z)-[0-9a-f]{4}$", re.ASCII)
TASK = re.compile(r"task-(\d+)", re.ASCII)
MODE = 0o700


@dataclass(frozen=True, kw_only=True)
class Job:
    """One submission of a run: a line of jobs.jsonl."""

    job_id: str
    time_s: float
    """Seconds since the epoch."""
    options: tuple[str, ...]
    """sbatch's, as they were given."""


def check_name(name: str) -> None:
    """Raise ValueError unless `name` can be a part of file names and of a batch script's header."""
    if not NAME.fullmatch(name):
        raise ValueError(f"expected --name of up to 64 letters, digits and _.-, got {name!r}; try 'resnet18-2nodes'")


def propose(parent: Path, name: str) -> Path:
    """Where a run of that name could lie; makes nothing."""
    check_name(name)
    return parent / f"{name}-{time.strftime(STAMP_FORMAT, time.gmtime())}-{secrets.token_hex(2)}"


def create(parent: Path, name: str) -> Path:
    """Make a new folder for a run of that name -> its path. Raises ValueError where that is impossible."""
    while True:
        folder = propose(parent, name)
        try:
            make(folder)
        except FileExistsError:
            continue
        return folder


def make(folder: Path) -> None:
    """Make this very folder, readable by its owner only. Raises FileExistsError, or ValueError with a remedy."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=MODE)  # never through a link: whatever is there already is an error
    except FileExistsError:
        if folder.parent.is_dir():
            raise
        raise ValueError(f"expected a folder in --run-dir, got the file {folder.parent}; choose another") from None
    except OSError as error:
        raise ValueError(
            f"expected a folder that can be written in --run-dir, got {folder.parent}: {error.strerror}; choose another"
        ) from None


def add_job(run: Path, job: Job) -> None:
    """Note a submission."""
    line = (json.dumps(asdict(job)) + "\n").encode()
    descriptor = os.open(run / JOBS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, line)  # in one piece: a job may add its follow-up at the same time
    finally:
        os.close(descriptor)


def jobs(run: Path) -> list[Job]:
    """The submissions of a run, oldest first; of an array's task those of its array, with the task's own ids."""
    task = TASK.fullmatch(run.name)
    if task and not (run / JOBS).exists():
        return [Job(**{**asdict(job), "job_id": f"{job.job_id}_{int(task[1])}"}) for job in jobs(run.parent)]
    found = []
    for line in _lines(run / JOBS):
        try:
            data = json.loads(line)
            found.append(Job(**{**data, "options": tuple(data["options"])}))
        except (ValueError, TypeError, KeyError):
            continue  # cut short by a crash
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def ask_to_stop(run: Path, reason: str) -> None:
    """Ask a run's ranks to save and stop, and whoever watches it not to start it again; of an array all tasks."""
    for folder in (run, *tasks(run)):
        write_private(folder / STOP, reason + "\n")


def withdraw_stop(run: Path) -> None:
    """Forget that somebody asked for a stop."""
    for folder in (run, *tasks(run)):
        (folder / STOP).unlink(missing_ok=True)


def stop_reason(run: Path) -> str | None:
    """Why somebody asked this run to stop, or None."""
    return next(iter(_lines(run / STOP)), "a stop was asked for") if (run / STOP).exists() else None


def is_done(run: Path) -> bool:
    """Whether a run, or every task of an array, has finished its work."""
    folders = tasks(run) or [run]
    return all((folder / DONE).exists() for folder in folders)


def tasks(run: Path) -> list[Path]:
    """The folders of an array's tasks, in order; none for a single run."""
    found = [path for path in run.glob("task-*") if TASK.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def attempts(run: Path) -> list[Path]:
    """The folders of a run's attempts, oldest first."""
    found = [path for path in (run / ATTEMPTS).glob("*") if path.name.isascii() and path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run or of an array of runs."""
    return any((folder / name).is_file() for name in (SPEC, JOBS, RECORD))


def find(text: str) -> Path:
    """The run folder that a person names. Raises ValueError if it is none, or not theirs."""
    folder = Path(text).expanduser().absolute()
    if not is_run(folder):
        raise ValueError(
            f"expected the folder of a run, with a {SPEC} in it, got {text!r}; `ringmark status DIR` lists those of DIR"
        )
    if stat.S_IMODE(folder.stat().st_mode) & 0o022:
        raise ValueError(
            f"expected a run folder that only its owner can write, got {text!r}; chmod 700 it if it is yours"
        )
    return folder


def runs_under(folder: Path) -> list[Path]:
    """The run folders directly in a folder, newest first."""
    found = [path for path in folder.iterdir() if path.is_dir() and is_run(path)]
    return sorted(found, key=_made, reverse=True)


def _made(run: Path) -> str:
    """When a run folder was made: the stamp of its name, or else its own time."""
    stamp = STAMP.search(run.name)
    return stamp[1] if stamp else time.strftime(STAMP_FORMAT, time.gmtime(run.stat().st_mtime))
