"""Runs once, on a job's first node, inside the batch script: finds an address, then starts launch.node on every node.

Internal: `python -m launch.batch --nproc-per-node K -- <worker module> <worker arguments>`.
"""

import argparse
import os
import socket
import sys
from collections.abc import Mapping, Sequence

UNUSABLE = 2


def split_worker(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Own options and the worker's argv, which starts after the first `--`. Raises ValueError without a worker."""
    own, mark, worker = list(argv), "--", []
    if mark in argv:
        own, worker = list(argv[: argv.index(mark)]), list(argv[argv.index(mark) + 1 :])
    if not worker and not {"-h", "--help"} & set(own):
        raise ValueError(f"expected `{mark}` and a worker module, got {' '.join(argv)!r}; add `{mark} launch.train`")
    return own, worker


def free_port() -> int:
    """A port that nobody listens on at this moment.

    Between here and the moment rank 0's agent binds it, another process of this node could take it. The kernel hands
    out such ports in random order, so that needs bad luck; the job would then fail at once with EADDRINUSE.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def srun_command(environ: Mapping[str, str], python: str, nproc_per_node: int, worker: Sequence[str]) -> list[str]:
    """argv of the one step of this job. Raises ValueError outside a job."""
    nodes = environ.get("SLURM_JOB_NUM_NODES", "")
    if not nodes.isdigit() or "SLURM_JOB_ID" not in environ:
        raise ValueError(
            "expected to run inside a SLURM job, found no SLURM_JOB_ID and SLURM_JOB_NUM_NODES; use `ringmark submit`"
        )
    cpus = environ.get("SLURM_CPUS_PER_TASK")
    return [
        "srun",
        # One node's failure ends the step: the others would wait for it until the time limit.
        "--kill-on-bad-exit=1",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        # Since SLURM 22.05 a step no longer inherits it everywhere.
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        # A site that submits with --export=NONE would otherwise get steps without PYTHONPATH.
        "--export=ALL",
        *(python, "-m", "launch.node"),
        *("--master-addr", socket.gethostname(), "--master-port", str(free_port())),
        *("--nproc-per-node", str(nproc_per_node), "--", *worker),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Becomes srun, whose exit code is the job's; returns only if it cannot."""
    parser = argparse.ArgumentParser(prog="launch.batch", description=__doc__, allow_abbrev=False)
    parser.add_argument("--nproc-per-node", type=int, required=True, metavar="K")
    try:
        own, worker = split_worker(sys.argv[1:] if argv is None else argv)
        options = parser.parse_args(own)
        command = srun_command(os.environ, sys.executable, options.nproc_per_node, worker)
    except ValueError as error:
        print(f"launch.batch: {error}", file=sys.stderr)
        return UNUSABLE
    print(f"launch.batch: job {os.environ['SLURM_JOB_ID']} on {os.environ['SLURM_JOB_NUM_NODES']} nodes, ", end="")
    print(
        f"{options.nproc_per_node} ranks each, they meet at {command[command.index('--master-addr') + 1]}", flush=True
    )
    try:
        # No process of ours stays between SLURM's signals and the step, or between the step's exit code and the job.
        os.execvp(command[0], command)
    except OSError as error:
        print(f"launch.batch: expected srun on the PATH of the first node, got: {error.strerror}", file=sys.stderr)
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
