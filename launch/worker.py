"""What every worker entry does around its work: who am I, is it a person's mistake, and one exit code."""

import os
import sys
from collections.abc import Callable

from ddp.env import RankInfo, read_rank
from launch.argv import UsageError, fail


def run_worker(prepare: Callable[[RankInfo], Callable[[], int]]) -> int:
    """Run a worker in two parts and return its exit code.

    `prepare(info)` reads flags and checks them, alike on every rank: of its mistakes only rank 0 speaks. The function
    it returns does the work, where a mistake (a broken image, say) may be one rank's alone: that rank speaks.
    """
    rank = int(os.environ.get("RANK", "0") or 0) if os.environ.get("RANK", "0").isdigit() else 0
    try:
        work = prepare(read_rank(os.environ))
    except (UsageError, ValueError) as error:
        return fail(error) if rank == 0 else 2
    try:
        return work()
    except ValueError as error:
        return fail(f"rank {rank}: {error}")
    except KeyboardInterrupt:
        return 130
    finally:
        sys.stdout.flush()
