"""`ringmark gate RECORDS --against RECORDS`: an exit code for CI from new records and stored ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gate import CellGate, Gate, decide
from bench.record import read
from bench.text import clean, plural, value_text
from ddp.mistake import require
from launch.argv import UsageError, parse
from launch.exit_codes import DONE, FAILED, UNCERTAIN

CODES = {"ok": DONE, "slower": FAILED, "inconclusive": UNCERTAIN}
HELP = (
    "Compare a folder's records with stored ones of the same machine class (CPU model, cores, GPU, torch). "
    "Gated is what has timed blocks of samples: training steps, forward passes, input pipelines; the rest is named. "
    "Exit code 0: no cell is slower; 1: one is; 3: abstained, since the machines differ or the noise is too large."
)


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """What to compare with."""

    against: Path
    """Folder with the stored records."""
    margin_percent: float = 5.0
    """A cell may be slower by this much; more than in a comparison, since the sides were measured on different days."""

    def __post_init__(self) -> None:
        require(0 < self.margin_percent < 100, "--margin-percent above 0 and below 100", self.margin_percent, "try 5")


def gate(argv: Sequence[str]) -> int:
    """`ringmark gate` -> its exit code. Raises UsageError or ValueError for a person's mistake."""
    asks_for_help = any(word in ("-h", "--help") for word in argv)
    if not asks_for_help and (not argv or argv[0].startswith("-")):
        raise UsageError("expected a folder with new records first, got none; ringmark gate runs/new --against DIR")
    rest = list(argv) if asks_for_help else list(argv[1:])
    options = parse(GateOptions, rest, prog="ringmark gate RECORDS", description=HELP)
    (now, complaints), (then, more) = read(Path(argv[0])), read(options.against)
    found = decide(now, then, options.margin_percent / 100)
    for line in lines(found, options.margin_percent):
        print(clean(line))
    for complaint in [*complaints, *more]:
        print(clean(complaint))
    return CODES[found.word]


def lines(found: Gate, margin_percent: float) -> list[str]:
    """The gate's words: the verdict, its cells, what is not gated, and which records were left out."""
    if found.why_not:
        words = [f"gate: abstained, {found.why_not}"]
    else:
        counts = {word: sum(each.word == word for each in found.cells) for word in CODES}
        amounts = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        words = [f"gate: {found.word} (margin {margin_percent:g} %; {amounts})", *(_line(each) for each in found.cells)]
    if found.ungated:
        amounts = ", ".join(f"{plural(count, 'record')} of {name}" for name, count in found.ungated.items())
        words.append(f"not gated: {amounts}")
    return [*words, *found.remarks]


def _line(each: CellGate) -> str:
    said = {key: value for key, value in each.cell.items() if value is not None and value is not False}
    text = f"{each.word}: {each.case}: {', '.join(f'{key} {value_text(value)}' for key, value in said.items())}"
    if each.interval is not None:
        low, mean, high = (100 * math.expm1(log) for log in (each.interval.low, each.interval.mean, each.interval.high))
        text += f": time {mean:+.1f} % (95 % interval {low:+.1f} to {high:+.1f} %)"
    return text + (f"; {each.why}" if each.why else "")
