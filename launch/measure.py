"""Worker entry: `torchrun --nproc_per_node=2 -m launch.measure scaling --model ...` measures one benchmark's cells."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from launch.guard import check_not_shadowed

if TYPE_CHECKING:
    from ddp.env import RankInfo


def prepare(argv: Sequence[str], info: "RankInfo") -> Callable[[], int]:
    """Read and check the flags -> the work of this rank. Raises UsageError or ValueError for a person's mistake."""
    from launch.benchmark import parse_case, wanted_cells

    case, options = parse_case(argv, prog="launch.measure")
    needed = case.world_size(options)
    if info.world_size != needed:
        raise ValueError(
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
    try:
        check_not_shadowed()
    except ValueError as error:
        print(f"ringmark: {error}", file=sys.stderr)
        return 2
    from launch.worker import run_worker

    return run_worker(lambda info: prepare(sys.argv[1:], info))


if __name__ == "__main__":
    sys.exit(main())
