"""`ringmark logs`: what a run has written, as it comes, also over attempts and across nodes."""

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import run_folder, slurm_text
from launch.argv import parse
from launch.cancel import one_run
from launch.slurm_text import SlurmError
from launch.status import newest_verdict
from launch.tail import Tail
from launch.words import harmless

POLL_S = 0.5
QUEUE_POLL_S = 3.0
RANK_LOG = re.compile(r"rank-(\d+)-(.+)\.log", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class LogsOptions:
    """Flags of `ringmark logs RUN`."""

    follow: bool = False
    """Go on until the run has ended, over all its attempts and jobs."""
    rank: int | None = None
    """Only this rank's own log."""
    first_failed: bool = False
    """Only the log of the rank that failed first, by the newest verdict."""
    raw: bool = False
    """Leave escape sequences and control characters in; a terminal obeys them."""


def logs(argv: Sequence[str]) -> int:
    """`ringmark logs [-f] [--rank R | --first-failed] RUN` -> exit code. Raises ValueError for what is not there."""
    run, words = one_run(["--follow" if word == "-f" else word for word in argv], "logs")
    options = parse(LogsOptions, words, prog="ringmark logs RUN", description="Show what a run has written.")
    if options.rank is not None and options.first_failed:
        raise ValueError("expected one of --rank and --first-failed, got both; leave one out")
    rank = first_failed(run) if options.first_failed else options.rank
    sources = sources_of(run, rank)
    if not sources and not options.follow:
        what = "output" if rank is None else f"log of rank {rank}"
        raise ValueError(f"expected {what} in {run}, got none yet; ringmark logs -f waits for it")
    try:
        show(run, rank, options)
    except SlurmError as error:
        print(f"ringmark logs: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has had enough
        sys.stderr.close()
        return 0
    return 0


def first_failed(run: Path) -> int:
    """The rank that the newest verdict blames. Raises ValueError if there is none."""
    found, _ = newest_verdict(run)
    if found is None or not found.ranks:
        why = "no verdict yet" if found is None else f"a verdict that blames no rank: {harmless(found.sentence)}"
        raise ValueError(f"expected a rank that failed, got {why}; ringmark status shows more")
    return found.ranks[0]


def sources_of(run: Path, rank: int | None) -> list[tuple[Path, str]]:
    """The files to show, in order, each with what stands before its lines.

    What all ranks wrote is in the jobs' own output, in the order in which it came; without jobs, in the ranks' logs.
    """
    folders = [run, *run_folder.tasks(run)]
    if rank is None:
        outputs = [
            (path, f"task {one.name[5:]}: " if one != run else "")
            for one in folders
            for path in sorted(one.glob("job-*.out"), key=_age)
            + [place / "job.out" for place in run_folder.attempts(one)]
            if path.is_file()
        ]
        if outputs:
            return outputs
    found = []
    for attempt in [place for one in folders for place in run_folder.attempts(one)]:
        named = [(match, path) for path in attempt.glob("logs/*.log") if (match := RANK_LOG.fullmatch(path.name))]
        for match, path in sorted(named, key=lambda pair: int(pair[0][1])):
            if rank is None:
                found.append((path, f"rank {match[1]} {match[2]}: "))
            elif int(match[1]) == rank:
                found.append((path, ""))
    return found


def _age(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path.name))


def show(run: Path, rank: int | None, options: LogsOptions) -> None:
    """Print what there is, and with --follow what comes until no job of the run is left. Raises SlurmError."""
    tails: dict[Path, Tail] = {}
    clean: Callable[[str], str] = str if options.raw else harmless
    ended = not options.follow
    asked = -QUEUE_POLL_S
    while True:
        for path, label in sources_of(run, rank):
            tail = tails.setdefault(path, Tail(path, label))
            for line in tail.lines(last=ended):
                print(tail.label + clean(line))
        sys.stdout.flush()
        if ended:
            return
        if time.monotonic() - asked > QUEUE_POLL_S:
            asked = time.monotonic()
            ended = has_ended(run)  # what was written until then is read once more
        if not ended:
            time.sleep(POLL_S)


def has_ended(run: Path) -> bool:
    """Whether no job of the run waits or runs any more."""
    known = slurm_text.queue([job.job_id for job in run_folder.jobs(run)])
    return all(entry.over for entry in known.values())
