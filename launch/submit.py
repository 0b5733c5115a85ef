"""`ringmark submit`: a program becomes a run folder and a queued job of a SLURM cluster."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import precheck, run_folder, run_record, sbatch, spec
from launch.plan import Plan, Worker, plan
from launch.private_files import write_private
from launch.secrets import mask_argv, secret_arguments
from launch.slurm_text import SlurmError

LONGEST_LINE = 200
REFUSED = 1
"""Exit code when SLURM refuses a job."""


def check(planned: Plan) -> None:
    """Raise ValueError for what would only be noticed once the job runs, or never."""
    for one in planned.specs[:1]:
        precheck.check_program(one)
    precheck.check_interpreter(planned.site)
    precheck.check_work_dir(planned.job.run_dir)
    too_long = precheck.time_warning(planned.site, planned.job.time or planned.site.time)
    if too_long:
        raise ValueError(too_long)


def submit(argv: Sequence[str], worker: Worker) -> int:
    """`ringmark submit OPTIONS -- PROGRAM`: show or queue a job; returns the exit code.

    Raises UsageError or ValueError for a person's mistakes; what SLURM itself refuses is printed, with exit code 1.
    """
    planned = plan(argv, worker)
    if planned.options.dry_run:
        sys.stdout.write(planned.script)
        return 0
    check(planned)
    try:
        start = sbatch.predict(planned.script, planned.sbatch_options)
        jobs = store_and_queue(planned)
    except SlurmError as error:
        print(f"ringmark submit: {error}; correct the site file or the flags and submit again", file=sys.stderr)
        return REFUSED
    for name in secret_arguments(planned.argv):
        print(
            f"ringmark: {name} looks like a secret, and everybody on a node can read arguments; "
            "export it as a variable and use --keep-env NAME",
            file=sys.stderr,
        )
    print("\n".join(described(planned, [job.job_id for job in jobs], start)))
    return 0


def store_and_queue(planned: Plan) -> list[run_folder.Job]:
    """Make the run's folder and queue its jobs, or leave nothing behind and raise SlurmError."""
    run = planned.job.run_dir
    run_folder.make(run)
    jobs: list[run_folder.Job] = []
    try:
        for one in planned.specs:
            if Path(one.run_dir) != run:
                run_folder.make(Path(one.run_dir))
            spec.write(one, Path(one.run_dir))
        write_private(run / run_folder.SCRIPT, planned.script)
        words = ["ringmark", "submit", *planned.argv]
        data = run_record.record(
            words, os.environ, work_dir=Path.cwd(), site=planned.site, python=planned.specs[0].python
        )
        run_record.write(run, data)
        for _ in range(planned.options.chain):
            after = jobs[-1].job_id if jobs else None
            jobs.append(sbatch.queue(run, planned.sbatch_options, environ=planned.environ, after=after))
    except BaseException:
        if not jobs:  # this very folder was made above, so nothing else is in it
            shutil.rmtree(run, ignore_errors=True)
        raise
    return jobs


def described(planned: Plan, job_ids: Sequence[str], start: str) -> list[str]:
    """What was asked for and how to follow it, in aligned lines."""
    options, one = planned.options, planned.specs[0]
    run = short(planned.job.run_dir)
    tasks = "" if planned.job.tasks is None else f", {planned.job.tasks} tasks"
    chain = ", one after another" if len(job_ids) > 1 else ""
    words = [*(["-m"] if one.is_module else []), *mask_argv([one.script, *one.arguments])]
    program = " ".join(shlex.quote(word) if word.isprintable() else ascii(word) for word in words)
    rows = {
        "job": ", ".join(job_ids) + tasks + chain,
        "run": run,
        "runs": program if len(program) <= LONGEST_LINE else f"{program[:LONGEST_LINE]} ...",
        "on": asked(planned),
        "goes on": {"never": None, "requeue": "by requeueing the job", "follow": "in a new job"}[one.go_on],
        "stays": f"{', '.join(planned.at_home)} (looks secret; --keep-env NAME takes it along)"
        if planned.at_home
        else None,
        "SLURM": start or None,
        "status": f"ringmark status {run}",
        "logs": f"ringmark logs -f {run}",
        "cancel": f"ringmark cancel {run}",
    }
    if options.chain > 1:
        rows["goes on"] = f"in {options.chain} jobs, until the run is done"
    return [f"{key:<8}{value}" for key, value in rows.items() if value is not None]


def asked(planned: Plan) -> str:
    """Nodes, ranks, GPUs, time and place in one line."""
    job, site = planned.job, planned.site
    per_node = job.nproc_per_node
    nodes = f"{job.nodes} {'node' if job.nodes == 1 else 'nodes'}"
    parts = [
        f"{nodes}, {job.gpus} ranks in all" if per_node is None else f"{nodes} x {per_node} {_ranks(per_node)}",
        f"mode {planned.options.mode}",
        f"time {job.time or site.time or 'of the partition'}",
        f"partition {site.partition or 'by default'}",
    ]
    return ", ".join([*parts, *([f"in {site.container}"] if site.container != "none" else [])])


def _ranks(count: int) -> str:
    return "rank" if count == 1 else "ranks"


def short(path: Path) -> str:
    """A path as a shell takes it, from here if it lies below."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
