"""What is known of the end of each rank: the facts from which a verdict is made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class LastWords:
    """What a rank said of its own end, at the moment it knew."""

    time_s: float
    """Seconds since the epoch, on the head node's clock."""
    type: str
    """Name of the exception's class, such as RuntimeError."""
    message: str
    """The exception's text, its first 2,000 characters."""
    traceback: tuple[str, ...] = ()
    """The last lines of the traceback, without line breaks."""


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """One rank that ended, or that its launcher lost sight of."""

    rank: int
    local_rank: int
    host: str
    pid: int
    time_s: float
    """Seconds since the epoch on the head node's clock, when the process was gone."""
    code: int
    """Exit code; -n for death by signal n."""
    asked: bool = False
    """Whether the launcher itself had sent it a signal before: then its end says nothing."""
    finished: bool = False
    """Whether its script had run to its end."""
    words: LastWords | None = None
    log: str | None = None
    """Path of its own log, if it has one."""

    def __lt__(self, other: "RankEnd") -> bool:
        return self.rank < other.rank


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Where a rank stood when nothing moved any more."""

    rank: int
    host: str
    frames: tuple[str, ...]
    """Innermost first, as `function (file.py:12)`; empty if the rank could not answer."""
    state: Literal["running", "sleeping", "stopped", "waiting for a disk", "gone"]


@dataclass(frozen=True, kw_only=True)
class Collective:
    """The last collective that a rank began in one of its process groups."""

    rank: int
    group: str
    """The group's name and description, such as 0 default_pg."""
    number: int
    """How many it had begun in that group, this one included."""
    name: str
    """Such as all_reduce."""
    done: bool


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What one node's launcher knows besides the ends of its ranks."""

    host: str
    node_rank: int
    oom_kills: int | None = None
    """Processes that the kernel killed for memory during the launch, from the cgroup; None where it cannot be known."""
    lost: str | None = None
    """Why its launcher itself cannot be reached any more."""
    stacks: tuple[Stack, ...] = ()
    """Of a hang: empty if there was none."""
    collectives: tuple[Collective, ...] = ()
    """Of a hang: what torch's flight recorder knows."""
    stalled_s: float | None = None
    """How long nothing had moved when the stacks were taken."""
    signals: tuple[str, ...] = ()
    """Names of signals that asked this launcher to end."""


def to_json(fact: RankEnd | NodeFacts) -> dict[str, Any]:
    """A fact as it travels between nodes and lies in files."""
    return asdict(fact)


def rank_end(data: Mapping[str, Any]) -> RankEnd:
    """The inverse of `to_json`."""
    words = data.get("words")
    kept = {key: value for key, value in data.items() if key != "words"}
    return RankEnd(
        **kept, words=None if words is None else LastWords(**{**words, "traceback": tuple(words["traceback"])})
    )


def node_facts(data: Mapping[str, Any]) -> NodeFacts:
    """The inverse of `to_json`."""
    stacks = tuple(Stack(**{**stack, "frames": tuple(stack["frames"])}) for stack in data["stacks"])
    collectives = tuple(Collective(**each) for each in data["collectives"])
    return NodeFacts(**{**data, "stacks": stacks, "collectives": collectives, "signals": tuple(data["signals"])})
