"""A node's launcher's connection to the head of the launch: events both ways, the head's clock, and the plan.

with Link(endpoints, token, "n2", on_event) as link:      # endpoints: those of the head's Hub
    plan = link.join(slots=2)                             # once all nodes are there
    link.send("ended", to_json(end))
"""

import queue
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from launch.connect import connect
from launch.doors import Doors, try_doors
from launch.ports import HeldPort
from launch.wire import GOODBYE_S, TICK_S, Lost, Waker, checked_kind

STOP_S = 2.0
ANSWER_S = 0.05
"""How long the first member lets others wait at its doors before it looks for the head's answer."""
OnEvent = Callable[[str, Any], None]
"""Is given the kind and the data, in the link's thread: it must be quick."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all nodes have agreed on: where the ranks meet, and who they are."""

    round: int
    node_rank: int
    members: tuple[str, ...]
    hosts: tuple[str, ...]
    """Host names, by node rank."""
    slots: tuple[int, ...]
    """Ranks on each node."""
    facts: tuple[Any, ...]
    """What else each node told."""
    master_addr: str
    """An address of node 0 that every node has connected to."""
    master_port: int
    address: str
    """This node's own address on the way to node 0."""
    held: HeldPort | None
    """On node 0: master_port, until somebody listens there."""

    @property
    def first_rank(self) -> int:
        """The lowest rank of this node."""
        return sum(self.slots[: self.node_rank])

    @property
    def world_size(self) -> int:
        """Ranks on all nodes."""
        return sum(self.slots)


class Link:
    """Connects to the head as one of its members; raises ValueError, naming each endpoint and its error, if it cannot.

    `on_event` hears what the head sends, and of the link itself: `lost` (reason) when the head is gone, `bye` when it
    has ended. Its exceptions are printed, and the first is kept in `failure`.
    """

    def __init__(
        self, endpoints: Sequence[str], token: str, member: str, on_event: OnEvent, *, timeout_s: float = 10.0
    ) -> None:
        self.member, self._on_event = member, on_event
        self.failure: Exception | None = None
        self._wire, self._welcome = connect(endpoints, token, member, timeout_s)
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._ended: str | None = None
        self._stopping = threading.Event()
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all members; the first one's node is where the ranks meet."""
        return self._welcome.members

    @property
    def clock_offset_s(self) -> float:
        """What the head's clock is ahead of this machine's."""
        return self.head_time_s() - time.time()

    def head_time_s(self) -> float:
        """Seconds since the epoch on the head's clock, whatever this machine's own clock says."""
        return time.monotonic() + self._welcome.offset_s

    def send(self, kind: str, data: Any = None) -> bool:
        """Send an event to the head -> whether it is still there. Raises ValueError if it cannot be sent at all."""
        self._wire.post(checked_kind(kind), data)
        self._waker.wake()
        return self._ended is None

    def join(
        self,
        slots: int,
        *,
        facts: Mapping[str, Any] | None = None,
        round_number: int = 0,
        interface: str | None = None,
        port: int = 0,
    ) -> Plan:
        """Wait until all members have joined this round -> the plan. One caller at a time.

        `slots` is the number of ranks here; `port` one that a person asked for, looked at on node 0 alone. Raises
        ValueError on all members alike if one is missing, lost, or cannot connect to node 0.
        """
        members = self._welcome.members
        word = secrets.token_hex(16)
        doors = None
        if self.member == members[0]:
            doors = Doors(word, alone=len(members) == 1, interface=interface, port=port)
        try:
            told = doors.describe() if doors is not None else []
            self._post(
                "_join",
                {"round": round_number, "slots": slots, "host": socket.gethostname(), "facts": dict(facts or {})}
                | {"doors": told, "word": word},
            )
            data = self._answer("_try", round_number, doors)
            tries = [(None, door["address"]) for door in told] or try_doors(data["doors"], data["word"])
            self._post("_tried", {"round": round_number, "errors": [error for error, _ in tries]})
            plan = self._answer("_plan", round_number, doors)
            master_addr = plan["master_addr"]
            place = [door["address"] for door in data["doors"]].index(master_addr)
            return Plan(
                round=round_number,
                node_rank=members.index(self.member),
                members=members,
                hosts=tuple(plan["hosts"]),
                slots=tuple(plan["slots"]),
                facts=tuple(plan["facts"]),
                master_addr=master_addr,
                master_port=plan["master_port"],
                address=tries[place][1] or master_addr,
                held=None if doors is None else doors.keep(master_addr),
            )
        finally:
            if doors is not None:
                doors.close()

    def stop(self) -> None:
        """Say goodbye and end; what was sent before still goes out, within a second."""
        self._stopping.set()
        self._waker.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_S)

    def __enter__(self) -> "Link":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _post(self, kind: str, data: Any) -> None:
        self._wire.post(kind, data)
        self._waker.wake()

    def _answer(self, wanted: str, round_number: int, doors: Doors | None) -> Any:
        """The head's next answer of this round; meanwhile the others are answered at the doors."""
        while True:
            if self._ended is not None:
                raise ValueError(f"the head of the launch was lost while {self.member} joined: {self._ended}")
            try:
                kind, data = self._answers.get(timeout=ANSWER_S if doors is None else 0)
            except queue.Empty:
                if doors is not None:
                    doors.answer(ANSWER_S)
                continue
            if data["round"] != round_number:
                continue  # left over from a round that was refused
            if kind == "_refused":
                raise ValueError(data["reason"])
            if kind == wanted:
                return data

    def _run(self) -> None:
        reason: str | None = None
        selector = selectors.DefaultSelector()
        selector.register(self._waker.reader, selectors.EVENT_READ)
        selector.register(self._wire.socket, selectors.EVENT_READ)
        try:
            while not self._stopping.is_set() and self._turn(selector):
                pass
        except Lost as lost:
            reason = str(lost)
        except Exception as error:  # a mistake of ours; nobody may wait for ever for a thread that is gone
            reason, self.failure = f"this side failed: {error!r}", error
            traceback.print_exc(file=sys.stderr)
        selector.close()
        if reason is None:
            if self._stopping.is_set():
                self._wire.post("_bye")
            else:
                self._ended = "it has ended"
            self._wire.finish(time.monotonic() + GOODBYE_S)
        else:
            self._wire.socket.close()
            self._ended = reason
        if self._stopping.is_set():
            self._ended = self._ended or "this side has ended"
        else:
            self._tell("bye" if reason is None else "lost", {} if reason is None else {"reason": reason})
        self._waker.close()

    def _turn(self, selector: selectors.BaseSelector) -> bool:
        """Read, listen for the head's pulse, write -> whether the head goes on."""
        for key, events in selector.select(TICK_S):
            if key.fileobj is self._waker.reader:
                self._waker.clear()
            elif events & selectors.EVENT_READ:
                self._wire.unread.extend(self._wire.receive())
        while self._wire.unread:
            kind, data = self._wire.unread.popleft()
            if kind == "_bye":
                return False
            if kind in ("_try", "_plan", "_refused"):
                self._answers.put((kind, data))
            elif not kind.startswith("_"):
                self._tell(kind, data)
        self._wire.pulse(self._welcome.lost_after_s)
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._wire.flush() else 0)
        selector.modify(self._wire.socket, wanted)
        return True

    def _tell(self, kind: str, data: Any) -> None:
        try:
            self._on_event(kind, data)
        except Exception as error:
            self.failure = self.failure or error
            traceback.print_exc(file=sys.stderr)
