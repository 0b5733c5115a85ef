"""Connections between any two of several nodes: can they be made, what do the clocks say, how fast do bytes go.

Each node has a `Listener`; the others know its endpoints and the secret that all share. A caller writes the secret and
one letter. c: each byte that follows is answered with the time. s and a duration: bytes that follow are counted so
long, then their number and the time that they took are the answer.
"""

import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

Endpoint = tuple[str, int]
"""Address and port."""
CLOCK, STREAM = b"c", b"s"
TOKEN_BYTES = 32
ROUND_TRIPS = 5
ANSWER_TIMEOUT_S = 3.0
CHUNK_BYTES = 1 << 18


class Listener:
    """Serves the other nodes from threads of its own, until it is closed."""

    def __init__(self, addresses: Sequence[str], token: str, clock: Callable[[], float] = time.time) -> None:
        """Listen on a free port of each address. `token` is TOKEN_BYTES letters; `clock` gives its time, in s."""
        self._token, self._clock = token.encode(), clock
        self._closed = False
        self._doors: list[tuple[socket.socket, threading.Thread]] = []
        self.endpoints: list[Endpoint] = []
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with suppress(OSError):  # an address that has just gone, or that needs a scope
                server = socket.create_server((address, 0), family=family, backlog=64)
                thread = threading.Thread(target=self._accept, args=(server,), daemon=True)
                self._doors.append((server, thread))
                self.endpoints.append((address, server.getsockname()[1]))
                thread.start()

    def close(self) -> None:
        """Stop listening; callers that are being served lose their connection when they are done."""
        self._closed = True
        for server, thread in self._doors:
            server.shutdown(socket.SHUT_RDWR)  # wakes the thread, as closing would not
            thread.join()
            server.close()

    def _accept(self, server: socket.socket) -> None:
        while not self._closed:
            with suppress(OSError):
                caller, _ = server.accept()
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, suppress(OSError):
            caller.settimeout(ANSWER_TIMEOUT_S)
            words = _exactly(caller, TOKEN_BYTES + 1)
            if not secrets.compare_digest(words[:-1], self._token):
                return
            if words[-1:] == STREAM:
                _count(caller)
            while words[-1:] == CLOCK and caller.recv(1):
                caller.sendall(struct.pack("!d", self._clock()))


def _exactly(sender: socket.socket, size_bytes: int) -> bytes:
    parts = b""
    while len(parts) < size_bytes:
        part = sender.recv(size_bytes - len(parts))
        if not part:
            raise ConnectionError("it closed the connection")
        parts += part
    return parts


def _count(caller: socket.socket) -> None:
    """Count what comes, for as long as the caller asks, and tell it; it may have more on its way, which is dropped."""
    (duration_s,) = struct.unpack("!d", _exactly(caller, 8))
    buffer = bytearray(CHUNK_BYTES)
    caller.recv_into(buffer, 1)  # the clock starts with the first byte
    total, start_s = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start_s) < duration_s:
        total += caller.recv_into(buffer)
    caller.sendall(struct.pack("!Qd", total, seconds))
    while caller.recv_into(buffer):
        pass


def _call(endpoint: Endpoint, token: str, kind: bytes, timeout_s: float) -> socket.socket:
    caller = socket.create_connection(endpoint, timeout=timeout_s)
    try:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        caller.sendall(token.encode() + kind)
    except OSError:
        caller.close()
        raise
    return caller


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What came of an attempt to reach another node."""

    endpoint: Endpoint | None
    """The first of its endpoints that answered; None if none did."""
    errors: tuple[str, ...]
    """Why the endpoints before it did not."""
    ahead_s: float | None
    """How far its clock is ahead of ours."""
    round_trip_s: float | None
    """The shortest, which bounds the error of `ahead_s`."""


def reach(
    endpoints: Sequence[Endpoint],
    token: str,
    clock: Callable[[], float] = time.time,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> Reach:
    """Try a node's endpoints in turn until one answers, and compare the clocks over it."""
    errors = []
    for endpoint in endpoints:
        try:
            ahead_s, round_trip_s = _compare_clocks(endpoint, token, clock, timeout_s)
        except OSError as error:
            errors.append(f"{endpoint[0]}: {reason(error)}")
        else:
            return Reach(endpoint=endpoint, errors=tuple(errors), ahead_s=ahead_s, round_trip_s=round_trip_s)
    return Reach(endpoint=None, errors=tuple(errors), ahead_s=None, round_trip_s=None)


def reason(error: OSError) -> str:
    """An error of a socket in the system's words, without Python's number."""
    return "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()


def _compare_clocks(
    endpoint: Endpoint, token: str, clock: Callable[[], float], timeout_s: float
) -> tuple[float, float]:
    trips = []
    with _call(endpoint, token, CLOCK, timeout_s) as caller:
        for _ in range(ROUND_TRIPS):
            start_s, sent_s = time.perf_counter(), clock()
            caller.sendall(b".")
            (theirs_s,) = struct.unpack("!d", _exactly(caller, 8))
            trip_s = time.perf_counter() - start_s
            trips.append((trip_s, theirs_s - (sent_s + trip_s / 2)))
    trip_s, ahead_s = min(trips)
    return ahead_s, trip_s


def stream(endpoint: Endpoint, token: str, duration_s: float) -> float:
    """Send as fast as it goes for a while -> bit/s that arrived. Raises OSError if the other end does not answer."""
    chunk = memoryview(bytes(CHUNK_BYTES))
    with _call(endpoint, token, STREAM, ANSWER_TIMEOUT_S) as caller:
        caller.sendall(struct.pack("!d", duration_s))
        while True:
            answered, writable, _ = select.select([caller], [caller], [], ANSWER_TIMEOUT_S + duration_s)
            if answered:
                break
            if not writable:
                raise TimeoutError
            caller.send(chunk, socket.MSG_DONTWAIT)
        total, seconds = struct.unpack("!Qd", _exactly(caller, 16))
        with suppress(OSError):  # until what is on its way has arrived, or it would slow down what is measured next
            caller.shutdown(socket.SHUT_WR)
            caller.recv(1)
    return 8 * total / seconds


def rounds(nodes: int, limit: int) -> list[list[tuple[int, int]]]:
    """Pairs (sender, receiver) of nodes 0 to n-1, such that no node is in two of a round; each pair in both directions.

    Many nodes get only the first `limit` rounds, rounded up to an even number: each then meets limit / 2 others.
    """
    seats: list[int | None] = [*range(nodes), *([None] if nodes % 2 else [])]
    found: list[list[tuple[int, int]]] = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = [
            (one, other)
            for one, other in zip(seats[:half], reversed(seats[half:]), strict=True)
            if one is not None and other is not None
        ]
        found += [pairs, [(other, one) for one, other in pairs]]
        seats = [seats[0], seats[-1], *seats[1:-1]]  # the circle method: one stays, the others move on
    return found[: limit + limit % 2]
