"""The head of a launch on several nodes: every node's launcher is connected to it, and it knows at once who is lost."""

import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from launch.addresses import LOOPBACK, candidates
from launch.joining import HEAD, Joining, Message
from launch.ports import BACKLOG, tcp_socket
from launch.wire import (
    GOODBYE_S,
    GREETING_BYTES,
    GREETING_S,
    LONGEST_LINE_BYTES,
    TICK_S,
    Limits,
    Lost,
    Waker,
    Wire,
    checked_kind,
    line,
    prepare,
    proof,
)

STOP_S = 2.0
MOST_GUESTS = 128
"""Connections that have not shown that they know the token; more are not let in."""
OnEvent = Callable[[str, str, Any], None]
"""Is given the member ("" for the head itself), the kind and the data, in the hub's thread: it must be quick."""


@dataclass(eq=False)
class _Client:
    """One connection; `member` is empty until it has proved that it knows the token."""

    wire: Wire
    nonce: str
    since_s: float
    member: str = ""


class Hub:
    """Listens on this machine's addresses for `members`, in the order of their ranks, that know `token`.

    `on_event` hears what members send, and of the hub itself: `joined` (host, pid, time_s), `lost` (reason) and `bye`
    of a member; `planned` and `refused` (round, reason) of all. Its exceptions are printed, and the first is kept in
    `failure`. Raises ValueError if there is no address to listen on.
    """

    def __init__(
        self,
        token: str,
        members: Sequence[str],
        on_event: OnEvent,
        *,
        interface: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        if not token or not members or len(set(members)) < len(members) or HEAD in members:
            raise ValueError(
                f"expected a token and different names of members, got {list(members)}; name each node once"
            )
        self._token, self._members, self._on_event = token, tuple(members), on_event
        self._limits = limits or Limits()
        self.failure: Exception | None = None
        self._joining = Joining(self._members, self._limits.join_s)
        self._clients: set[_Client] = set()
        self._present: dict[str, _Client] = {}
        self._stopping = threading.Event()
        self._listeners = _listen([LOOPBACK] if len(members) == 1 else [*candidates(interface), LOOPBACK])
        self.endpoints = [_endpoint(listener) for listener in self._listeners]
        self._waker = Waker()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._waker.reader, selectors.EVENT_READ)
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    @property
    def present(self) -> tuple[str, ...]:
        """Members that are connected now, in the order of their ranks."""
        return tuple(member for member in self._members if member in self._present)

    def send(self, member: str, kind: str, data: Any = None) -> bool:
        """Send an event to one member -> whether it is connected. Raises ValueError if it cannot be sent at all."""
        line(checked_kind(kind), data)
        client = self._present.get(member)
        if client is None:
            return False
        client.wire.post(kind, data)
        self._waker.wake()
        return True

    def broadcast(self, kind: str, data: Any = None) -> tuple[str, ...]:
        """Send an event to all that are connected -> their names."""
        return tuple(member for member in self._members if self.send(member, kind, data))

    def stop(self) -> None:
        """Say goodbye to all members and end; what was sent before still goes out, within a second.

        What members send from now on is not read: wait for their `bye` first, if their last words matter.
        """
        self._stopping.set()
        self._waker.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_S)

    def __enter__(self) -> "Hub":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turn()
        except Exception as error:  # a mistake of ours; whoever waits for events must not wait for ever
            self.failure = error
            traceback.print_exc(file=sys.stderr)
            self._tell(HEAD, "lost", {"reason": f"the hub failed: {error!r}"})
        finally:
            deadline_s = time.monotonic() + GOODBYE_S
            for client in self._clients:
                if client.member:
                    client.wire.post("_bye")
                client.wire.finish(deadline_s)
            self._present.clear()
            self._selector.close()
            self._waker.close()
            for listener in self._listeners:
                listener.close()

    def _turn(self) -> None:
        """Read what has come first, so that a hub that was held up itself takes nobody for lost."""
        for key, events in self._selector.select(TICK_S):
            if isinstance(key.data, _Client):
                if events & selectors.EVENT_READ and key.data in self._clients:
                    self._guarded(key.data, self._read)
            elif key.fileobj is self._waker.reader:
                self._waker.clear()
            else:
                assert isinstance(key.fileobj, socket.socket)
                self._accept(key.fileobj)
        self._carry_out(self._joining.tick(time.monotonic()))
        for client in tuple(self._clients):
            self._guarded(client, self._keep)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # it has gone again
            return
        if len(self._clients) - len(self._present) >= MOST_GUESTS:
            connection.close()
            return
        prepare(connection, self._limits.lost_after_s)
        client = _Client(Wire(connection, longest_bytes=GREETING_BYTES), secrets.token_hex(16), time.monotonic())
        client.wire.post("_greeting", {"nonce": client.nonce})
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _guarded(self, client: _Client, work: Callable[[_Client], None]) -> None:
        """Work on one client, whose end, or whose nonsense, is nobody else's."""
        try:
            work(client)
        except (Lost, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            self._drop(client, str(error) if isinstance(error, Lost) else f"it sent what makes no sense: {error!r}")

    def _keep(self, client: _Client) -> None:
        if client.member:
            client.wire.pulse(self._limits.lost_after_s)
        elif time.monotonic() - client.since_s > GREETING_S:
            raise Lost("no proof came")
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.wire.flush() else 0)
        self._selector.modify(client.wire.socket, wanted, client)

    def _read(self, client: _Client) -> None:
        for kind, data in client.wire.receive():
            if not client.member:
                self._let_in(client, kind, data)
            elif kind == "_bye":
                self._drop(client, None)
                return
            elif kind == "_ping":
                client.wire.post("_pong", {"id": data["id"], "time_s": time.time()})
            elif kind == "_join":
                self._carry_out(self._joining.joined(client.member, data, time.monotonic()))
            elif kind == "_tried":
                self._carry_out(self._joining.tried(client.member, data))
            elif kind != "_beat":
                self._tell(client.member, checked_kind(kind), data)

    def _let_in(self, client: _Client, kind: str, data: Any) -> None:
        """A guest proves that it knows the token, or is shown out without a word."""
        member, told = str(data["member"]), str(data["proof"])
        if kind != "_hello" or not secrets.compare_digest(told.encode(), self._expected(client, member)):
            raise Lost("a wrong proof came")
        answer = {"proof": proof(self._token, "head", str(data["nonce"])), "members": self._members}
        if member not in self._members or member in self._present:
            why = "is connected already" if member in self._present else f"is none of {', '.join(self._members)}"
            client.wire.post("_refused", {**answer, "reason": f"{member} {why}"})
            client.wire.flush()
            raise Lost("refused")
        client.member, self._present[member] = member, client
        client.wire.longest_bytes = LONGEST_LINE_BYTES
        client.wire.post("_welcome", {**answer, "lost_after_s": self._limits.lost_after_s})
        self._tell(member, "joined", {name: data[name] for name in ("host", "pid", "time_s")})

    def _expected(self, client: _Client, member: str) -> bytes:
        return proof(self._token, "member", client.nonce, member).encode()

    def _drop(self, client: _Client, reason: str | None) -> None:
        """Close a connection: a member's is lost for a reason, or it has said goodbye."""
        self._clients.discard(client)
        self._selector.unregister(client.wire.socket)
        client.wire.socket.close()
        if not client.member:
            return
        del self._present[client.member]
        self._tell(client.member, "bye" if reason is None else "lost", {} if reason is None else {"reason": reason})
        self._carry_out(self._joining.lost(client.member, reason or "it said goodbye"))

    def _carry_out(self, messages: Sequence[Message]) -> None:
        for member, kind, data in messages:
            if member == HEAD:
                self._tell(HEAD, kind, data)
            elif member in self._present:
                self._present[member].wire.post(kind, data)

    def _tell(self, member: str, kind: str, data: Any) -> None:
        try:
            self._on_event(member, kind, data)
        except Exception as error:
            self.failure = self.failure or error
            traceback.print_exc(file=sys.stderr)


def _listen(addresses: Sequence[str]) -> list[socket.socket]:
    """A listener on each address that can be used, each on a port that was free."""
    found, errors = [], []
    for address in dict.fromkeys(addresses):
        listener = tcp_socket(address)
        try:
            listener.bind((address, 0))
            listener.listen(BACKLOG)
        except OSError as error:  # such as an address that is being taken away
            listener.close()
            errors.append(f"{address}: {error.strerror}")
            continue
        listener.setblocking(False)
        found.append(listener)
    if not found:
        raise ValueError(f"expected an address to listen on, got {', '.join(errors)}; check this machine's network")
    return found


def _endpoint(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
