"""`ringmark resubmit`: a new job for a run that was submitted before; it goes on from its last checkpoint."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch import run_folder, sbatch, spec, verdict
from launch.argv import parse
from launch.cancel import living, one_run
from launch.slurm_text import SlurmError
from launch.submit import short

BAD_CAUSES = frozenset({"lost node", "hang", "oom", "signal"})
"""Ends that a node may be to blame for."""
DOCTOR = "doctor.json"


@dataclass(frozen=True, kw_only=True)
class ResubmitOptions:
    """Flags of `ringmark resubmit RUN`."""

    exclude_bad: bool = False
    """Keep away from the nodes where earlier attempts hung, were killed or got lost, and those that doctor named."""
    exclude: str | None = None
    """More nodes that must not be used, such as n3,rack1-[4-6]."""


def resubmit(argv: Sequence[str]) -> int:
    """`ringmark resubmit RUN` -> 0, or 1 if SLURM refuses. Raises ValueError for a run that needs no new job."""
    run, words = one_run(argv, "resubmit")
    options = parse(ResubmitOptions, words, prog="ringmark resubmit RUN", description="Queue a run once more.")
    jobs = [job.job_id for job in run_folder.jobs(run)]
    if run_folder.is_done(run):
        raise ValueError(f"expected a run with work left, got {short(run)}, which is done; submit a new one")
    if not (run / run_folder.SCRIPT).is_file():
        raise ValueError(f"expected a run with a {run_folder.SCRIPT}, got {short(run)}; name the folder of its sweep")
    bad = bad_nodes(run) if options.exclude_bad else []
    exclude = ",".join([*bad, *([options.exclude] if options.exclude else [])]) or None
    try:
        alive = living(jobs)
        if alive:
            names = ", ".join(entry.job_id for entry in alive)
            raise ValueError(f"expected a run without jobs, got {names} in the queue; ringmark cancel {short(run)}")
        words = sbatch.options_again(run, exclude)
        # What SLURM would refuse must not change the run.
        sbatch.predict((run / run_folder.SCRIPT).read_text(encoding="utf-8"), words)
        if exclude:
            keep_away(run, exclude)
        run_folder.withdraw_stop(run)
        job = sbatch.queue(run, words)
    except SlurmError as error:
        print(f"ringmark resubmit: {error}", file=sys.stderr)
        return 1
    if options.exclude_bad and not bad:
        print("no node is to blame by the verdicts so far")
    without = f" without {exclude}" if exclude else ""
    print(f"job {job.job_id}{without}; ringmark logs -f {short(run)}")
    return 0


def bad_nodes(run: Path) -> list[str]:
    """Nodes that a run should avoid: by the verdicts of its attempts, and by doctor's list if there is one."""
    nodes: list[str] = []
    for folder in [place for one in (run, *run_folder.tasks(run)) for place in run_folder.attempts(one)]:
        try:
            found = verdict.read(folder / "verdict.json")
        except (OSError, ValueError):
            continue
        if found.cause in BAD_CAUSES and found.host:
            nodes.append(found.host)
        nodes += [node.host for node in found.nodes if node.lost]
    try:
        listed = json.loads((run / DOCTOR).read_text(encoding="utf-8"))["exclude"]
    except (OSError, ValueError, KeyError, TypeError):
        listed = ""
    nodes += [name for name in listed.split(",") if name] if isinstance(listed, str) else []
    return sorted(set(nodes))


def keep_away(run: Path, exclude: str) -> None:
    """Note in the specs of a run which nodes it must not use."""
    for folder in run_folder.tasks(run) or [run]:
        one = spec.read(folder / spec.FILE_NAME)
        spec.write(replace(one, exclude=tuple(dict.fromkeys([*one.exclude, exclude]))), folder)
