"""Sleeps of a known length in a known phase of a known rank's steps, and what the report makes of them.

`python -m tests.injected` runs all 20 cases and prints a table, with `--urgent` at real-time priority, for a machine
that others use. What measuring costs: `python -m tests.marking_cost`.
"""

import argparse
import gc
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import step_blocks
from bench.cases.train_step import Options, StepCell
from bench.probe import averaging
from bench.record import read
from bench.summary import summarise
from ddp.context import DistContext
from tests.ranks import run_ranks

SLEEP_S, OTHER_WORK_S = 0.05, 0.02
PRIORITY = -10
"""Ranks sleep most of the time; what else the machine does is not to be measured here. Needs root, else it is left."""
TINY = """
from torch import nn

def linear(shape, classes):
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2] // 64, classes))

def convolution(shape, classes):
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(shape[0], 4, 3, stride=8), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, classes))
"""
"""Two models so small that they do not count."""
NAMES = {
    "data": ("data wait", "data wait"),
    "forward": ("forward", "forward"),
    "backward": ("backward", "backward"),
    "communication": ("exposed communication", "communication"),
    "optimizer": ("optimizer", "optimizer"),
}
"""Phase -> what the report calls it as a part of the step, and as what a late rank spends more in."""
KINDS = (("linear", 2), ("convolution", 3))


@dataclass(frozen=True)
class Injection:
    """A sleep in every step."""

    phase: str
    rank: int | None
    """None: on all ranks."""
    model: str
    ranks: int
    sleep_s: float = SLEEP_S


def inject(subject: Any, wanted: Injection, slept_s: list[float]) -> None:
    """Let the subject's steps sleep in one phase, if its rank is to, and note how long it really slept."""
    if wanted.phase == "communication":
        # Work for the blocks without communication: without a sleep, ranks would crowd the cores there and only there.
        subject.trainer.module.register_full_backward_pre_hook(lambda *ignored: time.sleep(OTHER_WORK_S))
    if wanted.rank not in (None, subject.ctx.rank):
        return

    def sleep(*ignored: Any) -> None:
        started = time.perf_counter()
        time.sleep(wanted.sleep_s)
        slept_s.append(time.perf_counter() - started)

    def slowly(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            sleep()
            yield batch

    def hook(group: Any, bucket: Any) -> Any:
        if bucket.is_last():
            sleep()
        return averaging(group, bucket)

    if wanted.phase == "data":
        subject.batches = slowly(subject.batches)
    elif wanted.phase == "forward":
        subject.trainer.module.register_forward_pre_hook(sleep)
    elif wanted.phase == "backward":
        subject.trainer.module.register_full_backward_pre_hook(sleep)
    elif wanted.phase == "communication":
        subject.probe.hook = hook
    else:
        subject.trainer.optimizer.register_step_pre_hook(sleep)


def come_first(urgent: bool) -> None:
    """Let this rank's threads, gloo's as well, wake up before other work; `urgent`: at once."""
    with suppress(PermissionError):
        for thread in map(int, os.listdir("/proc/self/task")):
            os.setpriority(os.PRIO_PROCESS, thread, PRIORITY)
            if urgent:
                os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(1))


def measured(
    wanted: Injection, out: Path, rounds: int, steps: int = 8, *, urgent: bool = False
) -> tuple[dict[str, str], float]:
    """Measure with the sleep -> what the report says (label of a fact -> the whole line), and ms slept per step.

    On a busy machine a sleep lasts longer than it should, so the truth is what its own clock saw.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "tiny.py").write_text(TINY)
    model = f"{out / 'tiny.py'}:{wanted.model}"
    options = Options(
        model=model, ranks=(wanted.ranks,), batch_size=(2,), rounds=rounds, block_s=steps * wanted.sleep_s,
        warmup_cap_steps=6, out=out,
    )  # fmt: skip
    cell = StepCell(model=model, ranks=wanted.ranks, batch_per_rank=2)

    def work(ctx: DistContext) -> list[float]:
        gc.freeze()  # the parent's objects, which each collection would copy page by page
        slept_s: list[float] = []
        come_first(urgent)
        plain = step_blocks.Subject

        class Injected(plain):  # type: ignore[misc, valid-type]
            def __init__(self, cell: StepCell, ctx: DistContext) -> None:
                super().__init__(cell, ctx)
                if cell.model == model:
                    inject(self, wanted, slept_s)

        step_blocks.Subject = Injected  # type: ignore[misc]  # in this rank's own process
        step_blocks.measure_steps(options, [cell], ctx, {"device": "cpu"})
        return slept_s

    slept_s = [median(times) for times in run_ranks(work, wanted.ranks, timeout_s=90) if times]
    return {fact.label: str(fact) for fact in summarise(*read(out)).facts}, 1e3 * median(slept_s)


def found(wanted: Injection, facts: dict[str, str]) -> tuple[str, int | None, float]:
    """(phase, rank, milliseconds) that the report names for a sleep on all ranks or on one."""
    if wanted.rank is None:
        match = re.search(r"largest part: (.+?), ([\d.]+) ms", facts["Step"])
        return (match[1], None, float(match[2])) if match else (facts["Step"], None, 0.0)
    match = re.search(r"rank (\d+) is late by ([\d.]+) ms per step \(.*in: (.+)\)", facts["Straggler"])
    return (match[3], int(match[1]), float(match[2])) if match else (facts["Straggler"], None, 0.0)


def is_right(wanted: Injection, seen: tuple[str, int | None, float], slept_ms: float) -> bool:
    """Whether phase and rank are named, and the amount is within 10 % of what was slept."""
    name = NAMES[wanted.phase][wanted.rank is not None]
    return seen[:2] == (name, wanted.rank) and abs(seen[2] - slept_ms) <= 0.1 * slept_ms


def all_cases(sleep_s: float) -> list[Injection]:
    """5 phases x all ranks or one x 2 models and numbers of ranks."""
    return [
        Injection(phase, rank, model, ranks, sleep_s)
        for model, ranks in KINDS
        for phase in NAMES
        for rank in (None, ranks - 1)
    ]


def run_all(sleep_s: float, *, urgent: bool) -> int:
    """Run all cases; 0 if the report is right in each."""
    right, cases = 0, all_cases(sleep_s)
    print(
        f"{'model':11} {'ranks':5} {'sleep in':14} {'on':8} {'slept ms':>8}  "
        f"{'report: phase':22} {'rank':5} {'ms':>6}  right"
    )
    for wanted in cases:
        with tempfile.TemporaryDirectory() as folder:
            facts, slept_ms = measured(wanted, Path(folder), rounds=5, steps=20, urgent=urgent)
        seen = found(wanted, facts)
        good = is_right(wanted, seen, slept_ms)
        right += good
        on = "all" if wanted.rank is None else f"rank {wanted.rank}"
        rank = "-" if seen[1] is None else str(seen[1])
        case = f"{wanted.model:11} {wanted.ranks:5} {wanted.phase:14} {on:8} {slept_ms:8.1f}"
        print(f"{case}  {seen[0]:22} {rank:5} {seen[2]:6.1f}  {'yes' if good else 'NO'}", flush=True)
    print(f"{right} of {len(cases)} right; 10 % allowed")
    return int(right < len(cases))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sleep-ms", type=float, default=100.0, help="long beside what an exchange takes by itself")
    parser.add_argument("--urgent", action="store_true")
    options = parser.parse_args()
    return run_all(options.sleep_ms / 1e3, urgent=options.urgent)


if __name__ == "__main__":
    sys.exit(main())
