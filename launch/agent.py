"""torchrun, with its own flags and engine, but one line instead of a traceback when a worker fails.

`python -m launch.agent ARGS` does what `torchrun ARGS` does, with two differences: its exit code is that of the worker
that failed first, and signals that ask for an end are passed on to the workers, which then stop in their own time.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TOLD_BY_WORKERS = (2, 5, 75, 130)
"""Exit codes of which the workers themselves have said what they mean."""


def _children() -> list[int]:
    """Process ids of this process's own children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(stat.parent.name))
    return found


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Give a signal to the workers, which agree on a step to stop after; torchrun would give them 30 seconds."""
    children = _children()
    if not children:  # still importing: nobody else could obey
        os._exit(128 + number)
    for child in children:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            continue


def main() -> int:
    """Run torchrun's engine on this process's arguments; returns the exit code."""
    for number in PASSED_ON:
        signal.signal(number, _pass_on)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it reports what is said below
    options = parse_args(sys.argv[1:])
    options.signals_to_handle = "SIGHUP,SIGQUIT"  # the others are ours
    try:
        run(options)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code not in TOLD_BY_WORKERS:
            cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            print(f"ringmark: rank {rank} ended first, {cause}; the others were stopped", file=sys.stderr)
        return 128 - code if code < 0 else code
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
