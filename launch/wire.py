"""One connection between the head and a node's launcher: lines of JSON, proof that both know the token, and its pulse.

A line is `[kind, data]`. Kinds that start with `_` are the connection's own.
"""

import contextlib
import hmac
import json
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

LONGEST_LINE_BYTES = 1 << 20
GREETING_BYTES = 4096
"""Longest line of somebody who has not shown yet that they know the token."""
GREETING_S = 5.0
"""How long somebody has for that."""
BEAT_S = 1.0
"""How often each side says that it is there."""
CHUNK_BYTES = 1 << 16
GOODBYE_S = 1.0
"""How long the last words of all connections may take."""
TICK_S = 0.1
"""How often a connection's thread looks at the clock."""
OWN_KINDS = frozenset({"lost", "joined", "bye", "planned", "refused"})
"""Kinds of events that the link makes itself."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long the head waits for its members."""

    lost_after_s: float = 10.0
    """Silence after which a connection is given up, on both sides."""
    join_s: float = 120.0
    """From the first member that joins a round to the last."""

    def __post_init__(self) -> None:
        if self.lost_after_s < 2 * BEAT_S or self.join_s <= 0:
            raise ValueError(
                f"expected lost_after_s of {2 * BEAT_S:g} or more and join_s above 0, got {self}; wait longer"
            )


class Lost(Exception):
    """A connection is of no use any more; the text says why."""


def proof(token: str, *words: str) -> str:
    """What only those who know the token can say; `words` keep it from being said again elsewhere."""
    return hmac.digest(token.encode(), "\n".join(words).encode(), "sha256").hex()


def line(kind: str, data: Any) -> bytes:
    """A message as it travels. Raises ValueError if it is too long or is not JSON."""
    try:
        text = json.dumps([kind, data], allow_nan=False).encode() + b"\n"
    except TypeError as error:
        raise ValueError(f"expected data of {kind!r} that can be written as JSON, got: {error}") from None
    if len(text) > LONGEST_LINE_BYTES:
        raise ValueError(
            f"expected {kind!r} of at most {LONGEST_LINE_BYTES} bytes, got {len(text)}; send less at a time"
        )
    return text


def checked_kind(kind: str) -> str:
    """A kind of event that a caller may send. Raises ValueError for one that the link makes itself."""
    if kind.startswith("_") or kind in OWN_KINDS:
        raise ValueError(f"expected a kind of event that is not the link's own, got {kind!r}; choose another name")
    return kind


def prepare(connection: socket.socket, lost_after_s: float) -> None:
    """Make a connection that neither blocks nor waits for long for a machine that is gone."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(lost_after_s * 1000))


class Waker:
    """Wakes a thread that waits in a selector."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)

    def wake(self) -> None:
        """Make `reader` readable. Nothing happens once it is closed."""
        with contextlib.suppress(OSError):  # full: it will wake anyway
            self._writer.send(b"\0")

    def clear(self) -> None:
        """Make `reader` quiet again."""
        with contextlib.suppress(BlockingIOError):
            self.reader.recv(CHUNK_BYTES)

    def close(self) -> None:
        """Let go of both ends."""
        self.reader.close()
        self._writer.close()


class Wire:
    """Reads and writes messages without ever blocking. One thread reads and flushes; any thread may post."""

    def __init__(self, connection: socket.socket, *, longest_bytes: int = LONGEST_LINE_BYTES) -> None:
        self.socket = connection
        self.longest_bytes = longest_bytes
        self.heard_s = self._beat_s = time.monotonic()
        self.unread: deque[tuple[str, Any]] = deque()
        """Messages that came while others were waited for."""
        self._read = bytearray()
        self._posted: deque[bytes] = deque()
        self._write = bytearray()

    def post(self, kind: str, data: Any = None) -> None:
        """Put a message behind those that are to be sent. Raises ValueError if it cannot be one."""
        self._posted.append(line(kind, data))

    def receive(self) -> list[tuple[str, Any]]:
        """The messages that have come whole, after one read. Raises Lost at the end, and for what is no message."""
        try:
            chunk = self.socket.recv(CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise Lost(f"connection broken: {error.strerror}") from None
        if not chunk:
            raise Lost("connection closed")
        self.heard_s = time.monotonic()
        if b"\n" not in chunk:  # not looked for in what was there before
            self._read += chunk
            self._check_length(len(self._read))
            return []
        *lines, rest = (self._read + chunk).split(b"\n")
        self._read = rest
        for text in (*lines, rest):
            self._check_length(len(text))
        return [_message(text) for text in lines]

    def _check_length(self, size_bytes: int) -> None:
        if size_bytes > self.longest_bytes:
            raise Lost(f"a line of more than {self.longest_bytes} bytes came")

    def flush(self) -> bool:
        """Send as much as goes -> whether something is left. Raises Lost."""
        while self._posted:
            self._write += self._posted.popleft()
        try:
            while self._write:
                del self._write[: self.socket.send(self._write)]
        except (BlockingIOError, InterruptedError):
            return True
        except OSError as error:
            raise Lost(f"connection broken: {error.strerror}") from None
        return False

    def pulse(self, lost_after_s: float) -> None:
        """Say that this side is there, if it is time to. Raises Lost if the other has not been heard for too long."""
        now = time.monotonic()
        if now - self.heard_s > lost_after_s:
            raise Lost(f"no word for {lost_after_s:g} s")
        if now - self._beat_s >= BEAT_S:
            self._beat_s = now
            self.post("_beat")

    def finish(self, deadline_s: float) -> None:
        """Send what is left, until a moment of the monotonic clock, and close."""
        with contextlib.suppress(Lost):
            while self.flush() and time.monotonic() < deadline_s:
                time.sleep(0.01)
        self.socket.close()


def _message(text: bytearray) -> tuple[str, Any]:
    try:
        kind, data = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise Lost("something that is no message of ringmark came") from None
    if not isinstance(kind, str):
        raise Lost("something that is no message of ringmark came")
    return kind, data
