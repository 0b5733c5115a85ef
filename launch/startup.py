"""How long a launch takes until its ranks train: ours, torchrun's, and the bare import that cannot be beaten.

`ringmark startup [--ranks 2] [--rounds 10]` starts the same script by each of them in turn, so that drift of the
machine and of its load meets them alike, and compares them round by round.
"""

import contextlib
import importlib.util
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from ddp.mistake import require
from launch.argv import parse
from launch.processes import die_with, sweep
from launch.torchrun import BOOT, agent_command

OURS, TORCHRUN, BARE = "ringmark run", "torchrun", "import torch"
CASE = "launch"
SCRIPT = "first_step.py"
FIRST_STEP = """
import torch
import json, os, time

times_s = {"first line": time.monotonic()}
if "RANK" in os.environ:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    local_rank, local_ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= local_ranks
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    times_s["process group"] = time.monotonic()
    model = DistributedDataParallel(torch.nn.Linear(64, 64, device=device))
    times_s["wrapped model"] = time.monotonic()
    model(torch.ones(8, 64, device=device)).sum().backward()
    if on_gpu:
        torch.cuda.synchronize()
    times_s["first step"] = time.monotonic()
    dist.destroy_process_group()
with open(f"rank-{os.environ.get('RANK', 0)}.json", "w") as file:
    json.dump(times_s, file)
"""
"""What is launched: it notes how far it is, on the clock that all processes of a machine share."""
STAGES = "stages.json"
TIMEOUT_S = 120.0
"""Seconds that a launch may take."""
MOST_WORDS = 500
"""Characters of what a launcher that failed said in the end."""
GRACE_S = 10.0
"""Seconds that a launcher has to end its ranks when it is told to."""
MARK = "RINGMARK_STARTUP"
"""Variable that marks all processes of one launch, whatever sessions they are in; nothing reads its value."""


@dataclass(frozen=True, kw_only=True)
class StartupOptions:
    """Flags of `ringmark startup`."""

    ranks: int = 2
    """Ranks of each launch."""
    rounds: int = 10
    """Launches of each kind, all kinds in turn."""
    out: Path = Path("runs/startup")
    """Folder for records.jsonl and the report."""

    def __post_init__(self) -> None:
        require(self.ranks >= 1, "--ranks of at least 1", self.ranks, "such as 2")
        require(self.rounds >= 2, "--rounds of at least 2", self.rounds, "such as 10")


@dataclass(frozen=True, kw_only=True)
class Start:
    """One launch, timed. Seconds since it was asked for."""

    ranks_s: Mapping[str, float]
    """When the last rank was how far."""
    end_s: float
    """When the launcher had ended."""
    launcher_s: Mapping[str, float]
    """Of our own launcher: when it was how far."""


@dataclass
class Launches:
    """What is known of one launcher so far."""

    starts: list[Start] = field(default_factory=list)
    why: str | None = None
    """Why it is launched no more; None unless it failed."""


def commands(ranks: int) -> dict[str, list[str]]:
    """What is compared, by name: argv in a folder with the script."""
    count = str(ranks)
    found = {
        OURS: [sys.executable, "-P", str(BOOT), "startup", "--quiet", "--nproc-per-node", count, SCRIPT],
        # Standalone: on a port that is free, whatever else runs here.
        TORCHRUN: [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, SCRIPT],
        "ringmark run --plain": agent_command("--quiet", "--plain", "--nproc-per-node", count, SCRIPT),
        BARE: [sys.executable, SCRIPT],
    }
    # One rank is no group for accelerate: it refuses --multi_gpu, and without it the ranks would not meet.
    if ranks > 1 and importlib.util.find_spec("accelerate") is not None:
        flags = ["--multi_gpu", "--num_processes", count, "--num_machines", "1", "--mixed_precision", "no"]
        words = ["-m", "accelerate.commands.launch", *flags, "--dynamo_backend", "no", SCRIPT]
        found["accelerate launch"] = [sys.executable, *words]
    return found


def measure(command: Sequence[str], ranks: int, timeout_s: float = TIMEOUT_S) -> Start:
    """Launch once, in a folder of its own. Raises ValueError with what it said if it fails or takes too long."""
    with tempfile.TemporaryDirectory(prefix="ringmark-startup-") as name:
        folder = Path(name)
        (folder / SCRIPT).write_text(FIRST_STEP)
        began_s = time.monotonic()
        ended_s, code, said = _launch(command, folder, timeout_s)
        told = [json.loads(path.read_text()) for path in folder.glob("rank-*.json")]
        if code or len(told) != ranks:
            raise ValueError(
                f"expected {ranks} ranks to start, got {len(told)} by {shlex.join(command)}: {said[-500:]}"
            )
        stages = folder / STAGES
        own = json.loads(stages.read_text()) if stages.exists() else {}
        return Start(
            ranks_s={name: max(times_s[name] for times_s in told) - began_s for name in told[0]},
            end_s=ended_s - began_s,
            launcher_s={name: at_s - began_s for name, at_s in own.items()},
        )


def _launch(command: Sequence[str], folder: Path, timeout_s: float) -> tuple[float, int, str]:
    """Run a launcher to its end -> when that was, its exit code, and what it said. Nothing of it stays behind."""
    parent, token = os.getpid(), secrets.token_hex(8)
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", MARK: token},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=lambda: die_with(parent),
    ) as process:
        try:
            said = process.communicate(timeout=timeout_s)[1]
            return time.monotonic(), process.returncode, said
        except subprocess.TimeoutExpired:
            words = shlex.join(command)
            raise ValueError(f"expected the ranks to be done within {timeout_s:g} s, got none by {words}") from None
        finally:
            _end(process, f"{MARK}={token}")


def _end(process: subprocess.Popen[str], mark: str) -> None:
    """End a launcher that still runs, gently at first, and whatever it left, in sessions of its own as well."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    sweep((), {process.pid}, mark.encode(), ())


def rounds(options: StartupOptions, found: Mapping[str, Launches], tell: Callable[[str], None]) -> None:
    """Add launches by name, one of each in every round, each round beginning with another.

    A launcher that fails is launched no more: in later rounds its launches would stand beside those of other rounds.
    """
    kinds = commands(options.ranks)
    for number in range(options.rounds):
        names = list(kinds)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            launches = found[name]
            if launches.why is not None:
                continue
            try:
                launches.starts.append(measure(kinds[name], 1 if name == BARE else options.ranks))
            except (ValueError, OSError) as error:
                launches.why = f"launch {number + 1} of {options.rounds}: {error}"
                tell(f"{name}: {launches.why}")
        tell(f"round {number + 1} of {options.rounds}")


def store(found: Mapping[str, Launches], options: StartupOptions) -> None:
    """One record for each launcher that was launched; of one that failed with the reason, and its launches before."""
    from bench.environment import capture
    from bench.record import Record, append
    from ddp.context import pick_device, process_group
    from ddp.env import ALONE
    from launch.revision import revision

    with process_group(ALONE, device=pick_device("cpu", ALONE), timeout_s=TIMEOUT_S) as ctx:
        environment = capture(ctx) | revision()
    for name, launches in found.items():
        if not launches.starts and launches.why is None:
            continue  # stopped before its turn
        raw = {"starts": [asdict(start) for start in launches.starts]}
        cell = {"launcher": name, "ranks": 1 if name == BARE else options.ranks}
        status: Literal["ok", "failed"] = "ok" if launches.why is None else "failed"
        record = Record(case=CASE, cell=cell, status=status, error=launches.why, raw=raw, environment=environment)
        append(options.out, record)


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def startup(argv: Sequence[str]) -> int:
    """`ringmark startup`: measure, record and print -> 1 if a launcher failed. What was measured is always kept."""
    from launch.commands import show_report

    options = parse(StartupOptions, argv, prog="ringmark startup", description="Measure how fast ranks start here.")
    before = os.getloadavg()[0]
    found = {name: Launches() for name in commands(options.ranks)}
    handler = signal.signal(signal.SIGTERM, _stop)
    try:
        rounds(options, found, lambda text: print(f"ringmark: {text}", file=sys.stderr, flush=True))
    finally:
        signal.signal(signal.SIGTERM, handler)
        store(found, options)
    show_report(options.out)
    print(f"{len(os.sched_getaffinity(0))} CPUs, load {before:.1f} to {os.getloadavg()[0]:.1f}")
    return int(any(launches.why is not None for launches in found.values()))


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
