"""A SLURM job as seen from its batch script, and the one step that it starts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.slurm_text import ask
from launch.spec import Spec

GPUS = re.compile(r"gpu(?::[A-Za-z0-9_.-]+)?:(\d+)")
NODES = re.compile(r"Nodes=(\S+) CPU_IDs=\S* Mem=\S* GRES=(\S*)")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the job's environment tells."""

    job_id: str
    nodes: tuple[str, ...]
    cpus_per_task: str | None
    restarts: int


def hostnames(nodelist: str) -> tuple[str, ...]:
    """Names of the nodes in SLURM's short form, such as n[1-3]. Raises SlurmError."""
    text, _ = ask(["scontrol", "show", "hostnames", nodelist])
    return tuple(text.split())


def read_job(environ: Mapping[str, str]) -> Job:
    """The job that this process belongs to. Raises ValueError outside a job."""
    job_id, nodelist = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_JOB_NODELIST", "")
    if not job_id.isdigit() or not nodelist:
        raise ValueError(
            "expected to run inside a SLURM job, found no SLURM_JOB_ID and SLURM_JOB_NODELIST; use `ringmark submit`"
        )
    restarts = environ.get("SLURM_RESTART_COUNT", "0")
    return Job(
        job_id=job_id,
        nodes=hostnames(nodelist),
        cpus_per_task=environ.get("SLURM_CPUS_PER_TASK"),
        restarts=int(restarts) if restarts.isdigit() else 0,
    )


def gpus_by_node(job: Job) -> dict[str, int]:
    """GPUs that the job was given, by node; empty if it has none, or SLURM does not say. Raises SlurmError."""
    text, _ = ask(["scontrol", "--oneliner", "--details", "show", "job", job.job_id])
    found: dict[str, int] = {}
    for nodelist, gres in NODES.findall(text):
        count = sum(map(int, GPUS.findall(gres)))
        for node in hostnames(nodelist):
            found[node] = count
    return {node: count for node, count in found.items() if count}


def ranks_by_node(spec: Spec, job: Job) -> dict[str, int]:
    """Ranks on each node: as many as were asked for, or one for each GPU. Raises ValueError if that is none."""
    if spec.nproc_per_node is not None:
        return dict.fromkeys(job.nodes, spec.nproc_per_node)
    gpus = gpus_by_node(job)
    without = [node for node in job.nodes if not gpus.get(node)]
    if without:
        raise ValueError(
            f"expected a GPU for at least one rank on every node, got none on {', '.join(without)}; "
            "ask for GPUs, or give --nproc-per-node"
        )
    return {node: gpus[node] for node in job.nodes}


def members_of(spec: Spec, job: Job) -> list[tuple[str, str]]:
    """Who joins the launch, and on which node: a launcher for each node, or in mode srun a task for each rank."""
    if spec.mode != "srun":
        return [(node, node) for node in job.nodes]
    return [(f"{node}.{index}", node) for node, count in ranks_by_node(spec, job).items() for index in range(count)]


def srun_command(spec: Spec, cpus_per_task: str | None, attempt: int, tasks: Sequence[str]) -> list[str]:
    """argv of the job's one step, whose tasks run on these nodes; `cpus_per_task` as the job has it."""
    per_node = {node: tasks.count(node) for node in tasks}
    each = spec.mode == "srun"
    return [
        "srun",
        # One node's failure ends the step: the others would wait for it until the time limit.
        "--kill-on-bad-exit=1",
        f"--nodes={len(per_node)}",
        f"--ntasks={len(tasks)}",
        # All tasks of a node see all its CPUs and GPUs: ringmark deals them out, alike in every mode.
        *(["--distribution=arbitrary", "--overcommit", "--cpu-bind=none"] if each else ["--ntasks-per-node=1"]),
        # Since SLURM 22.05 a step no longer inherits it everywhere.
        *([f"--cpus-per-task={cpus_per_task}"] if cpus_per_task and not each else []),
        # A site that submits with --export=NONE would otherwise get steps without PYTHONPATH.
        "--export=ALL",
        *spec.srun_options,
        *spec.wrap,
        *(spec.python, f"{spec.root}/launch/boot.py", "task" if each else "node"),
        *("--spec", f"{spec.run_dir}/spec.json", "--attempt", str(attempt)),
    ]
