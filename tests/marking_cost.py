"""What measuring costs: marked steps against bare ones. `python -m tests.marking_cost`.

Each launch has a marked trainer and two bare ones of the same model, which take turns in an order of chance, a few
steps at a time. Launches are the sample: equal trainers of one launch were seen to differ by up to 1 % of CPU time all
along. CPU time tells what wall time cannot where others use the machine too.
"""

import argparse
import gc
import math
import random
import sys
import time
from itertools import islice, repeat
from statistics import fmean, median

from bench import step_blocks
from bench.cases.train_step import StepCell
from bench.phases import STEP
from bench.stats import ratio_interval
from bench.train_blocks import Subject as BareSubject
from ddp.context import DistContext
from ddp.loop import train_steps
from tests.injected import come_first
from tests.ranks import run_ranks

MARKED, BARE, AGAIN = range(3)
WARMUP_ROUNDS = 10
BARE_RATE = 1e-3
"""Learning rate of bench.train_blocks."""
Turn = tuple[float, float]
"""Seconds of wall time of the slowest rank, and of CPU time of all ranks."""


def turns(ctx: DistContext, cell: StepCell, launch: int, rounds: int, steps: int) -> list[list[Turn]]:
    """Rounds of one turn of each trainer -> their times, by MARKED, BARE and AGAIN."""
    come_first(urgent=True)
    step_blocks.LEARNING_RATE = BARE_RATE  # weights that move and weights that stand still are not the same work
    chance = random.Random(launch)  # alike on all ranks
    subjects: dict[int, step_blocks.Subject | BareSubject] = {}
    for place in chance.sample(range(3), 3):
        subjects[place] = step_blocks.Subject(cell, ctx) if place == MARKED else BareSubject(cell, ctx, alone=False)
    gc.freeze()

    def timed(place: int) -> Turn:
        subject = subjects[place]
        ctx.barrier()
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        if isinstance(subject, BareSubject):
            train_steps(subject.trainer, repeat(subject.batch, steps), lambda batch, loss: None)
        else:
            mark = subject.probe.mark
            subject.probe.start()
            train_steps(
                subject.trainer, subject._marked(islice(subject.batches, steps)), lambda batch, loss: mark(STEP)
            )
        return time.perf_counter() - wall_s, time.process_time() - cpu_s

    rows = []
    for _ in range(WARMUP_ROUNDS + rounds):
        row = [(0.0, 0.0)] * 3
        for place in chance.sample(range(3), 3):
            told = ctx.gather(timed(place))
            row[place] = (max(wall_s for wall_s, _ in told), sum(cpu_s for _, cpu_s in told))
        rows.append(row)
    return rows[WARMUP_ROUNDS:]


def main() -> int:
    """Run all launches and print ratios with their 95 % intervals over launches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=150, help="of each launch")
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    options = parser.parse_args()
    cell = StepCell(model=options.model, ranks=options.ranks, batch_per_rank=options.batch_size)
    found: dict[str, list[float]] = {}
    step_s = []
    for launch in range(options.launches):

        def work(ctx: DistContext, launch: int = launch) -> list[list[Turn]]:
            return turns(ctx, cell, launch, options.rounds, options.steps)

        rows = run_ranks(work, options.ranks, timeout_s=500, group_timeout_s=120)[0]
        for which, what in enumerate(("wall time", "CPU time")):
            marked, bare, again = (
                fmean(math.log(row[place][which]) for row in rows) for place in (MARKED, BARE, AGAIN)
            )
            found.setdefault(f"{what}, marked / bare", []).append(math.exp(marked - (bare + again) / 2))
            found.setdefault(f"{what}, bare / bare", []).append(math.exp(again - bare))
        step_s.append(median(row[BARE][0] for row in rows) / options.steps)
        print(
            f"launch {launch + 1}: " + ", ".join(f"{name} {values[-1]:.4f}" for name, values in found.items()),
            flush=True,
        )
    for name, values in found.items():
        interval = ratio_interval(values)
        assert interval is not None, "expected two launches or more"
        print(
            f"{name}: {interval.mean:.4f} (95 %: {interval.low:.4f} to {interval.high:.4f}, {interval.count} launches)"
        )
    print(f"a bare step takes {1e3 * median(step_s):.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
