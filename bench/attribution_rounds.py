"""How sure the parts of a loss are: the same attribution of each round by itself."""

from collections.abc import Sequence
from math import comb

from bench.attribution import Attribution, attribute
from bench.phases import StepBlock
from bench.text import plural

ALPHA = 0.05


def rounds_of(base: Sequence[StepBlock], blocks: Sequence[StepBlock]) -> list[Attribution]:
    """What each round says alone, of those in which the base and N ranks were measured beside each other."""
    numbers = sorted({block.round for block in base} & {block.round for block in blocks})
    found = [
        attribute([one for one in base if one.round == number], [one for one in blocks if one.round == number])
        for number in numbers
    ]
    return [one for one in found if one is not None]


def interval_s(rounds: Sequence[Attribution], name: str) -> tuple[float, float] | None:
    """The 95 % interval of a part's median over rounds, in seconds per step; None below six rounds, which give none.

    From the k-th smallest to the k-th largest round, of whatever distribution: the median lies outside if fewer than k
    of n rounds fall on one side of it, and each does with probability 1/2 (Thompson 1936). One bad round of many moves
    it no further than to the next round.
    """
    found = sorted(part.seconds for one in rounds for part in one.parts if part.name == name)
    ranks_cut = [k for k in range(1, len(found) // 2 + 1) if 2 * _below(len(found), k) <= ALPHA]
    return (found[ranks_cut[-1] - 1], found[-ranks_cut[-1]]) if ranks_cut else None


def _below(count: int, k: int) -> float:
    """Probability that fewer than k of `count` tosses of a coin show heads."""
    return sum(comb(count, heads) for heads in range(k)) / 2.0**count


def agreement(whole: Attribution, rounds: Sequence[Attribution]) -> str:
    """In how many rounds the largest part is the one that is the largest over all."""
    same = sum(one.largest.name == whole.largest.name for one in rounds)
    return f"the largest in {same} of {plural(len(rounds), 'round')}"
