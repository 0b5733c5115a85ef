"""SLURM's batch script: a `Job` on a `Site` becomes text (pure), and the text becomes a queued job."""

import os
import re
import shlex
import string
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.sites import HEADER_VALUES, Site, has_control_characters

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "slurm" / "job.sbatch"
JOB_ID = re.compile(r"(\d+)(;[\w.-]+)?", re.ASCII)
# Left over from an enclosing job, these would silently win over the script's header or confuse the new job's steps.
LEAKING = ("SBATCH_", "SLURM_", "SLURMD_", "SRUN_", "PMI_", "PMIX_")
KEPT = frozenset({"SLURM_CONF"})


class SubmitError(RuntimeError):
    """sbatch is missing or refused the job."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training job: who runs where. Raises ValueError for values that no script can carry."""

    name: str
    """Name in the queue and in the names of files."""
    nodes: int
    """Nodes."""
    nproc_per_node: int
    """Ranks on each node."""
    worker: tuple[str, ...]
    """Module that every rank runs, such as launch.train, and its arguments."""
    run_dir: Path
    """Absolute folder for the job's output, on a file system that the nodes see too."""
    work_dir: Path
    """Absolute folder the worker runs in, so that its relative paths mean what they meant at submission."""
    root: Path = ROOT
    """Absolute folder of ringmark's packages on the nodes."""
    time: str | None = None
    """Wall-clock limit; by default the site's."""

    def __post_init__(self) -> None:
        check_worker(self.worker)
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", self.name, re.ASCII):
            raise ValueError(
                f"expected --name of up to 64 letters, digits and _.-, got {self.name!r}; try 'resnet18-2nodes'"
            )
        for flag, value in (("--nodes", self.nodes), ("--nproc-per-node", self.nproc_per_node)):
            if value < 1:
                raise ValueError(f"expected {flag} of at least 1, got {value}; give a positive whole number")
        for flag, path in (("--run-dir", self.run_dir), ("the working folder", self.work_dir), ("ringmark", self.root)):
            check_folder(flag, path)
        if ":" in str(self.root):
            raise ValueError(f"expected ringmark in a folder without ':', got {self.root}; PYTHONPATH cannot name it")
        pattern, expected, example = HEADER_VALUES["time"]
        if self.time is not None and not re.fullmatch(pattern, self.time, re.ASCII):
            raise ValueError(f"expected --time as {expected}, got {self.time!r}; write for example {example}")


def check_worker(worker: tuple[str, ...]) -> None:
    """Raise ValueError unless `worker` is a module and arguments that a script can carry byte for byte."""
    if not worker or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", worker[0], re.ASCII):
        raise ValueError(
            f"expected a worker module and its arguments, got {worker!r}; start with a module such as launch.train"
        )
    for argument in worker:
        # Surrogates are bytes that Python could not decode.
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in argument):
            raise ValueError(
                f"expected worker arguments of UTF-8 text, got {argument!r}; rename the file or change the value"
            )


def check_folder(what: str, path: Path) -> None:
    """Raise ValueError unless a script and sbatch's file name patterns can name `path`."""
    if not path.is_absolute():
        raise ValueError(f"expected {what} as an absolute folder, got {str(path)!r}; resolve it first")
    if has_control_characters(str(path)) or "\\" in str(path):
        # A backslash switches sbatch's %x and %j off.
        raise ValueError(
            f"expected {what} without control characters and backslashes, got {str(path)!r}; rename the folder"
        )


def quote(text: str) -> str:
    """`text` as one word of bash on one line; shlex.quote alone keeps newlines, and sbatch refuses carriage returns."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = (character if character.isprintable() else ansi_c(character) for character in text)
    return "$'" + "".join({"'": "\\'", "\\": "\\\\"}.get(piece, piece) for piece in escaped) + "'"


def ansi_c(character: str) -> str:
    """The UTF-8 bytes of a character as bash writes them inside $'...'; does not depend on the node's locale."""
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


def header(job: Job, site: Site) -> list[str]:
    """Options of sbatch; None is left out."""
    # A GPU that no rank uses is a GPU withheld from others.
    gpus = min(job.nproc_per_node, site.gpus_per_node)
    gpu_type = f"{site.gpu_type}:" if site.gpu_type else ""
    options = {
        "job-name": job.name,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "nodes": str(job.nodes),
        # One task per node, which starts that node's ranks: several would each start all of them.
        "ntasks-per-node": "1",
        "cpus-per-task": str(site.cpus_per_task),
        "gpus-per-node": f"{gpu_type}{gpus}" if gpus else None,
        "mem": site.mem,
        "time": job.time or site.time,
        "output": str(job.run_dir).replace("%", "%%") + "/%x-%j.out",
        "open-mode": "append",
    }
    return [f"--{key}={shlex.quote(value)}" for key, value in options.items() if value is not None]


def render(job: Job, site: Site) -> str:
    """The batch script. Raises ValueError if the job does not fit the site."""
    if site.gpus_per_node and job.nproc_per_node > site.gpus_per_node:
        raise ValueError(
            f"expected at most {site.gpus_per_node} ranks per node, one per GPU, got --nproc-per-node "
            f"{job.nproc_per_node}; use more --nodes, or a site without GPUs"
        )
    more = [re.sub("=.*", lambda match: "=" + shlex.quote(match[0][1:]), option) for option in site.sbatch_options]
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        header="\n".join(f"#SBATCH {option}" for option in [*header(job, site), *more]),
        setup="\n".join(site.setup) or ":",
        root=quote(str(job.root)),
        work_dir=quote(str(job.work_dir)),
        python=quote(site.python),
        nproc_per_node=job.nproc_per_node,
        worker=" ".join(quote(argument) for argument in job.worker),
    )


def scrubbed(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for sbatch: SBATCH_* would beat the script's header, SLURM_* is an enclosing job's."""
    return {key: value for key, value in environ.items() if key in KEPT or not key.startswith(LEAKING)}


def submit(script: str, run_dir: Path) -> str:
    """Queue the script, keep it as run_dir/job-<id>.sbatch, and return the job's id. Raises SubmitError."""
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor, path = tempfile.mkstemp(prefix="job-", suffix=".sbatch", dir=run_dir)
    with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.write(script)
    try:
        job_id = queue(Path(path), run_dir)
    except SubmitError:
        os.unlink(path)
        raise
    os.replace(path, run_dir / f"job-{job_id}.sbatch")
    return job_id


def queue(path: Path, run_dir: Path) -> str:
    """Hand a script to sbatch; returns the job's id. Raises SubmitError with sbatch's own words."""
    command = ["sbatch", "--parsable", path.name]
    try:
        result = subprocess.run(
            command, cwd=run_dir, env=scrubbed(os.environ), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise SubmitError(
            "expected SLURM's sbatch on the PATH, found none; submit from a login node, or use --dry-run"
        ) from None
    if result.returncode:
        lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in result.stderr.splitlines()]
        reason = "; ".join(line.strip() for line in lines if line.strip()) or f"exit code {result.returncode}"
        raise SubmitError(f"sbatch refused the job: {reason}; correct the site file or the flags and submit again")
    match = JOB_ID.fullmatch(result.stdout.strip())
    if not match:
        raise SubmitError(f"expected a job id from sbatch, got {result.stdout.strip()!r}; look for the job with squeue")
    return match[1]
