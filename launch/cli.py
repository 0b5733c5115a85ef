"""The command `ringmark`: a word to a function, nothing else."""

import os
import signal
import sys
from collections.abc import Callable, Sequence

from launch.guard import check_not_shadowed

USAGE = """usage: ringmark COMMAND [OPTIONS]

  on this machine
  train     train a model: prints the torchrun line, then runs it
  run       launch any torchrun script: `ringmark run --nproc-per-node 2 script.py ARGS`
  bench     measure: `ringmark bench scaling --model resnet18-cifar --ranks 1,2`
  sweep     measure every cell of a grid, and after any kill exactly the missing ones: `ringmark sweep grid.toml`
  compare   which of two is faster: `ringmark compare "--channels-last" "" -- --model resnet18-cifar`, or two commits
  batch-size  the largest batch per rank that fits: `ringmark batch-size --model resnet50 --ranks 8`
  demo      train and measure in a few minutes
  startup   how long ranks take to start, against torchrun and a bare import of torch
  doctor    check this machine, or all nodes of this job, before you train

  on a SLURM cluster
  submit    the same as a job: `ringmark submit --site NAME --nodes 2 -- train|bench|run ...`
  explain   what submit would do, without doing it
  status    where a run stands, or all runs: `ringmark status [RUN]`
  logs      what its ranks said: `ringmark logs -f RUN`, `--rank 3`, `--first-failed`
  cancel    save, stop and not go on: `ringmark cancel RUN`
  resubmit  go on with a run, without the nodes that failed: `ringmark resubmit --exclude-bad RUN`

  and besides
  report    write report.md, report.html and report.csv from a folder's records, and print it
  history   one trend per cell from the records of many runs: `ringmark history runs`
  gate      an exit code for CI: `ringmark gate runs/new --against runs/stored`
  gradcheck compare a model's gradients with finite differences
  judge     let a classifier of real images judge what a GAN makes
  list      what there is: models, data, tasks, cases, strategies, sites

`ringmark COMMAND --help` tells the options of a command. Inside a launch of your own:
  torchrun --nproc_per_node=2 -m launch.train --model resnet18-cifar --data imagefolder --data-dir DIR"""


def _train(argv: Sequence[str]) -> int:
    from launch.commands import train

    return train(argv)


def _run(argv: Sequence[str]) -> int:
    from launch.commands import run_script

    return run_script(argv)


def _bench(argv: Sequence[str]) -> int:
    from launch.benchmark import parse_case, run_case
    from launch.commands import show_report

    if argv[:1] == ["launch"]:
        return _startup(argv[1:])  # the one benchmark that launches others
    case, options = parse_case(argv, prog="ringmark bench")
    code = run_case(argv[0], case, options)
    return code if code in (2, 130) else show_report(options.out) or code


def _sweep(argv: Sequence[str]) -> int:
    from launch.grid_run import sweep

    return sweep(argv)


def _compare(argv: Sequence[str]) -> int:
    from launch.compare import compare

    return compare(argv)


def _batch_size(argv: Sequence[str]) -> int:
    from launch.batch_search import batch_size

    return batch_size(argv)


def _history(argv: Sequence[str]) -> int:
    from launch.history import history

    return history(argv)


def _gate(argv: Sequence[str]) -> int:
    from launch.gate import gate

    return gate(argv)


def _gradcheck(argv: Sequence[str]) -> int:
    from launch.gradcheck import gradcheck

    return gradcheck(argv)


def _judge(argv: Sequence[str]) -> int:
    from launch.judge import judge

    return judge(argv)


def _report(argv: Sequence[str]) -> int:
    from launch.commands import report

    return report(argv)


def _submit(argv: Sequence[str]) -> int:
    from launch.commands import submit

    return submit(argv)


def _startup(argv: Sequence[str]) -> int:
    from launch.startup import startup

    return startup(argv)


def _doctor(argv: Sequence[str]) -> int:
    from launch.doctor import doctor

    return doctor(argv)


def _explain(argv: Sequence[str]) -> int:
    from launch.commands import explain

    return explain(argv)


def _status(argv: Sequence[str]) -> int:
    from launch.status import status

    return status(argv)


def _logs(argv: Sequence[str]) -> int:
    from launch.logs import logs

    return logs(argv)


def _cancel(argv: Sequence[str]) -> int:
    from launch.cancel import cancel

    return cancel(argv)


def _resubmit(argv: Sequence[str]) -> int:
    from launch.resubmit import resubmit

    return resubmit(argv)


def _list(argv: Sequence[str]) -> int:
    from launch.commands import list_things

    return list_things(argv)


def _demo(argv: Sequence[str]) -> int:
    from launch.demo import demo

    return demo(argv)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    from launch.revision import revision

    found = []
    for name in ("ringmark", "torch", "torchvision"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    commit = revision()["commit"]
    return ", ".join([*found, f"Python {python_version()}", *([f"commit {commit}"] if commit else [])])


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "run": _run,
    "bench": _bench,
    "sweep": _sweep,
    "compare": _compare,
    "batch-size": _batch_size,
    "history": _history,
    "gate": _gate,
    "gradcheck": _gradcheck,
    "judge": _judge,
    "report": _report,
    "startup": _startup,
    "doctor": _doctor,
    "submit": _submit,
    "explain": _explain,
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "resubmit": _resubmit,
    "list": _list,
    "demo": _demo,
}


def run(argv: Sequence[str]) -> int:
    """Run one command -> its exit code."""
    from launch.argv import UsageError

    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(_version())
        return 0
    if argv[0] not in COMMANDS:
        raise UsageError(f"expected a command ({', '.join(COMMANDS)}), got {argv[0]!r}; see ringmark --help")
    return COMMANDS[argv[0]](argv[1:])


def console() -> int:
    """Entry of the console command: a person's mistake is one line and exit code 2."""
    from launch.argv import UsageError, fail

    try:
        check_not_shadowed()
        return run(sys.argv[1:])
    except (UsageError, ValueError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of head or less, which have seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None:
            raise
        what = f"expected to read or write {error.filename}, got: {error.strerror}"
        return fail(f"{what}; check the path, and who may use it")
