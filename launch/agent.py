"""torchrun, with its own flags and engine, but one line instead of a traceback when a worker fails.

`python -m launch.agent ARGS` does what `torchrun ARGS` does; its exit code is that of the worker that failed first.
"""

import logging
import signal
import sys


def main() -> int:
    """Run torchrun's engine on this process's arguments; returns the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it reports what is said below
    try:
        run(parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code != 2:  # a mistake in the command: the worker has said what is wrong
            cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            print(f"ringmark: rank {rank} ended first, {cause}; the others were stopped", file=sys.stderr)
        return 128 - code if code < 0 else code
    except (SignalException, KeyboardInterrupt) as stop:
        number = stop.sigval if isinstance(stop, SignalException) else signal.SIGINT
        return 128 + number
    return 0


if __name__ == "__main__":
    sys.exit(main())
