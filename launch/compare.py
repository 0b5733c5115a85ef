"""`ringmark compare A B -- OPTIONS`: two configurations or commits, alternated in blocks, until the verdict is certain.

Each arm is a launch of its own that lives through the whole comparison; one works while the other sleeps.
"""

import contextlib
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import paired
from bench.compare import CASE, Comparison, comparison
from bench.guards import Watch, between
from bench.record import Record, append
from ddp.mistake import require
from launch.argv import MISTAKE, UsageError, parse
from launch.arm import Arm, ArmLost
from launch.torchrun import ROOT

SLOWER, INCONCLUSIVE = 1, 3
"""Exit codes; 0 is for same and faster."""
LEAST_STEPS, ENOUGH_S = 20, 2.0
"""An arm has this many steps in a pair, or a block so many seconds."""
FEWEST_STEPS = 4
"""Steps of a block at least, however many turns a pair has: the first of them finds the other arm's data in caches."""
MOST_STEPS = 500
"""Steps of a block at most, so that records stay readable."""
HELP = (
    'Compare two sets of training options, such as `ringmark compare "--channels-last" "" -- --model '
    "resnet18-cifar --ranks 2`, or two commits: `ringmark compare --commits main HEAD -- --model resnet18-cifar`. "
    "What follows -- is for both. Exit code 0: B is the same or faster; 1: slower; 3: inconclusive."
)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How long to compare, and how certainly."""

    pairs: int = 6
    """Pairs of blocks before the first look at the data; an even number, at least 6."""
    max_pairs: int = 64
    """Pairs at most; they are doubled until the verdict is certain."""
    turns: int = 1
    """Blocks of each arm in a pair, of which the median ratio counts. On a machine that others use, many turns of a few
    steps see through noise that long blocks drown in: try --turns 64 --block-s 0.004."""
    block_s: float = 2.0
    """Seconds, about, of one block; below 2 an arm has at least 20 steps in a pair."""
    margin_percent: float = 2.0
    """A difference below this does not matter."""
    warmup_steps: int = 10
    """Steps of each arm before the first block."""
    self_test: bool = False
    """First compare A with A, and abstain if that is not found to be the same."""
    seed: int = 0
    """Of the order of blocks."""
    out: Path = Path("runs/compare")
    """Folder for records.jsonl and the report."""
    timeout_s: float = 300.0
    """Seconds that an arm may take to start, and for one block."""

    def __post_init__(self) -> None:
        even = self.pairs % 2 == 0 and self.max_pairs % 2 == 0
        require(self.pairs >= 6 and even, "even numbers in --pairs and --max-pairs, of at least 6", self.pairs, "try 6")
        require(self.max_pairs >= self.pairs, "--max-pairs not below --pairs", self.max_pairs, "try 64")
        whole = self.turns == 1 or (self.turns > 0 and self.turns % 2 == 0)
        require(whole, "--turns of 1 or an even number", self.turns, "try 16")
        require(self.block_s > 0, "--block-s above 0", self.block_s, "give seconds, such as 2")
        require(0 < self.margin_percent < 50, "--margin-percent above 0 and below 50", self.margin_percent, "try 2")
        require(self.warmup_steps >= 3, "--warmup-steps of at least 3", self.warmup_steps, "try 10")
        require(self.timeout_s > 0, "--timeout-s above 0", self.timeout_s, "give seconds, such as 300")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The command line, read."""

    arms: tuple[str, str]
    """Options of A and B, or two commits."""
    commits: bool
    common: tuple[str, ...]
    """Options of both."""
    ranks: int
    options: CompareOptions


def read(argv: Sequence[str]) -> Asked:
    """The comparison that a command line asks for. Raises UsageError."""
    place = list(argv).index("--") if "--" in argv else len(argv)
    own, common = list(argv[:place]), list(argv[place + 1 :])
    commits = own[:1] == ["--commits"]
    arms = own[1:3] if commits else own[:2]
    asks_for_help = own[:1] in (["-h"], ["--help"])
    if len(arms) < 2 and not asks_for_help:
        raise UsageError(
            "expected two sets of options, or --commits and two commits, got "
            f'{len(arms)}; ringmark compare "--channels-last" "" -- --model resnet18-cifar'
        )
    rest = own if asks_for_help else own[3 if commits else 2 :]
    options = parse(CompareOptions, rest, prog="ringmark compare", description=HELP)
    ranks, common = _ranks(common)
    return Asked(arms=(arms[0], arms[1]), commits=commits, common=tuple(common), ranks=ranks, options=options)


def _ranks(words: Sequence[str]) -> tuple[int, list[str]]:
    """Take --ranks out of options: it is the launcher's, not the training's."""
    left: list[str] = []
    ranks, rest = "1", list(words)
    while rest:
        flag, equals, value = (word := rest.pop(0)).partition("=")
        if flag != "--ranks":
            left.append(word)
        else:
            ranks = value if equals else rest.pop(0) if rest else ""
    if not (ranks.isascii() and ranks.isdigit() and int(ranks) >= 1):
        raise UsageError(f"expected --ranks as a number of at least 1, got {ranks!r}; such as --ranks 2")
    return int(ranks), left


def _words(asked: Asked, arm: str) -> list[str]:
    if asked.commits:
        return list(asked.common)
    try:
        return [*asked.common, *shlex.split(arm)]
    except ValueError as error:
        raise UsageError(f"expected options as in a shell, got {arm!r}: {error}; close the quotes") from None


def check(asked: Asked) -> None:
    """Raise UsageError or ValueError for options that cannot be; those of other commits are checked by their code."""
    from ddp.config import TrainConfig
    from ddp.refusals import check_pairs
    from models import zoo

    if asked.commits:
        return
    for arm in asked.arms:
        config = parse(TrainConfig, _words(asked, arm), prog="ringmark compare", description=HELP)
        zoo.check_name(config.model)
        check_pairs(config, asked.ranks)
        config.global_batch(asked.ranks)


@contextlib.contextmanager
def _checkouts(asked: Asked) -> Iterator[tuple[Path, Path]]:
    """The folders whose code the arms run: this one, or a work tree of each commit, removed at the end."""
    if not asked.commits:
        yield ROOT, ROOT
        return
    hashes = [_git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") for name in asked.arms]
    for name, found in zip(asked.arms, hashes, strict=True):
        if found is None:
            raise UsageError(f"expected two commits of the repository of {ROOT.name}, got {name!r}; see git log")
    with tempfile.TemporaryDirectory(prefix="ringmark-commits-") as folder:
        trees = (Path(folder) / "A", Path(folder) / "B")
        try:
            for tree, found in zip(trees, hashes, strict=True):
                if _git("worktree", "add", "--detach", str(tree), str(found)) is None:
                    raise UsageError(f"expected git to check out {found}, got an error; see git worktree list")
            yield trees
        finally:
            for tree in trees:
                _git("worktree", "remove", "--force", str(tree))


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def steps_of_a_block(step_s: float, block_s: float, turns: int = 1) -> int:
    """Steps that fill a block: at least 20 in all turns of a pair, unless it takes two seconds."""
    steps = math.ceil(block_s / step_s)
    least = 2 if block_s >= ENOUGH_S else max(FEWEST_STEPS, math.ceil(LEAST_STEPS / turns))
    return max(least, min(MOST_STEPS, steps))


def alternate(asked: Asked, first: Arm, second: Arm, cell: dict[str, Any]) -> Record:
    """Let two arms take turns until the verdict is certain or the pairs are used up -> the record."""
    import torch  # while the arms start, which takes longer

    options, watch = asked.options, Watch(torch.device("cpu"))
    arms = {"A": first, "B": second}
    steps = {}
    for name, arm in arms.items():
        times = arm.ask(max(options.warmup_steps, LEAST_STEPS), options.timeout_s)["step_s"]
        step_s = median(max(ranks) for ranks in zip(*times, strict=True))
        steps[name] = steps_of_a_block(step_s, options.block_s, options.turns)
    blocks: list[dict[str, Any]] = []
    order = paired.order(options.max_pairs * options.turns, options.seed)
    raw: dict[str, Any] = {"parameters": [arm.parameters for arm in arms.values()], "steps": steps}
    raw |= {"environments": [arm.environment for arm in arms.values()], "blocks": blocks}
    record = Record(case=CASE, cell=cell, status="ok", raw=raw, environment=first.environment)
    for look in paired.looks(options.pairs, options.max_pairs):
        for name in order[len(blocks) : 2 * look * options.turns]:
            before = watch.read()
            answer = arms[name].ask(steps[name], options.timeout_s)
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
    with _checkouts(asked) as trees, contextlib.ExitStack() as open_arms:

        def start(which: int) -> Arm:
            return open_arms.enter_context(kind(_words(asked, asked.arms[which]), asked.ranks, trees[which]))

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
        return INCONCLUSIVE
    return {"same": 0, "faster": 0, "slower": SLOWER}.get(found[-1].verdict.word, INCONCLUSIVE)


def compare(argv: Sequence[str]) -> int:
    """`ringmark compare` -> its exit code. Raises UsageError or ValueError for a person's mistake."""
    from launch.commands import show_report

    asked = read(argv)
    check(asked)
    asked.options.out.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # work trees and arms are to be put away
    try:
        found = [comparison(record) for record in run(asked)]
    except ArmLost as error:
        if error.code == MISTAKE:  # the arm itself has told
            return MISTAKE
        print(f"ringmark: {error}", file=sys.stderr)
        return INCONCLUSIVE  # 1 would say that B is slower
    finally:
        signal.signal(signal.SIGTERM, before)
    show_report(asked.options.out)
    if asked.options.self_test:
        print(f"A against itself: {found[0].sentence}")
        if len(found) < 2:
            print("abstained: the same options were not found to be the same, so B was not measured")
            return INCONCLUSIVE
    print(f"{found[-1].sentence}; load {os.getloadavg()[0]:.1f}")
    return exit_code(asked, found)
