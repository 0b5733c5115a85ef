"""Comparisons of two arms: what a record of them says."""

import math
from dataclasses import dataclass
from typing import Any

from bench import paired
from bench.guards import GPU_NAMES, contention, is_known
from bench.record import Record

CASE = "compare"


@dataclass(frozen=True, kw_only=True)
class Block:
    """One arm's steps between two changes of turn."""

    arm: str
    """A or B."""
    samples: int
    """Samples of all ranks in one step."""
    step_s: tuple[tuple[float, ...], ...]
    """Seconds of each step, per rank."""
    cpu_s: float
    """Processor time of the arm's ranks."""
    guards: dict[str, Any]
    """What the machine did meanwhile; empty if that is unknown."""
    gpus: tuple[dict[str, Any], ...] = ()
    """What each rank's GPU said afterwards, the other arms' processes left out; empty without GPUs."""

    @property
    def sample_s(self) -> float:
        """Seconds of a median step per sample, so that arms with other batches can be compared."""
        return paired.block_statistic_s(self.step_s) / self.samples

    @property
    def doubts(self) -> list[str]:
        """Why the block is to be doubted; empty if nothing speaks against it, or nothing is known."""
        return contention(self._told) if self.guards else []

    @property
    def is_watched(self) -> bool:
        """Whether anything is known of who else used the CPUs."""
        return bool(self.guards) and is_known(self._told)

    @property
    def _told(self) -> list[dict[str, Any]]:
        """As if each rank had watched its GPU, and the first one the CPUs for all."""
        ranks = [{"own_cpu_s": 0.0, "node": 0, **gpu} for gpu in self.gpus[1:]]
        return [{**self.guards, "own_cpu_s": self.cpu_s, "node": 0, **(self.gpus or ({},))[0]}, *ranks]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A record of `ringmark compare`, read."""

    names: tuple[str, str]
    """Arms A and B, as they were asked for."""
    margin: float
    blocks: tuple[Block, ...]
    ratios: tuple[float, ...]
    """ln(B / A) of each pair."""
    verdict: paired.Verdict

    def of(self, arm: str) -> tuple[Block, ...]:
        """The blocks of one arm."""
        return tuple(block for block in self.blocks if block.arm == arm)

    @property
    def contended(self) -> int:
        """Blocks during which others used the machine."""
        return sum(bool(block.doubts) for block in self.blocks)

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        found = self.verdict.interval
        if found is None:
            return f"{self.verdict.word}: {self.verdict.why}"
        ends = f"{_signed(found.low)} to {_signed(found.high)}"
        level = f"{100 * (1 - found.alpha):.4g} % interval {ends}, {found.count} pairs"
        why = f"; {self.verdict.why}" if self.verdict.why else ""
        return f"B is {self.verdict.word}: {_signed(found.mean)} time per sample ({level}){why}"


def _signed(log: float) -> str:
    return f"{100 * math.expm1(log):+.2f} %"


def read_blocks(raw: dict[str, Any]) -> tuple[Block, ...]:
    """A record's blocks. Raises KeyError, TypeError or ValueError if they are not as they should be."""
    found = tuple(
        Block(
            arm=str(block["arm"]),
            samples=int(block["samples"]),
            step_s=tuple(tuple(float(value) for value in steps) for steps in block["step_s"]),
            cpu_s=math.fsum(block["cpu_s"]),
            guards=dict(block.get("guards") or {}),
            gpus=tuple(_gpu(counters, raw.get("arms", 2)) for counters in block.get("gpus") or ()),
        )
        for block in raw["blocks"]
    )
    for block in found:
        counts = {len(steps) for steps in block.step_s}
        times = [value for steps in block.step_s for value in steps]
        if len(counts) != 1 or min(counts) < 2 or not all(math.isfinite(each) and each > 0 for each in times):
            raise ValueError("expected two positive, finite step times or more, equally many of each rank")
        if block.arm not in ("A", "B") or block.samples < 1:
            raise ValueError(f"expected arm A or B and samples, got {block.arm} and {block.samples}")
    return found


def _gpu(counters: dict[str, Any] | None, arms: int) -> dict[str, Any]:
    """Counters as guards name them, without the processes of the other arms, which wait on the same GPU."""
    found = {f"gpu_{name}": (counters or {}).get(name) for name in GPU_NAMES}
    others = found["gpu_other_processes"]
    return found | {"gpu_other_processes": None if others is None else max(0, int(others) - (arms - 1))}


def comparison(record: Record) -> Comparison:
    """What a record says. Raises KeyError, TypeError or ValueError if its numbers cannot be used."""
    blocks = read_blocks(record.raw)
    arms, cell = "".join(block.arm for block in blocks), record.cell
    if any({arms[place], arms[place + 1]} != {"A", "B"} for place in range(0, len(arms) - 1, 2)):
        raise ValueError(f"expected blocks in pairs of A and B, got {arms}")
    values = [block.sample_s for block in blocks]
    turns = int(cell.get("turns", 1))
    ratios = paired.grouped(paired.log_ratios(arms, values), turns)
    nulls = paired.grouped(paired.null_ratios(arms, values), max(1, turns // 2))
    margin = float(cell["margin_percent"]) / 100
    alpha = paired.alpha_at_each(int(cell["pairs"]), int(cell["max_pairs"]))
    return Comparison(
        names=(str(cell["a"]), str(cell["b"])),
        margin=margin,
        blocks=blocks,
        ratios=ratios,
        verdict=paired.judge(ratios, nulls, alpha, margin),
    )
