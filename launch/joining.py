"""How the members of a launch agree on a plan, as the head sees it: what came, and what is to be sent for it.

Pure: no sockets, no threads. A round goes so: every member joins; all try to connect to the first one's addresses; the
first address that all have reached is where the ranks will meet. A refusal goes to everyone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ""
"""In place of a member's name: the head itself."""
Message = tuple[str, str, Any]
"""Whom it is for, its kind, its data."""


class Joining:
    """The rounds of one launch, one after another."""

    def __init__(self, members: Sequence[str], timeout_s: float) -> None:
        self.members, self.timeout_s = tuple(members), timeout_s
        self.number = -1
        self._open = False
        self._deadline_s = 0.0
        self._facts: dict[str, Mapping[str, Any]] = {}
        self._reached: dict[str, Sequence[str | None]] = {}

    def joined(self, member: str, data: Mapping[str, Any], now_s: float) -> list[Message]:
        """A member wants to join a round."""
        number = int(data["round"])
        if number < self.number or (number == self.number and not self._open):
            return [
                (member, "_refused", {"round": number, "reason": f"round {number} is over; start the launch again"})
            ]
        out: list[Message] = []
        if number > self.number:
            out += self._refuse(f"round {number} has begun", only=tuple(self._facts))
            self.number, self._open, self._deadline_s = number, True, now_s + self.timeout_s
            self._facts, self._reached = {}, {}
        self._facts[member] = data
        if len(self._facts) == len(self.members):
            first = self._facts[self.members[0]]
            doors = [{"address": door["address"], "probe": door["probe"]} for door in first["doors"]]
            out += self._all("_try", {"doors": doors, "word": first["word"]})
        return out

    def tried(self, member: str, data: Mapping[str, Any]) -> list[Message]:
        """A member says, for each address of the first one, why it could not connect; None if it could."""
        if not self._open or int(data["round"]) != self.number:
            return []
        self._reached[member] = data["errors"]
        if len(self._reached) < len(self.members):
            return []
        for place, door in enumerate(self._facts[self.members[0]]["doors"]):
            if all(errors[place] is None for errors in self._reached.values()):
                return self._plan(door)
        return self._refuse(self._why_not())

    def lost(self, member: str, reason: str) -> list[Message]:
        """A member is gone."""
        if self._open and member in self._facts:
            return self._refuse(f"{member} was lost while the nodes joined: {reason}")
        return []

    def tick(self, now_s: float) -> list[Message]:
        """Time goes by."""
        if not self._open or now_s < self._deadline_s:
            return []
        here = self._reached if len(self._facts) == len(self.members) else self._facts
        missing = ", ".join(member for member in self.members if member not in here)
        return self._refuse(
            f"{len(here)} of {len(self.members)} nodes joined within {self.timeout_s:g} s; missing {missing}"
        )

    def _plan(self, door: Mapping[str, Any]) -> list[Message]:
        self._open = False
        facts = [self._facts[member] for member in self.members]
        plan = {
            "hosts": [fact["host"] for fact in facts],
            "slots": [fact["slots"] for fact in facts],
            "facts": [fact["facts"] for fact in facts],
            "master_addr": door["address"],
            "master_port": door["port"],
        }
        return [*self._all("_plan", plan), (HEAD, "planned", {"round": self.number, **plan})]

    def _refuse(self, reason: str, only: Sequence[str] | None = None) -> list[Message]:
        if not self._open:
            return []
        self._open = False
        out = self._all("_refused", {"reason": reason}, only)
        return [*out, (HEAD, "refused", {"round": self.number, "reason": reason})]

    def _all(self, kind: str, data: Mapping[str, Any], only: Sequence[str] | None = None) -> list[Message]:
        """The same for all members, or for some."""
        return [(member, kind, {"round": self.number, **data}) for member in (self.members if only is None else only)]

    def _why_not(self) -> str:
        """Which pair cannot connect; or, if each can somewhere, where."""
        first, doors = self.members[0], self._facts[self.members[0]]["doors"]
        names = [f"{door['address']} ({door['interface']})" for door in doors]
        for member, errors in self._reached.items():
            if None not in errors:
                tries = ", ".join(f"{name}: {error}" for name, error in zip(names, errors, strict=True))
                return (
                    f"{member} cannot reach {first} at any of {tries}; "
                    "check the network between them, or name the interface that leads there"
                )
        where = "; ".join(
            f"{member} only at {', '.join(name for name, error in zip(names, errors, strict=True) if error is None)}"
            for member, errors in self._reached.items()
            if any(errors)
        )
        return (
            f"no address of {first} can be reached by all nodes: {where}; name an interface that leads to all of them"
        )
