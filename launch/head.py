"""The head of a launch on several nodes: hears all launchers, ends all when one fails, and judges once.

Runs in the batch process of a job, which outlives the step whose launchers it hears.
"""

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.events import NodeFacts, RankEnd, node_facts, rank_end
from launch.hub import Hub
from launch.joining import HEAD

Told = tuple[tuple[RankEnd, ...], NodeFacts]
LAST_WORD_S = 90.0
"""How long launchers that were told to end may take; their ranks have 30 s, and then are killed."""


@dataclass
class Node:
    """What the head knows of one member."""

    host: str
    joined: bool = False
    outcome: bool = False
    """Whether it has told all it knows."""
    ends: dict[int, RankEnd] = field(default_factory=dict)
    facts: NodeFacts | None = None


class Head:
    """Collects what the members of one attempt tell; `hub` speaks to them."""

    def __init__(self, members: Sequence[str], hosts: Sequence[str]) -> None:
        self.nodes = {member: Node(host) for member, host in zip(members, hosts, strict=True)}
        self.events: queue.SimpleQueue[tuple[str, str, Any]] = queue.SimpleQueue()
        self.plan: dict[str, Any] | None = None
        """Who is where, once all have joined."""
        self.refusal: str | None = None
        """Why they could not meet."""
        self.stop: str | None = None
        """Why the ranks are to save and stop."""
        self.on_round: Callable[[int, Sequence[Told]], None] = lambda restart, told: None
        """Called with the number of a restart, and what all nodes know of the round before it."""
        self._rounds: dict[int, dict[str, Told]] = {}
        self._ending_since: float | None = None

    def on_event(self, member: str, kind: str, data: Any) -> None:
        """For the hub, in whose thread it is called."""
        self.events.put((member, kind, data))

    @property
    def over(self) -> bool:
        """Whether every member has told all, or is gone; or has had time enough to."""
        late = self._ending_since is not None and time.monotonic() - self._ending_since > LAST_WORD_S
        return late or all(node.outcome or node.facts is not None for node in self.nodes.values())

    def hear(self, hub: Hub, timeout_s: float) -> None:
        """Take the next event, if one comes in time."""
        try:
            member, kind, data = self.events.get(timeout=timeout_s)
        except queue.Empty:
            return
        if member == HEAD:
            self._of_all(hub, kind, data)
            return
        node = self.nodes[member]
        if kind == "joined":
            node.joined = True
            if self.stop is not None:  # it was not there when the others were told
                hub.send(member, "stop", {"reason": self.stop})
        elif kind == "end":
            end = rank_end(data)
            node.ends[end.rank] = end
        elif kind == "again":
            hub.broadcast("again", data)  # the others' ranks start anew as well
        elif kind == "round":
            node.ends = {}  # its ranks live again
            self._round_over(int(data["restart"]), member, _told(data))
        elif kind == "outcome":
            ends, node.facts = _told(data)
            node.ends, node.outcome = {end.rank: end for end in ends}, True
            if data["failed"]:
                self.end_all(hub, f"{node.host} has failed")
        elif kind == "lost" and not node.outcome:
            self.lost(hub, member, str(data["reason"]))

    def _round_over(self, restart: int, member: str, told: Told) -> None:
        self._rounds.setdefault(restart, {})[member] = told
        if len(self._rounds[restart]) == len(self.nodes):
            self.on_round(restart, tuple(self._rounds.pop(restart).values()))

    def _of_all(self, hub: Hub, kind: str, data: Any) -> None:
        if kind == "planned":
            self.plan = data
        elif kind == "refused" and self.plan is None:
            self.refusal = str(data["reason"])
            self.end_all(hub, self.refusal)
        elif kind == "lost":
            self.refusal = str(data["reason"])
            self._ending_since = float("-inf")

    def lost(self, hub: Hub, member: str, reason: str) -> None:
        """A member's launcher is gone, and its ranks with it."""
        node = self.nodes[member]
        if node.facts is None:
            rank = list(self.nodes).index(member)
            node.facts = NodeFacts(host=node.host, node_rank=rank, lost=reason)
            self.end_all(hub, f"{node.host} is lost")

    def all_lost(self, hub: Hub, reason: str) -> None:
        """The step is over: who has not told all by now never will."""
        for member in self.nodes:
            self.lost(hub, member, reason)

    def end_all(self, hub: Hub, reason: str) -> None:
        """Have all members end their ranks."""
        if self._ending_since is None:
            self._ending_since = time.monotonic()
            hub.broadcast("abort", {"reason": reason})

    def ends(self) -> tuple[RankEnd, ...]:
        """The ends of all ranks that are known."""
        return tuple(end for node in self.nodes.values() for end in node.ends.values())

    def facts(self) -> tuple[NodeFacts, ...]:
        """What is known of each node."""
        return tuple(node.facts for node in self.nodes.values() if node.facts is not None)


def _told(data: Any) -> Told:
    """A member's word of how its ranks ended."""
    return tuple(map(rank_end, data["ends"])), node_facts(data["facts"])
