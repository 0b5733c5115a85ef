"""`ringmark compare A B -- OPTIONS`: two configurations or commits, alternated in blocks, until the verdict is certain.

Each arm is a launch of its own that lives through the whole comparison; one works while the other sleeps.
"""

import contextlib
import math
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean, median
from typing import Any

from bench import paired
from bench.compare import CASE, Comparison, comparison
from bench.guards import Watch, between
from bench.record import Record, append
from launch.argv import MISTAKE
from launch.arm import Arm, ArmLost
from launch.checkouts import checkouts
from launch.compare_argv import Asked, check, read, words_of
from launch.exit_codes import UNCERTAIN
from launch.torchrun import ROOT

SLOWER = 1
"""Exit code; 0 is for same and faster."""
LEAST_STEPS, ENOUGH_S = 20, 2.0
"""An arm has this many steps in a pair, or a block so many seconds."""
FEWEST_STEPS = 4
"""Steps of a block at least, however many turns a pair has: the first of them finds the other arm's data in caches."""
MOST_STEPS = 500
"""Steps of a block at most, so that records stay readable."""
ENDS = (signal.SIGTERM, signal.SIGHUP)
"""What ends a comparison as Ctrl-C does: a terminal that is closed, too."""


def steps_of_a_block(step_s: float, block_s: float, turns: int = 1) -> int:
    """Steps that fill a block: at least 20 in all turns of a pair, unless it takes two seconds."""
    steps = math.ceil(block_s / step_s)
    least = 2 if block_s >= ENOUGH_S else max(FEWEST_STEPS, math.ceil(LEAST_STEPS / turns))
    return max(least, min(MOST_STEPS, steps))


def alternate(asked: Asked, first: Arm, second: Arm, cell: dict[str, Any]) -> Record:
    """Let two arms take turns until the verdict is certain or the pairs are used up -> the record.

    Blocks of both have as many steps: the first ones of a turn are slower, and would be a smaller part of a longer
    block. With 7 steps and 4 of the same code, because one warm-up had been disturbed, it looked like 10 %.
    """
    import torch  # while the arms start, which takes longer

    options, watch = asked.options, Watch(torch.device("cpu"))
    arms = {"A": first, "B": second}
    medians_s = []
    for arm in arms.values():
        times = arm.ask(options.warmup_steps, options.timeout_s)["step_s"]
        slowest = [max(ranks) for ranks in zip(*times, strict=True)]
        medians_s.append(median(slowest[len(slowest) // 2 :]))  # the first ones are slower
    steps = steps_of_a_block(mean(medians_s), options.block_s, options.turns)
    blocks: list[dict[str, Any]] = []
    order = paired.order(options.max_pairs * options.turns, options.seed)
    raw: dict[str, Any] = {"parameters": [arm.parameters for arm in arms.values()], "steps": steps}
    raw |= {"environments": [arm.environment for arm in arms.values()], "blocks": blocks}
    raw["arms"] = 3 if options.self_test else 2  # all of them are there, and two take turns
    record = Record(case=CASE, cell=cell, status="ok", raw=raw, environment=first.environment)
    for look in paired.looks(options.pairs, options.max_pairs):
        for name in order[len(blocks) : 2 * look * options.turns]:
            before = watch.read()
            answer = arms[name].ask(steps, options.timeout_s)
            blocks.append({"arm": name, **answer, "guards": between(before, watch.read())})
        if comparison(record).verdict.word != "inconclusive":
            break
    return record


def cell_of(asked: Asked, arms: Sequence[str]) -> dict[str, Any]:
    """The whole configuration of a comparison."""
    options = {key: value for key, value in asdict(asked.options).items() if key not in ("out", "self_test")}
    common = shlex.join(asked.common)
    return {"a": arms[0], "b": arms[1], "commits": asked.commits, "common": common, "ranks": asked.ranks, **options}


def run(asked: Asked, kind: type[Arm] = Arm) -> list[Record]:
    """Measure what was asked for -> one record, or the self-test's before it. Raises ArmLost, after recording it."""
    found = []
    pairs = [(0, 0), (0, 1)] if asked.options.self_test else [(0, 1)]
    with contextlib.ExitStack() as open_arms:
        trees = open_arms.enter_context(checkouts(asked.arms)) if asked.commits else (ROOT, ROOT)

        def start(which: int) -> Arm:
            return open_arms.enter_context(kind(words_of(asked, asked.arms[which]), asked.ranks, trees[which]))

        arms = [start(which) for which in ((0, 0, 1) if asked.options.self_test else (0, 1))]  # all start at once
        for place, (a, b) in enumerate(pairs):
            cell = cell_of(asked, [asked.arms[a], asked.arms[b]])
            try:
                for arm in arms:
                    arm.ready(asked.options.timeout_s)
                record = alternate(asked, arms[0], arms[place + 1], cell)
            except ArmLost as error:
                if error.code != MISTAKE:
                    append(asked.options.out, Record(case=CASE, cell=cell, status="failed", error=str(error)))
                raise
            append(asked.options.out, record)
            found.append(record)
            if len(found) < len(pairs) and comparison(record).verdict.word != "same":
                break
    return found


def exit_code(asked: Asked, found: Sequence[Comparison]) -> int:
    """0 for same and faster, 1 for slower, 3 if nothing is certain or the self-test failed."""
    if asked.options.self_test and len(found) < 2:
        return UNCERTAIN
    return {"same": 0, "faster": 0, "slower": SLOWER}.get(found[-1].verdict.word, UNCERTAIN)


def compare(argv: Sequence[str]) -> int:
    """`ringmark compare` -> its exit code. Raises UsageError or ValueError for a person's mistake."""
    from launch.commands import show_report

    asked = read(argv)
    idle = check(asked)
    if idle:
        print(f"{', '.join(idle)}: without effect here, since both arms train on one batch that stays on the device")
    asked.options.out.mkdir(parents=True, exist_ok=True)
    before = {number: signal.getsignal(number) for number in ENDS}
    for number in ENDS:
        if before[number] is not signal.SIG_IGN:  # as behind nohup
            signal.signal(number, signal.default_int_handler)  # work trees and arms are to be put away
    try:
        found = [comparison(record) for record in run(asked)]
    except ArmLost as error:
        if error.code == MISTAKE:  # the arm itself has told
            return MISTAKE
        print(f"ringmark: {error}", file=sys.stderr)
        return UNCERTAIN  # 1 would say that B is slower
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    show_report(asked.options.out)
    if asked.options.self_test:
        print(f"A against itself: {found[0].sentence}")
        if len(found) < 2:
            print("abstained: the same options were not found to be the same, so B was not measured")
            return UNCERTAIN
    print(f"{found[-1].sentence}; load {os.getloadavg()[0]:.1f}")
    if found[-1].verdict.word == "inconclusive":
        shorter = " or shorter turns, --turns 64 --block-s 0.004," if asked.options.turns == 1 else ""
        print(f"to be sure: a quieter machine,{shorter} or more pairs, --max-pairs {2 * asked.options.max_pairs}")
    return exit_code(asked, found)
