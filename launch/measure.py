"""Worker entry: `torchrun --nproc_per_node=2 -m launch.measure scaling --model ...` measures one benchmark's cells."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from launch.guard import refuse_foreign_packages

if TYPE_CHECKING:
    from ddp.env import RankInfo


def prepare(argv: Sequence[str], info: "RankInfo") -> Callable[[], int]:
    """Read and check the flags -> the work of this rank. Raises what `run_worker` tells a person."""
    from launch.argv import UsageError
    from launch.benchmark import parse_case, wanted_cells

    case, options = parse_case(argv, prog="launch.measure")
    needed = case.world_size(options)
    if info.world_size != needed:
        raise UsageError(
            f"expected {needed} ranks for these flags, got {info.world_size}; "
            f"start with torchrun --nproc_per_node={needed}"
        )

    def work() -> int:
        from bench.environment import capture
        from ddp.context import pick_device, process_group
        from launch.revision import revision

        with process_group(info, device=pick_device(options.device, info), timeout_s=options.timeout_s) as ctx:
            environment = capture(ctx) | revision()
            case.measure(options, wanted_cells(case, options), ctx, environment)
        return 0

    return work


def main() -> int:
    """Measure; returns the exit code."""
    from launch.worker import run_worker

    return run_worker(lambda info: prepare(sys.argv[1:], info))


if __name__ == "__main__":
    refuse_foreign_packages()
    from launch.worker import end_with

    end_with(main)
