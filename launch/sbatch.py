"""SLURM's batch script: a `Job` on a `Site` becomes options and text (pure), and those become a queued job."""

import os
import re
import shlex
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import run_folder
from launch.sites import HEADER_VALUES, Site
from launch.slurm_text import SlurmError, ask, check_ids, scrubbed
from launch.spec import FILE_NAME
from launch.words import has_control_characters

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "slurm" / "job.sbatch"
SUBMITTED = re.compile(r"(\d+)(;[\w.-]+)?", re.ASCII)
LARGEST_ARRAY = 10_000


@dataclass(frozen=True, kw_only=True)
class Job:
    """What SLURM is asked for. Raises ValueError for values that no script can carry."""

    name: str
    """Name in the queue and in the names of files."""
    nodes: int = 1
    """Nodes."""
    nproc_per_node: int | None = 1
    """Ranks on each node; None is one for each GPU that a node gives."""
    gpus: int | None = None
    """GPUs of all nodes together, which may be uneven; None is as many on each node as it has ranks."""
    run_dir: Path
    """Absolute folder of the run, on a file system that the nodes see too."""
    root: Path = ROOT
    """Absolute folder of ringmark's packages on the nodes."""
    time: str | None = None
    """Wall-clock limit; by default the site's."""
    exclude: str | None = None
    """Nodes that must not be used, besides the site's."""
    requeue: bool = False
    """Whether SLURM may start the job again, after a preemption or the loss of a node."""
    tasks: int | None = None
    """Tasks of an array, each a run of its own; None is no array."""
    at_once: int | None = None
    """How many tasks of an array may run at the same time."""

    def __post_init__(self) -> None:
        run_folder.check_name(self.name)
        counts = {"--nodes": self.nodes, "--nproc-per-node": self.nproc_per_node, "--gpus": self.gpus}
        for flag, value in {**counts, "--array": self.tasks, "--at-once": self.at_once}.items():
            if value is not None and not 1 <= value <= LARGEST_ARRAY:
                raise ValueError(f"expected {flag} of at least 1 and at most {LARGEST_ARRAY}, got {value}; change it")
        for flag, path in (("--run-dir", self.run_dir), ("ringmark", self.root)):
            check_folder(flag, path)
        if ":" in str(self.root):
            raise ValueError(f"expected ringmark in a folder without ':', got {self.root}; PYTHONPATH cannot name it")
        for key in ("time", "exclude"):
            check_header_value(key, getattr(self, key))


def check_header_value(key: str, text: str | None) -> None:
    """Raise ValueError unless `text`, of the flag of that name, may stand in a header line."""
    pattern, expected, example = HEADER_VALUES[key]
    if text is not None and not re.fullmatch(pattern, text, re.ASCII):
        raise ValueError(f"expected --{key} as {expected}, got {text!r}; write for example {example}")


def check_folder(what: str, path: Path) -> None:
    """Raise ValueError unless a script and sbatch's file name patterns can name `path`."""
    if not path.is_absolute():
        raise ValueError(f"expected {what} as an absolute folder, got {str(path)!r}; resolve it first")
    if has_control_characters(str(path)) or "\\" in str(path):
        # A backslash switches sbatch's %x and %j off.
        raise ValueError(
            f"expected {what} without control characters and backslashes, got {str(path)!r}; rename the folder"
        )


def options(job: Job, site: Site) -> list[str]:
    """sbatch's options, one word each; what is None is left out. Raises ValueError if the job does not fit the site."""
    check_gpus(job, site)
    pattern = str(job.run_dir).replace("%", "%%")
    given = {
        "job-name": job.name,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "reservation": site.reservation,
        "exclude": ",".join(filter(None, [site.exclude, job.exclude])) or None,
        "nodes": str(job.nodes),
        # One task per node, which starts that node's ranks: several would each start all of them.
        "ntasks-per-node": "1",
        "cpus-per-task": None if site.cpus_per_task is None else str(site.cpus_per_task),
        **gpu_options(job, site),
        "mem": site.mem,
        "time": job.time or site.time,
        "array": None if job.tasks is None else f"0-{job.tasks - 1}" + (f"%{job.at_once}" if job.at_once else ""),
        "output": pattern + ("/job-%j.out" if job.tasks is None else "/task-%a/job-%A_%a.out"),
        "open-mode": "append",
        # All but what was taken out of sbatch's own environment, where the values need no quoting.
        "export": "ALL",
    }
    requeue = "--requeue" if job.requeue else "--no-requeue"
    words = [f"--{key}={value}" for key, value in given.items() if value is not None]
    return [*words, requeue, *site.sbatch_options]


def check_gpus(job: Job, site: Site) -> None:
    """Raise ValueError if there are not as many GPUs as ranks."""
    most = site.gpus_per_node
    if job.gpus is not None and not most:
        raise ValueError(
            f"expected --gpus with a site that has some, got {job.gpus} and gpus_per_node = 0; use --nproc-per-node"
        )
    if job.gpus is not None and not job.nodes <= job.gpus <= job.nodes * most:
        raise ValueError(
            f"expected --gpus from {job.nodes} to {job.nodes * most}, at least one on each of {job.nodes} nodes with "
            f"{most}, got {job.gpus}; change --gpus or --nodes, or gpus_per_node of the site"
        )
    if most and job.nproc_per_node is not None and job.nproc_per_node > most:
        raise ValueError(
            f"expected at most {most} ranks per node, one per GPU, got --nproc-per-node "
            f"{job.nproc_per_node}; use more --nodes, or a site without GPUs"
        )


def gpu_options(job: Job, site: Site) -> dict[str, str]:
    """How GPUs are asked for: in all, or on each node as many as it has ranks."""
    gpu_type = f"{site.gpu_type}:" if site.gpu_type else ""
    if job.gpus is not None:
        return {"gpus": f"{gpu_type}{job.gpus}"}
    # A GPU that no rank uses is a GPU withheld from others.
    count = min(job.nproc_per_node or site.gpus_per_node, site.gpus_per_node)
    if not count:
        return {}
    return {"gres": f"gpu:{gpu_type}{count}"} if site.gpus_syntax == "gres" else {"gpus-per-node": f"{gpu_type}{count}"}


def render(job: Job, site: Site) -> str:
    """The batch script. Its one command reads everything that a person wrote from a file, so no shell parses it."""
    folder = shlex.quote(str(job.run_dir))
    task = '/task-"$SLURM_ARRAY_TASK_ID"' if job.tasks is not None else ""
    lines = [*(f"module load {name}" for name in site.modules), *site.setup]
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        script=f"{folder}/{run_folder.SCRIPT}",
        header="\n".join(f"#SBATCH {header_word(option)}" for option in options(job, site)),
        setup="\n".join(lines) or ":",
        root=shlex.quote(str(job.root)),
        python=shlex.quote(site.python),
        spec=f"{folder}{task}/{FILE_NAME}",
    )


def header_word(option: str) -> str:
    """An option as a header line has it, which sbatch reads with a shell's quotes."""
    key, mark, value = option.partition("=")
    return key + mark + (shlex.quote(value) if mark else "")


def predict(script: str, sbatch_options: Sequence[str]) -> str:
    """When and where SLURM would start the job, in its own words; queues nothing. Raises SlurmError if it refuses."""
    words = ask(["sbatch", "--test-only", *sbatch_options], text=script)[1]
    return re.sub(r"^Job \d+ ", "", words)  # a number of a job that will never be


def queue(
    run: Path, sbatch_options: Sequence[str], *, environ: Mapping[str, str] | None = None, after: str | None = None
) -> run_folder.Job:
    """Queue the script of a run, note the job in its folder, and return it. Raises SlurmError.

    With `after` it waits for that job to end, however it ends. `environ` is what the job inherits.
    """
    if after is not None:
        check_ids([after])
    waits = [] if after is None else [f"--dependency=afterany:{after}"]
    command = ["sbatch", "--parsable", *sbatch_options, *waits, str(run / run_folder.SCRIPT)]
    text, _ = ask(command, environ=scrubbed(os.environ) if environ is None else environ)
    match = SUBMITTED.fullmatch(text.strip())
    if not match:
        raise SlurmError(f"expected a job id from sbatch, got {text.strip()!r}; look for the job with squeue")
    job = run_folder.Job(job_id=match[1], time_s=time.time(), options=tuple(sbatch_options))
    run_folder.add_job(run, job)
    return job


def options_again(run: Path, exclude: str | None = None) -> list[str]:
    """The options of a run's last job; `exclude` names nodes to keep away from in addition. Raises ValueError."""
    last = next(reversed(run_folder.jobs(run)), None)
    if last is None:
        raise ValueError(f"expected a run that was submitted before, got {run}, without jobs; use `ringmark submit`")
    if not exclude:
        return list(last.options)
    check_header_value("exclude", exclude)
    before = [word.partition("=")[2] for word in last.options if word.startswith("--exclude=")]
    others = [word for word in last.options if not word.startswith("--exclude=")]
    return [*others, f"--exclude={','.join([*before, exclude])}"]
