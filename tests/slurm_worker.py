"""What a SLURM job runs in the tests: ranks that sum their ranks over gloo and report where they are."""

import json
import os
import sys
import time

FAILURE = "fail"
FAILURE_CODE = 3


def main(argv: list[str]) -> int:
    """Print one JSON line per rank; `fail` as the first argument makes the last rank end with an error."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    total = torch.tensor([rank + 1])
    dist.all_reduce(total)
    seen = {"rank": rank, "world": world, "sum": int(total), "node": os.environ["SLURMD_NODENAME"], "argv": argv}
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONSAFEPATH", "SITE_SETUP")
    seen |= {"cwd": os.getcwd(), "env": {name: os.environ.get(name) for name in names}}
    # One write per line: the ranks share the job's output file.
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()
    if argv[:1] == [FAILURE]:
        if rank == world - 1:
            os._exit(FAILURE_CODE)  # Like a crash: nothing is shut down.
        # A survivor that would go on for longer than any test waits.
        time.sleep(600)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
