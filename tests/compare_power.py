"""How often `ringmark compare` is wrong: `python -m tests.compare_power --aa 60 --injected 20`.

A/A: two launches of the same model must not be called faster or slower. Injected: one of them has 4 % more work in its
step, and must be called slower. The work is measured first, on this machine, with the comparison's own arms.
"""

import argparse
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.compare import comparison
from bench.record import Record
from launch.arm import Arm
from launch.compare import alternate, cell_of
from launch.compare_argv import read as read_argv
from launch.torchrun import ROOT
from tests.forked_arm import ForkedArm
from tests.spin import spinning


@dataclass
class Score:
    """Verdicts, interval widths in percent, durations and loads of one kind of comparison."""

    words: Counter[str] = field(default_factory=Counter)
    widths: list[float] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def run(first: str, second: str, seed: int, options: argparse.Namespace, *more: str) -> Record:
    """One comparison with processes of its own -> its record."""
    argv = [first, second, "--block-s", str(options.block_s), "--pairs", str(options.pairs), "--seed", str(seed)]
    argv += ["--max-pairs", str(options.max_pairs), "--turns", str(options.turns)]
    asked = read_argv([*argv, *more, "--", "--batch-size", "8", "--device", "cpu"])
    kind = Arm if options.launched else ForkedArm
    words = [[*asked.common, *arm.split()] for arm in asked.arms]
    with kind(words[0], 1, ROOT) as one, kind(words[1], 1, ROOT) as other:
        one.ready(300)
        other.ready(300)
        return alternate(asked, one, other, cell_of(asked, asked.arms))


def add(score: Score, record: Record, started: float) -> None:
    found = comparison(record).verdict
    score.words[found.word] += 1
    score.seconds.append(time.monotonic() - started)
    score.loads.append(os.getloadavg()[0])
    if found.interval is not None:
        score.widths.append(100 * found.interval.width)
        score.pairs.append(found.interval.count)
        score.ratios.append(100 * math.expm1(found.interval.mean))
    why = found.why and f" ({found.why})"
    print(
        f"{record.cell['seed']:5d} {found.word}{why}: {score.ratios[-1]:+.2f} %, width {score.widths[-1]:.2f} %, "
        f"{score.pairs[-1]} pairs, {score.seconds[-1]:.0f} s, load {score.loads[-1]:.1f}",
        flush=True,
    )


def more_work(folder: Path, options: argparse.Namespace) -> int:
    """Units that make a step 4 % longer than with `options.units`, from steps with none and with so many."""
    units = options.units
    found = comparison(run(spinning(folder, 0), spinning(folder, units), 0, options, "--max-pairs", str(options.pairs)))
    bare, whole = (median(block.sample_s for block in found.of(arm)) for arm in "AB")
    unit = (whole - bare) / units
    print(f"a step of no work {8e3 * bare:.2f} ms, of {units} units {8e3 * whole:.2f} ms")
    return units + max(1, round(options.injected_percent / 100 * whole / unit))


def tell(name: str, score: Score) -> None:
    if score.seconds:
        width = sorted(score.widths)
        print(
            f"{name}: {dict(score.words)}; interval width median {median(width):.2f} %, widest {width[-1]:.2f} %; "
            f"pairs median {median(score.pairs):.0f}; ratio {min(score.ratios):+.2f} to {max(score.ratios):+.2f} %; "
            f"{median(score.seconds):.0f} s each; load {min(score.loads):.1f} to {max(score.loads):.1f}",
            flush=True,
        )


def main() -> int:
    """Run and count; 1 if more than 5 % of either kind are wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aa", type=int, default=60)
    parser.add_argument("--injected", type=int, default=20)
    parser.add_argument("--injected-percent", type=float, default=4.0)
    parser.add_argument("--units", type=int, default=100)
    parser.add_argument("--block-s", type=float, default=0.004)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--turns", type=int, default=64)
    parser.add_argument("--max-pairs", type=int, default=16)
    parser.add_argument("--launched", action="store_true", help="launch every arm as the command does; much slower")
    parser.add_argument(
        "--below-load", type=float, default=1e9, help="wait for the load of a minute to fall below this"
    )
    parser.add_argument("--most-s", type=float, default=1e9, help="begin no comparison after so many seconds")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = str(ROOT)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = spinning(folder, options.units)
        slow = spinning(folder, more_work(folder, options))
        print(f"arms: {Path(plain).stem} and {Path(slow).stem}", flush=True)
        kinds = [0] * options.aa + [1] * options.injected
        scores = (Score(), Score())
        order = list(range(len(kinds)))
        random.Random(0).shuffle(order)  # both kinds all along, so that a busy hour meets both
        for seed in order:
            while os.getloadavg()[0] > options.below_load and time.monotonic() - begun < options.most_s:
                time.sleep(5)
            started = time.monotonic()
            if started - begun > options.most_s:
                break
            add(scores[kinds[seed]], run(plain, slow if kinds[seed] else plain, seed, options), started)
    tell("A/A", scores[0])
    tell(f"{options.injected_percent:+g} %", scores[1])
    wrong = scores[0].words["slower"] + scores[0].words["faster"]
    missed = len(scores[1].seconds) - scores[1].words["slower"]
    print(f"wrong A/A verdicts: {wrong} of {len(scores[0].seconds)}; injected found: "
          f"{scores[1].words['slower']} of {len(scores[1].seconds)}")  # fmt: skip
    return int(wrong > 0.05 * len(scores[0].seconds) or missed > 0.05 * len(scores[1].seconds))


if __name__ == "__main__":
    sys.exit(main())
