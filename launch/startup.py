"""How long a launch takes until its ranks run a person's code: ours, torchrun's, and what cannot be beaten.

`ringmark startup [--ranks 2] [--rounds 10]` starts the same script by each of them in turn, so that drift of the
machine and of its load meets them alike, and compares them round by round.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ddp.mistake import require
from launch.argv import parse
from launch.torchrun import BOOT, agent_command

OURS, TORCHRUN, BARE = "ringmark run", "torchrun", "import torch"
SCRIPT = "first_line.py"
FIRST_LINE = """
import torch
import os, time
with open(f"rank-{os.environ.get('RANK', 0)}.txt", "w") as file:
    file.write(repr(time.monotonic()))
"""
"""What is launched: the moment at which it can do anything, on the clock that all processes of a machine share."""
STAGES = "stages.json"
TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class StartupOptions:
    """Flags of `ringmark startup`."""

    ranks: int = 2
    """Ranks of each launch."""
    rounds: int = 10
    """Launches of each kind, all kinds in turn."""

    def __post_init__(self) -> None:
        require(self.ranks >= 1, "--ranks of at least 1", self.ranks, "such as 2")
        require(self.rounds >= 2, "--rounds of at least 2", self.rounds, "such as 10")


@dataclass(frozen=True, kw_only=True)
class Start:
    """One launch, timed. Seconds since it was asked for."""

    first_line_s: float
    """When the last rank had imported torch."""
    end_s: float
    """When the launcher had ended."""
    stages_s: Mapping[str, float]
    """Of our own launcher: when it was how far."""


def commands(ranks: int) -> dict[str, list[str]]:
    """What is compared, by name: argv in a folder with the script."""
    count = str(ranks)
    found = {
        OURS: [sys.executable, "-P", str(BOOT), "startup", "--quiet", "--nproc-per-node", count, SCRIPT],
        TORCHRUN: [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", count, SCRIPT],
        "ringmark run --plain": agent_command("--quiet", "--plain", "--nproc-per-node", count, SCRIPT),
        BARE: [sys.executable, SCRIPT],
    }
    if importlib.util.find_spec("accelerate") is not None:
        flags = ["--multi_gpu", "--num_processes", count, "--num_machines", "1", "--mixed_precision", "no"]
        words = ["-m", "accelerate.commands.launch", *flags, "--dynamo_backend", "no", SCRIPT]
        found["accelerate launch"] = [sys.executable, *words]
    return found


def measure(command: Sequence[str], ranks: int) -> Start:
    """Launch once, in a folder of its own. Raises ValueError with what it said if it fails."""
    with tempfile.TemporaryDirectory(prefix="ringmark-startup-") as name:
        folder = Path(name)
        (folder / SCRIPT).write_text(FIRST_LINE)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        began_s = time.monotonic()
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        ended_s = time.monotonic()
        lines = [float(path.read_text()) for path in folder.glob("rank-*.txt")]
        if done.returncode or len(lines) != ranks:
            raise ValueError(f"expected {ranks} ranks to start, got {len(lines)} by {command}: {done.stderr[-500:]}")
        stages = folder / STAGES
        found = json.loads(stages.read_text()) if stages.exists() else {}
        return Start(
            first_line_s=max(lines) - began_s,
            end_s=ended_s - began_s,
            stages_s={each: at_s - began_s for each, at_s in found.items()},
        )


def rounds(options: StartupOptions, tell: Callable[[str], None]) -> dict[str, list[Start]]:
    """Launches by name, one of each in every round, each round beginning with another."""
    kinds = commands(options.ranks)
    found: dict[str, list[Start]] = {name: [] for name in kinds}
    for number in range(options.rounds):
        names = list(kinds)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(measure(kinds[name], 1 if name == BARE else options.ranks))
        tell(f"round {number + 1} of {options.rounds}")
    return found


def table(found: Mapping[str, Sequence[Start]]) -> list[str]:
    """Medians, and ratios of ours to the others, each as the mean over rounds with its 95 % interval."""
    from bench.stats import ratio_interval

    ours = found[OURS]
    lines = [f"{'':22}first line    end      first line of ringmark run / this one"]
    for name, starts in found.items():
        first_s, end_s = (statistics.median(values) for values in zip(*map(_times_s, starts), strict=True))
        ratios = [one.first_line_s / other.first_line_s for one, other in zip(ours, starts, strict=True)]
        interval = ratio_interval(ratios)
        assert interval is not None
        shown = "" if name == OURS else f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
        lines.append(f"{name:22}{first_s:7.2f} s {end_s:7.2f} s    {shown}".rstrip())
    stages = {name: statistics.median(each.stages_s[name] for each in ours) for name in ours[0].stages_s}
    shown = ", ".join(f"{name} {at_s:.2f} s" for name, at_s in sorted(stages.items(), key=lambda item: item[1]))
    return [*lines, f"stages of {OURS}: {shown}"]


def _times_s(start: Start) -> tuple[float, float]:
    return start.first_line_s, start.end_s


def startup(argv: Sequence[str]) -> int:
    """`ringmark startup`: measure and print."""
    options = parse(StartupOptions, argv, prog="ringmark startup", description="Measure how fast ranks start here.")
    before = os.getloadavg()[0]
    found = rounds(options, lambda text: print(f"ringmark: {text}", file=sys.stderr, flush=True))
    cpus, after = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{options.ranks} ranks, {options.rounds} rounds in turn; {cpus} CPUs, load {before:.1f} to {after:.1f}")
    print("\n".join(table(found)))
    return 0


def entry() -> NoReturn:
    """Our launcher, which notes when it is how far, in a file of the folder that it runs in."""
    from launch import agent
    from launch.nursery import Nursery

    stages_s = {"python": time.monotonic()}

    def note(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*words: Any, **options: Any) -> Any:
            result = work(*words, **options)
            stages_s[name] = time.monotonic()
            return result

        return noted

    class Noted(agent.Launcher):
        def _fork_nursery(self) -> Nursery:
            stages_s["guardian"] = time.monotonic()
            nursery = super()._fork_nursery()
            stages_s["import"] = time.monotonic()
            return nursery

        def run(self) -> Any:
            from launch import engine
            from launch.witness import Witness

            engine.settle_nursery = note("nursery", engine.settle_nursery)
            Witness.wait_born = note("born", Witness.wait_born)  # type: ignore[method-assign]
            outcome = super().run()
            stages_s["ranks ended"] = time.monotonic()
            Path(STAGES).write_text(json.dumps(stages_s))
            return outcome

    agent.Launcher = Noted  # type: ignore[misc]
    agent.entry()
