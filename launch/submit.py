"""`ringmark submit`: one training job for a SLURM cluster, shown or queued."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from launch import sbatch
from launch.sites import Site, load_site


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Queue a training job on a SLURM cluster."""

    site: str
    """Cluster: a file of slurm/sites, or a path to such a TOML file."""
    nodes: int = 1
    """Nodes of the cluster to train on."""
    nproc_per_node: int | None = None
    """Ranks on each node; by default one per GPU of the site's nodes, or 1 without GPUs."""
    name: str | None = None
    """Name in the queue; by default ringmark- and the command's name."""
    time: str | None = None
    """Wall-clock limit, [days-]hours:minutes:seconds; by default the site's."""
    run_dir: Path = Path("runs/slurm")
    """Folder for the job's script and output, on a file system that the nodes see too."""
    dry_run: bool = False
    """Print the batch script and do nothing."""


def ranks_of(options: SubmitOptions, site: Site) -> int:
    """Ranks on each node."""
    return (site.gpus_per_node or 1) if options.nproc_per_node is None else options.nproc_per_node


def nproc_per_node(options: SubmitOptions) -> int:
    """Ranks on each node, by the options or else by their site. Raises ValueError for an unusable site."""
    return ranks_of(options, load_site(options.site))


def plan(options: SubmitOptions, worker: tuple[str, ...]) -> tuple[sbatch.Job, str]:
    """The job that the options ask for, and its script; writes nothing. Raises ValueError for unusable options."""
    site = load_site(options.site)
    job = sbatch.Job(
        name=options.name or "ringmark-" + (worker[0].rpartition(".")[2] if worker else ""),
        nodes=options.nodes,
        nproc_per_node=ranks_of(options, site),
        worker=worker,
        run_dir=options.run_dir.expanduser().absolute(),
        work_dir=Path.cwd(),
        time=options.time,
    )
    return job, sbatch.render(job, site)


def submit(options: SubmitOptions, worker: tuple[str, ...]) -> int:
    """Show or queue a job that runs `worker`, such as ("launch.train", "--model", "resnet18"); returns the exit code.

    Raises ValueError for unusable options; what sbatch itself refuses is printed, with exit code 1.
    """
    job, script = plan(options, worker)
    if options.dry_run:
        sys.stdout.write(script)
        return 0
    try:
        job_id = sbatch.submit(script, job.run_dir)
    except sbatch.SubmitError as error:
        print(f"ringmark submit: {error}", file=sys.stderr)
        return 1
    output = job.run_dir / f"{job.name}-{job_id}.out"
    print(f"job     {job_id}: {job.nodes} nodes x {job.nproc_per_node} ranks")
    print(f"script  {job.run_dir / f'job-{job_id}.sbatch'}")
    print(f"output  {output} (written once the job starts)")
    print(f"follow  tail -F {shlex.quote(str(output))}")
    print(f"status  squeue --jobs={job_id} (its last column says why a job waits)")
    print(f"cancel  scancel {job_id}")
    return 0
