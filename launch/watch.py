"""What a launcher sees of its rounds: who stands where, who ended, and the facts for the verdict."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.events import Collective, LastWords, NodeFacts, RankEnd, Stack
from launch.recorder import ask
from launch.stacks import RankHandle, collect
from launch.watchdog import Watchdog
from launch.witness import Life, Witness

FRAME = re.compile(r'\s*File "(.*)", line (\d+), in (.*)')


def frames_of(words: LastWords) -> tuple[str, ...]:
    """Where an exception was raised, innermost first, as stacks are written."""
    matches = [match for line in words.traceback if (match := FRAME.match(line))]
    return tuple(f"{match[3]} ({match[1]}:{match[2]})" for match in reversed(matches))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one node knows when its launch has ended."""

    ends: tuple[RankEnd, ...]
    facts: NodeFacts


@dataclass(kw_only=True)
class Watch:
    """Follows the rounds of one launch on one node."""

    witness: Witness
    host: str
    hang_timeout_s: float | None
    logs: Path | None
    """Folder of the ranks' logs."""
    session: Callable[[int], None]
    """Called with the process id of each new rank, which leads a session of its own."""
    failed: Callable[[Outcome], None] = lambda outcome: None
    """Called with a round that failed and is followed by another."""
    ended: bool = False
    """Whether the launch was told from outside to end this round."""
    rounds: int = 0
    stacks: tuple[Stack, ...] = ()
    collectives: tuple[Collective, ...] = ()
    stalled_s: float | None = None
    _handles: tuple[RankHandle, ...] = ()
    _watchdog: Watchdog | None = None
    lives: Mapping[int, Life] = field(default_factory=dict)

    def begin(self) -> None:
        """Before a round: the one before it failed, if there was one."""
        if self.rounds:
            self.failed(self.outcome())
        self.rounds += 1
        self.stacks, self.collectives, self.stalled_s, self.ended = (), (), None, False
        self.witness.new_round()

    def running(self, lives: Mapping[int, Life]) -> None:
        """The ranks of a round were started."""
        self.lives = lives
        born = [life for life in lives.values() if life.pid]
        self._handles = tuple(
            RankHandle(rank=life.rank, host=self.host, pid=life.pid, stack_file=life.stack_file)
            for life in born
            if life.stack_file is not None
        )
        for life in born:
            self.session(life.pid)
        if self.hang_timeout_s is not None and self._handles:
            self._watchdog = Watchdog(self._handles, timeout_s=self.hang_timeout_s, logs=self.logs, on_hang=self._hang)
            self.witness.on_step = self._watchdog.progress
            self._watchdog.start()

    def over(self) -> None:
        """The ranks of a round are ended, or about to be."""
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None

    def hung(self) -> bool:
        """Whether nothing has moved for too long."""
        return self.stalled_s is not None

    def look(self) -> None:
        """See where every rank stands, while it still does."""
        if self.stacks:
            return
        found = collect([handle for handle in self._handles if self._runs(handle.rank)])
        said = {life.rank: life.words for life in self.lives.values() if life.words is not None}
        self.stacks = tuple(
            # It waits to be ended; where it failed is what counts.
            replace(stack, frames=frames_of(words)) if (words := said.get(stack.rank)) else stack
            for stack in found
        )

    def _runs(self, rank: int) -> bool:
        return any(life.rank == rank and life.end is None for life in self.lives.values())

    def _hang(self, stacks: tuple[Stack, ...], stalled_s: float) -> None:
        self.collectives = ask(handle.stack_file for handle in self._handles)
        self.stacks, self.stalled_s = stacks, stalled_s

    def outcome(self, node_rank: int = 0, oom_kills: int | None = None, signals: tuple[str, ...] = ()) -> Outcome:
        """The facts of the round that was the last so far."""
        return Outcome(
            ends=tuple(self.witness.ended()),
            facts=NodeFacts(
                host=self.host,
                node_rank=node_rank,
                oom_kills=oom_kills,
                stacks=self.stacks,
                collectives=self.collectives,
                stalled_s=self.stalled_s,
                signals=signals,
                lost=self.witness.lost,
            ),
        )
