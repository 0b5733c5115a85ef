"""The commands behind `ringmark` that are short enough to stand together."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from ddp.config import TrainConfig
from ddp.mistake import require
from launch.argv import UsageError, parse, to_argv


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Processes on this machine."""

    nproc_per_node: int = 1
    """Ranks to start, one per GPU where there are GPUs."""
    max_restarts: int = 0
    """How often all ranks may start again after a failure; they go on from the last checkpoint, if there is --out."""
    hang_timeout: float | None = None
    """Seconds without progress after which every rank's stack is shown and the launch ends; by default never."""

    def __post_init__(self) -> None:
        require(self.nproc_per_node >= 1, "--nproc-per-node of at least 1", self.nproc_per_node, "such as 2")
        require(self.max_restarts >= 0, "--max-restarts of at least 0", self.max_restarts, "such as 3")
        hang = self.hang_timeout
        require(hang is None or hang > 0, "--hang-timeout in seconds above 0", hang, "such as 300")

    def ours(self, out: Path | None) -> tuple[str, ...]:
        """Options of the launcher that torchrun does not have."""
        hang = () if self.hang_timeout is None else ("--hang-timeout", str(self.hang_timeout))
        return (*hang, *(() if out is None else ("--verdict-dir", str(out))))


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Flags of `ringmark train`."""

    launch: LaunchOptions = field(default_factory=LaunchOptions)
    train: TrainConfig = field(default_factory=TrainConfig)


def train(argv: Sequence[str]) -> int:
    """Check everything that can be checked here, print the torchrun line, and become it."""
    from launch.preflight import check_training
    from launch.spawn import STRATEGY
    from launch.torchrun import Launch, replace_this_process

    command = parse(TrainCommand, argv, prog="ringmark train", description="Train one model on this machine.")
    config, ranks = command.train, command.launch.nproc_per_node
    spawns = config.strategy == STRATEGY
    if spawns:
        config = replace(config, parallel=replace(config.parallel, spawn_ranks=config.parallel.spawn_ranks or ranks))
        ranks = config.parallel.spawn_ranks or ranks
    check_training(config, ranks)
    launch = Launch(
        nproc_per_node=ranks,
        module="launch.train",
        argv=tuple(to_argv(config)),
        max_restarts=command.launch.max_restarts,
        ours=command.launch.ours(config.out),
        spawns=spawns,
    )
    print(launch.shown(), flush=True)
    replace_this_process(launch)


RUN_HELP = """usage: ringmark run [OPTIONS] SCRIPT [ARGUMENTS]

Launches any script that torchrun launches. Everything behind the script is the script's. Options of ringmark:
  -j NODESxRANKS      topology in a word: 4 or 2x4, for --nnodes and --nproc-per-node
  --run-dir DIR       keep a log of each rank and verdict.json there
  --hang-timeout S    after S seconds without progress show every rank's stack, name the odd one, end with code 6;
                      more than the longest evaluation or save takes
  --preload M,M       modules besides torch to import once for all ranks
  --plain             import torch in every rank, as torchrun does
  --no-pin            let ranks run on all CPUs
  --quiet             say nothing unless a rank fails
and of torchrun:
"""


def run_script(argv: Sequence[str]) -> NoReturn:
    """Become the launcher of a script of the user's, in the environment as it is."""
    from launch.torchrun import agent_command
    from launch.torchrun_argv import split

    if "help" in split(argv).given:
        print(RUN_HELP, flush=True)
    command = agent_command(*argv)
    os.execv(command[0], command)


def show_report(folder: Path) -> int:
    """Write a folder's reports, print them, and say where they are."""
    from rich.console import Console

    from bench.report import terminal, write_report

    summary = write_report(folder)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(terminal(summary))
    print(f"report: {folder / 'report.html'}")
    return 0


def report(argv: Sequence[str]) -> int:
    """`ringmark report DIR`."""
    folders = [word for word in argv if not word.startswith("-")]
    if len(folders) != 1 or len(argv) != 1:
        raise UsageError(f"expected one folder with records, got {len(argv)} arguments; ringmark report runs/demo")
    return show_report(Path(folders[0]))


def _worker(words: Sequence[str], ranks: int) -> tuple[str, ...]:
    """The worker module and its flags behind `train ...` or `bench CASE ...`, checked for that many ranks."""
    from launch.benchmark import parse_case
    from launch.preflight import check_training
    from launch.spawn import STRATEGY

    if words and words[0] == "train":
        config = parse(TrainConfig, words[1:], prog="ringmark submit ... -- train", description="Train one model.")
        require(
            config.strategy != STRATEGY, "a strategy for torchrun's ranks", f"--strategy {STRATEGY}", "use ddp in a job"
        )
        check_training(config, ranks)
        return ("launch.train", *to_argv(config))
    if words and words[0] == "bench":
        case, options = parse_case(words[1:], prog="ringmark submit ... -- bench")
        needed = case.world_size(options)
        require(needed == ranks, f"as many ranks as the benchmark's {needed}", ranks, "change --ranks or --nodes")
        return ("launch.measure", words[1], *to_argv(options))
    got = " ".join(words) or "nothing"
    raise UsageError(
        f"expected train, bench or run after --, got {got}; ringmark submit --site NAME -- train --model ..."
    )


def submit(argv: Sequence[str]) -> int:
    """`ringmark submit OPTIONS -- train|bench|run ...`: check the command here, then hand it to SLURM."""
    from launch.submit import submit as submit_job

    return submit_job(argv, _worker)


def explain(argv: Sequence[str]) -> int:
    """`ringmark explain OPTIONS -- train|bench|run ...`: show what submit would do, and do nothing."""
    from launch.explain import explain as explain_job

    return explain_job(argv, _worker)


def list_things(argv: Sequence[str]) -> int:
    """`ringmark list models|data|tasks|cases|strategies|sites`."""
    from ddp import discover
    from launch.sites import site_names
    from models import zoo

    listings = {
        "models": lambda: [*zoo.own_names(), *zoo.torchvision_names()],
        "data": lambda: discover.names("ddp.datasets"),
        "tasks": lambda: discover.names("ddp.tasks"),
        "cases": lambda: discover.names("bench.cases"),
        "strategies": lambda: discover.names("ddp.strategies"),
        "sites": site_names,
    }
    if len(argv) != 1 or argv[0] not in listings:
        got = " ".join(argv) or "nothing"
        raise UsageError(f"expected one of {', '.join(listings)}, got {got}; ringmark list models")
    print("\n".join(listings[argv[0]]()))
    return 0
