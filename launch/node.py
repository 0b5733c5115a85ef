"""Runs once per node inside a SLURM step: starts torchrun for this node's ranks.

Internal: `srun ... python -m launch.node --master-addr A --master-port P --nproc-per-node K -- <worker module> ...`.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from launch.batch import UNUSABLE, split_worker

DRAIN_S = 1.0


def read_step(environ: Mapping[str, str]) -> tuple[int, int]:
    """This node's rank and the number of nodes in the step. Raises ValueError outside a step of one task per node."""
    names = ("SLURM_STEP_ID", "SLURM_NODEID", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS")
    missing = [name for name in names if not environ.get(name, "").isdigit()]
    if missing:
        raise ValueError(
            f"expected to run inside a SLURM step, found no number in {', '.join(missing)}; use `ringmark submit`"
        )
    _, node_rank, nodes, tasks = (int(environ[name]) for name in names)
    if nodes != tasks:
        raise ValueError(
            f"expected one task per node, got {tasks} tasks on {nodes} nodes; start srun with --ntasks-per-node=1"
        )
    return node_rank, nodes


def torchrun_command(options: argparse.Namespace, step: tuple[int, int], worker: Sequence[str]) -> list[str]:
    """argv that runs `worker` (module, arguments) on this node's ranks, with the rendezvous fixed beforehand."""
    node_rank, nodes = step
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", str(nodes), "--node-rank", str(node_rank)),
        *("--master-addr", options.master_addr, "--master-port", str(options.master_port)),
        *("--nproc-per-node", str(options.nproc_per_node), "--module"),
        # Without the mark, argparse before Python 3.12 takes a worker's --no for an ambiguous option of torchrun.
        *("--", *worker),
    ]


def run_and_drain(command: Sequence[str]) -> int:
    """Run a command; a failure is passed on only after srun had time to read its last words.

    `srun --kill-on-bad-exit` drops what is still on its way when a task fails. On SLURM 22.05 a task that failed right
    after writing 60 lines lost some or all of them in 15 runs of 15, and none after 0.3 s. They are the traceback.
    """
    # SLURM signals every process of a step, torchrun too: this one only has to outlive it. Unlike SIG_IGN, a handler is
    # not inherited.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        code = subprocess.call(command)
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        time.sleep(DRAIN_S)
    return code if code >= 0 else 128 - code


def main(argv: Sequence[str] | None = None) -> int:
    """Run this node's ranks; returns torchrun's exit code."""
    parser = argparse.ArgumentParser(prog="launch.node", description=__doc__, allow_abbrev=False)
    parser.add_argument("--master-addr", required=True, metavar="HOST")
    parser.add_argument("--master-port", type=int, required=True, metavar="PORT")
    parser.add_argument("--nproc-per-node", type=int, required=True, metavar="K")
    try:
        own, worker = split_worker(sys.argv[1:] if argv is None else argv)
        options = parser.parse_args(own)
        step = read_step(os.environ)
    except ValueError as error:
        print(f"launch.node: {error}", file=sys.stderr)
        return UNUSABLE
    # torchrun would set 1, and leave most of the node idle.
    threads = max(1, len(os.sched_getaffinity(0)) // max(1, options.nproc_per_node))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    return run_and_drain(torchrun_command(options, step, worker))


if __name__ == "__main__":
    sys.exit(main())
