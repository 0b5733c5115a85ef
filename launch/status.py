"""`ringmark status`: what a run does or how it ended, from its folder and squeue alone."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch import attempts, run_folder, slurm_text, spec, verdict
from launch.argv import UsageError
from launch.slurm_text import QueueEntry, SlurmError
from launch.verdict import Verdict
from launch.words import aligned, harmless

HELP = """usage: ringmark status [RUN|DIR]

What a run does, or how it ended. RUN is its folder; DIR is a folder of runs, by default runs/slurm: one line for each,
newest first. Needs no accounting: it reads the folder and asks squeue."""
DEFAULT_DIR = "runs/slurm"
UNKNOWN = "-"


@dataclass(frozen=True, kw_only=True)
class View:
    """What is known of one run at this moment."""

    run: Path
    jobs: tuple[str, ...] = ()
    """Ids of its jobs, oldest first."""
    entries: tuple[QueueEntry, ...] = ()
    """Those of them that squeue knows, newest first."""
    attempts: int = 0
    """Attempts that have started."""
    step: int | None = None
    """The last step with a checkpoint."""
    verdict: Verdict | None = None
    """Of the newest attempt that has one."""
    verdict_attempt: int | None = None
    done: bool = False
    stop: str | None = None
    """Why somebody asked for a stop."""
    tasks: tuple["View", ...] = field(default=())
    """Of a sweep."""

    @property
    def entry(self) -> QueueEntry | None:
        """The job that matters: the one that runs, else the one that waits, else the newest."""
        alive = [entry for entry in self.entries if not entry.over]
        running = [entry for entry in alive if entry.state != "PENDING"]
        return next(iter(running or alive[::-1] or self.entries), None)

    @property
    def alive(self) -> bool:
        """Whether a job of it runs or waits."""
        return any(not entry.over for entry in self.entries)

    @property
    def state(self) -> str:
        """One word for the run."""
        if self.tasks:
            return _of_tasks(self.tasks)
        entry = self.entry
        if entry is not None and not entry.over:
            return entry.state.lower()
        if self.done:
            return "done"
        if self.verdict is not None:
            return self.verdict.cause
        if entry is not None:
            return entry.state.lower()
        return "unknown" if self.jobs else "not queued"


def _of_tasks(tasks: Sequence[View]) -> str:
    states = [task.state for task in tasks]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def look(run: Path, known: dict[str, QueueEntry] | None = None) -> View:
    """What is known of a run; `known` is squeue's answer if it has been asked already. Raises SlurmError."""
    folders = run_folder.tasks(run)
    jobs = tuple(job.job_id for job in run_folder.jobs(run))
    if known is None:
        known = slurm_text.queue(jobs)
    newest, number = newest_verdict(run)
    started = run_folder.attempts(run)
    return View(
        run=run,
        jobs=jobs,
        entries=tuple(entry for job_id in reversed(jobs) for entry in known.values() if belongs(entry, job_id)),
        attempts=int(started[-1].name) + 1 if started else 0,
        step=last_step(run),
        verdict=newest,
        verdict_attempt=number,
        done=run_folder.is_done(run),
        stop=run_folder.stop_reason(run),
        tasks=tuple(look(folder, known) for folder in folders),
    )


def belongs(entry: QueueEntry, job_id: str) -> bool:
    """Whether an entry is that job, or a task of its array."""
    return entry.job_id == job_id or entry.job_id.startswith(f"{job_id}_")


def newest_verdict(run: Path) -> tuple[Verdict | None, int | None]:
    """The verdict of the newest attempt that has one, and that attempt's number."""
    for folder in reversed(run_folder.attempts(run)):
        try:
            return verdict.read(folder / "verdict.json"), int(folder.name)
        except (OSError, ValueError):
            continue
    return None, None


def last_step(run: Path) -> int | None:
    """The last step that has a checkpoint, in the folder that `train` writes to or by its attempts; None if unknown."""
    one = spec_of(run)
    if one is not None and one.script == "launch.train" and "--out" in one.arguments[:-1]:
        out = Path(one.work_dir) / one.arguments[one.arguments.index("--out") + 1]
        return attempts.last_step(out) or None
    steps = [attempt.step_after for attempt in attempts.read(run)[0]]
    return next((step for step in reversed(steps) if step is not None), None)


def status(argv: Sequence[str]) -> int:
    """`ringmark status [RUN|DIR]` -> exit code, 1 if SLURM does not answer. Raises ValueError for another folder."""
    words = [word for word in argv if word not in ("-h", "--help")]
    if len(words) < len(argv):
        print(HELP)
        return 0
    if len(words) > 1 or any(word.startswith("-") for word in words):
        raise UsageError(f"expected one run folder, got {' '.join(words)!r}; ringmark status RUN")
    text = words[0] if words else DEFAULT_DIR
    folder = Path(text).expanduser().absolute()
    try:
        if folder.is_dir() and not run_folder.is_run(folder):
            print("\n".join(table(folder)))
        else:
            print("\n".join(lines(look(run_folder.find(text)))))
    except SlurmError as error:
        print(f"ringmark status: {error}", file=sys.stderr)
        return 1
    return 0


def lines(view: View) -> list[str]:
    """All that is known of a run, in aligned lines."""
    rows = {"run": str(view.run), "state": view.state, **job_rows(view)}
    last = spec_of(view.run)
    if view.attempts:
        most = f" of at most {last.max_attempts}" if last is not None and last.go_on != "never" else ""
        rows["attempt"] = f"{view.attempts}{most}"
    if view.step is not None:
        rows["step"] = f"{view.step} (in a checkpoint)"
    if view.stop is not None and not view.done:
        rows["stop"] = view.stop
    shown = [f"{key:<9}{harmless(value)}" for key, value in rows.items()]
    if view.verdict is not None and not (view.done and view.verdict.cause == "done"):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view.verdict.ended_s))
        shown += ["", f"attempt {(view.verdict_attempt or 0) + 1} ended {when} with code {view.verdict.code}:"]
        shown += [f"  {harmless(line)}" for line in view.verdict.lines or (view.verdict.sentence,)]
    if view.tasks:
        shown += ["", *tasks_table(view.tasks)]
    return shown


def job_rows(view: View) -> dict[str, str]:
    """What squeue says of the job that matters."""
    entry = view.entry
    if entry is None:
        ids = ", ".join(view.jobs) or "none"
        return {"job": f"{ids} (SLURM has forgotten it)" if view.jobs else ids}
    rows = {"job": f"{entry.job_id} {entry.state}" + (f" ({entry.reason})" if entry.reason != "None" else "")}
    others = [other.job_id for other in view.entries if other is not entry and not other.over]
    if others:
        rows["waiting"] = ", ".join(reversed(others))
    rows["nodes"] = f"{entry.nodes} {entry.node_list}".strip()
    if entry.state == "PENDING":
        rows["start"] = "unknown" if entry.start == "N/A" else entry.start
    else:
        rows["elapsed"] = entry.elapsed + ("" if entry.over else f", {entry.left} left")
    return rows


def spec_of(run: Path) -> spec.Spec | None:
    """The spec of a run, or None if it cannot be read."""
    try:
        return spec.read(run / spec.FILE_NAME)
    except ValueError:
        return None


HEADINGS = ("job", "state", "nodes", "elapsed", "attempt", "step", "how it ended")


def table(folder: Path) -> list[str]:
    """A line for each run in a folder, newest first."""
    runs = run_folder.runs_under(folder)
    if not runs:
        return [f"no runs in {folder}"]
    jobs = {job.job_id for run in runs for job in run_folder.jobs(run)}
    known = slurm_text.queue(sorted(jobs))
    return aligned([("run", *HEADINGS), *((run.name, *cells(look(run, known))) for run in runs)])


def tasks_table(tasks: Sequence[View]) -> list[str]:
    """A line for each task of a sweep."""
    return aligned([("task", *HEADINGS), *((task.run.name.partition("-")[2], *cells(task)) for task in tasks)])


def cells(view: View) -> tuple[str, ...]:
    """A run in one line."""
    entry = view.entry
    ended = view.verdict if view.verdict is not None and not view.done and not view.alive else None
    return (
        entry.job_id if entry is not None else view.jobs[-1] if view.jobs else UNKNOWN,
        view.state,
        UNKNOWN if entry is None else entry.node_list or entry.nodes,
        UNKNOWN if entry is None else entry.elapsed,
        str(view.attempts) if view.attempts else UNKNOWN,
        UNKNOWN if view.step is None else str(view.step),
        UNKNOWN if ended is None else harmless(ended.sentence),
    )
