"""The command line of `ringmark compare`: what is to be compared, and whether it can be."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp.mistake import require
from launch.argv import UsageError, parse

if TYPE_CHECKING:
    from ddp.config import TrainConfig

HELP = (
    'Compare two sets of training options, such as `ringmark compare "--channels-last" "" -- --model '
    "resnet18-cifar --ranks 2`, or two commits: `ringmark compare --commits main HEAD -- --model resnet18-cifar`. "
    "What follows -- is for both. Exit code 0: B is the same or faster; 1: slower; 3: inconclusive."
)
UNUSED = (
    *("epochs", "eval_batch_size", "drop_last", "log_every", "out", "checkpoint_every", "keep", "stop_after", "resume"),
    *("patience", "min_delta", "check_every"),
)
UNUSED_OF_OPTIM = (
    *("lr", "lr_scaling", "lr_base_batch", "schedule", "warmup", "lr_step", "lr_milestones", "lr_gamma"),
)
"""Options of a training run that do not change its steps on one batch, or whose place a constant takes."""


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
    warmup_steps: int = 20
    """Steps of each arm before the first block; the length of a block is found from the later half of them."""
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
        require(self.warmup_steps >= 3, "--warmup-steps of at least 3", self.warmup_steps, "try 20")
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


def words_of(asked: Asked, arm: str) -> list[str]:
    """An arm's options. Raises UsageError for what no shell would take."""
    if asked.commits:
        return list(asked.common)
    try:
        return [*asked.common, *shlex.split(arm)]
    except ValueError as error:
        raise UsageError(f"expected options as in a shell, got {arm!r}: {error}; close the quotes") from None


def check(asked: Asked) -> list[str]:
    """Options of both arms that do nothing in a comparison, as flags.

    Raises UsageError or ValueError for options that cannot be; those of other commits are checked by their code.
    """
    from ddp.config import TrainConfig
    from ddp.refusals import check_pairs
    from models import zoo

    found = []
    for arm in asked.arms[: 1 if asked.commits else 2]:
        try:
            config = parse(TrainConfig, words_of(asked, arm), prog="ringmark compare", description=HELP)
        except (UsageError, ValueError):
            if asked.commits:  # an option that only those commits have
                return []
            raise
        found.append(_idle(config))
        if not asked.commits:
            zoo.check_name(config.model)
            check_pairs(config, asked.ranks)
            config.global_batch(asked.ranks)
    apart = sorted(flag for flag in found[0] if any(found[0][flag] != each[flag] for each in found))
    if apart:
        raise UsageError(
            f"expected arms that differ in their training steps, got {', '.join(apart)}, which change nothing in them: "
            "a comparison trains on one batch that stays on the device; for the input see ringmark bench loader"
        )
    usual = _idle(TrainConfig())
    return sorted(flag for flag in usual if found[0][flag] != usual[flag])


def _idle(config: "TrainConfig") -> dict[str, Any]:
    """Flag -> value, of the options that a block of steps on one resident batch does not depend on."""
    chosen = {name: getattr(config, name) for name in UNUSED}
    chosen |= asdict(config.input) | asdict(config.augment)
    chosen |= {name: getattr(config.optim, name) for name in UNUSED_OF_OPTIM}
    chosen |= {name: value for name, value in asdict(config.initial).items() if name != "freeze"}
    return {f"--{name.replace('_', '-')}": value for name, value in chosen.items()}
