"""What SLURM's programs are asked, and what they answer, in formats that we fix."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

JOB_ID = re.compile(r"\d+(_\d+)?", re.ASCII)
# Left over from an enclosing job or a profile, these would silently win over options, or confuse the new job's steps.
LEAKING = ("SBATCH_", "SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SINFO_", "SCANCEL_", "PMI_", "PMI2_", "PMIX_")
KEPT = frozenset({"SLURM_CONF"})
PATIENCE_S = 60.0
QUEUE_FORMAT = "%i|%T|%M|%L|%D|%N|%S|%r"
QUEUE_FIELDS = 8
OVER = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
    | {"PREEMPTED", "REVOKED", "TIMEOUT"}
)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class SlurmError(RuntimeError):
    """One of SLURM's programs is missing or refused; its own words in one sentence."""


@dataclass(frozen=True, kw_only=True)
class QueueEntry:
    """A job as squeue sees it; texts are SLURM's own, such as 1-02:03:04 or UNLIMITED."""

    job_id: str
    state: str
    elapsed: str
    left: str
    nodes: str
    """How many."""
    node_list: str
    """Which, such as n[1-2]; empty before the start."""
    start: str
    """When it started, or will by SLURM's guess; N/A if SLURM does not say."""
    reason: str

    @property
    def over(self) -> bool:
        """Whether it has ended for good."""
        return self.state in OVER


def scrubbed(environ: Mapping[str, str], without: Sequence[str] = ()) -> dict[str, str]:
    """The environment for SLURM's programs: nothing of an enclosing job, nor what is named in `without`."""
    return {
        key: value for key, value in environ.items() if key in KEPT or not (key.startswith(LEAKING) or key in without)
    }


def ask(argv: Sequence[str], *, environ: Mapping[str, str] | None = None, text: str | None = None) -> tuple[str, str]:
    """Run one of SLURM's programs -> its output and its words. Raises SlurmError if it is missing, refuses or hangs."""
    program = argv[0]
    try:
        done = subprocess.run(
            argv,
            env=scrubbed(os.environ) if environ is None else environ,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE_S,
            check=False,
            # sbatch reads a script from there; nothing else reads anything.
            **({"stdin": subprocess.DEVNULL} if text is None else {"input": text}),
        )
    except FileNotFoundError:
        raise SlurmError(
            f"expected SLURM's {program} on the PATH, found none; use a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"expected an answer of {program}, got none in {PATIENCE_S:.0f} s; try again later") from None
    if done.returncode:
        raise SlurmError(f"{program} refused: {said(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout, said(done.stderr)


def said(text: str) -> str:
    """The words of one of SLURM's programs on one line, without its prefixes and control characters."""
    lines = [re.sub(r"^(\w+: )?(error: )?", "", line).strip() for line in text.splitlines()]
    return CONTROL.sub("", "; ".join(line for line in lines if line))


def parse_queue(text: str) -> list[QueueEntry]:
    """The jobs in squeue's answer to QUEUE_FORMAT; a line that is none raises SlurmError."""
    entries = []
    for line in filter(None, text.splitlines()):
        parts = [CONTROL.sub("", part) for part in line.split("|", QUEUE_FIELDS - 1)]
        if len(parts) != QUEUE_FIELDS or not JOB_ID.fullmatch(parts[0]):
            raise SlurmError(
                f"expected {QUEUE_FIELDS} fields behind a job id from squeue, got {line!r}; ask its operator"
            )
        names = ("job_id", "state", "elapsed", "left", "nodes", "node_list", "start", "reason")
        entries.append(QueueEntry(**dict(zip(names, parts, strict=True))))
    return entries


def queue(job_ids: Sequence[str]) -> dict[str, QueueEntry]:
    """What squeue knows of these jobs, by id, tasks of an array each; those it has forgotten are left out."""
    if not job_ids:
        return {}
    check_ids(job_ids)
    command = ["squeue", "--noheader", "--array", "--states=all", f"--format={QUEUE_FORMAT}"]
    try:
        text, _ = ask([*command, f"--jobs={','.join(job_ids)}"])
    except SlurmError as error:
        if "Invalid job id" in str(error):  # said only if all of them are forgotten
            return {}
        raise
    return {entry.job_id: entry for entry in parse_queue(text)}


def check_ids(job_ids: Sequence[str]) -> None:
    """Raise ValueError unless each is the id of a job or of an array's task."""
    for job_id in job_ids:
        if not JOB_ID.fullmatch(job_id):
            raise ValueError(f"expected a job id such as 12 or 12_3, got {job_id!r}; is jobs.jsonl damaged?")


def seconds(text: str) -> int | None:
    """A time in SLURM's notation, minutes or [days-]hours:minutes:seconds; None for what is no time or has no end."""
    if not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", text, re.ASCII):
        return None
    days, mark, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if mark:  # days-hours[:minutes[:seconds]]
        parts += [0] * (3 - len(parts))
    elif len(parts) < 3:  # minutes[:seconds]
        parts = [0, *parts, *([0] if len(parts) == 1 else [])]
    hours, minutes, rest_s = parts
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + rest_s


def partition_limits(partition: str | None) -> dict[str, int | None]:
    """The longest time of these partitions in seconds, None for no limit; of the default one if none is named."""
    chosen = [] if partition is None else [f"--partition={partition}"]
    text, _ = ask(["sinfo", "--noheader", "--format=%P|%l", *chosen])
    found = {}
    for line in text.splitlines():
        name, _, limit = line.partition("|")
        if partition is not None or name.endswith("*"):  # the star is the default's
            found[name.rstrip("*")] = seconds(limit)
    return found
