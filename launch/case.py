"""All that is known of the end of a launch, and what follows from it without judging."""

import signal
from dataclasses import dataclass
from functools import cached_property

from launch.events import NodeFacts, RankEnd, Stack
from launch.exit_codes import INTERRUPTED, STOPPED, TERMINATED
from launch.victims import is_victim


@dataclass(frozen=True, kw_only=True)
class Case:
    """All that is known of the end of a launch, and what follows from it at once."""

    ends: tuple[RankEnd, ...]
    nodes: tuple[NodeFacts, ...]
    started_s: float
    world_size: int | None
    """None if others watch the ranks of which nothing is said here."""

    @cached_property
    def unknown(self) -> tuple[int, ...]:
        """Ranks of whose end nothing is known."""
        return tuple(sorted(set(range(self.world_size or 0)) - {end.rank for end in self.ends}))

    @cached_property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that asked launchers to end, each once."""
        return tuple(dict.fromkeys(name for node in self.nodes for name in node.signals))

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """Where ranks stood before they were ended, of all nodes, by rank."""
        return tuple(sorted((one for node in self.nodes for one in node.stacks), key=lambda one: one.rank))

    @cached_property
    def stalled_s(self) -> float | None:
        """For how long nothing had moved when a launcher gave up; None if none did for that reason."""
        return max((node.stalled_s for node in self.nodes if node.stalled_s is not None), default=None)

    @cached_property
    def lost(self) -> tuple[NodeFacts, ...]:
        """Nodes whose launcher is gone."""
        return tuple(node for node in self.nodes if node.lost is not None)

    @cached_property
    def victims(self) -> tuple[RankEnd, ...]:
        """Ranks that only lost another, or waited for it in vain."""
        return tuple(end for end in self.ends if end.code != 0 and (_reacted(end) or self._aborted(end)))

    @cached_property
    def failures(self) -> tuple[RankEnd, ...]:
        """Ranks that failed by themselves, the earliest cause first, and 75 and 130 after all others."""
        gone_s = [end.time_s for end in self.ends if end.code != 0 and not self.was_asked(end)]
        first_s = min(gone_s, default=float("inf"))
        own = [end for end in self.ends if end.code != 0 and end not in self.victims and self._itself(end, first_s)]
        return tuple(sorted(own, key=lambda end: (end.code in (STOPPED, INTERRUPTED), cause_s(end), end.rank)))

    @cached_property
    def left(self) -> tuple[RankEnd, ...]:
        """Ranks that ended with 0 by themselves."""
        return tuple(end for end in self.ends if end.code == 0 and not end.asked)

    def was_asked(self, end: RankEnd) -> bool:
        """Whether a signal of the launcher, or of whoever ended the launcher, had reached a rank before it ended."""
        known = {getattr(signal, name, None) for name in self.signals}
        number = -end.code if end.code < 0 else end.code - 128
        return end.asked or number in known or (bool(self.signals) and end.code in (STOPPED, INTERRUPTED, TERMINATED))

    def _itself(self, end: RankEnd, first_s: float) -> bool:
        """Whether its end is its own: nobody had asked for it, or it had spoken before anybody could have."""
        if not self.was_asked(end):
            return True
        spoke = end.words is not None and end.words.type != "KeyboardInterrupt"
        return spoke and not self.signals and cause_s(end) <= first_s

    def _aborted(self, end: RankEnd) -> bool:
        """Whether NCCL's watchdog may have ended it from C++, without words, as it does when another rank is gone."""
        return end.code == -signal.SIGABRT and end.words is None and bool(self.lost or self.stalled_s)

    def kills(self, host: str) -> int:
        """Processes that the kernel killed for memory on a host, as far as is known."""
        return max((node.oom_kills or 0 for node in self.nodes if node.host == host), default=0)


def _reacted(end: RankEnd) -> bool:
    return end.words is not None and is_victim(end.words.type, end.words.message, end.words.traceback)


def cause_s(end: RankEnd) -> float:
    """When a rank's end was caused: when it spoke, which may be long before its process was gone."""
    return end.time_s if end.words is None else end.words.time_s
