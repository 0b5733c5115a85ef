"""A TCP port that is bound and held, so that what others are told of it stays true."""

import errno
import os
import socket
from pathlib import Path
from types import TracebackType

LISTENING, TIME_WAIT = 0x0A, 0x06
"""States of a socket as /proc/net/tcp writes them."""
BACKLOG = 4096
"""Connections that may wait to be accepted: all ranks of a large launch come at once."""


class HeldPort:
    """A port of one address: nobody else is given it, though a process that sets SO_REUSEADDR, as torch's store does,
    can still listen on it.

    `port` 0 takes any that is free. Raises ValueError if the port that was asked for cannot be had.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        if not 0 <= port <= 65535:
            raise ValueError(f"expected a port from 1 to 65535, got {port}; leave it out to get one that is free")
        self.host = host
        self._socket: socket.socket | None = _bound(host, port)
        self.port: int = self._socket.getsockname()[1]

    def listener(self) -> int:
        """The descriptor of a socket that listens on the port, for TCPStore's master_listen_fd; it is the caller's now.

        Raises ValueError if the port is no longer held.
        """
        if self._socket is None:
            raise ValueError(f"expected port {self.port} to be held still, but it was closed or given away")
        self._socket.listen(BACKLOG)
        held, self._socket = self._socket, None
        return held.detach()

    def close(self) -> None:
        """Let go of the port."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> "HeldPort":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tcp_socket(host: str) -> socket.socket:
    """A socket of the address's own family, IPv4 or IPv6."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has sockets of its own
    return made


def _bound(host: str, port: int) -> socket.socket:
    held = tcp_socket(host)
    try:
        # Only what is left of closed connections may be there: two holders that both set the option before they bind
        # would share the port.
        states = {state for state, _ in _sockets_on(port)} if port else set()
        if states == {TIME_WAIT}:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, port))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError as error:
        held.close()
        if port and error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ValueError(_refusal(port, error)) from None
        raise ValueError(f"expected an address of this machine, got {host}: {error.strerror}") from None
    return held


def _refusal(port: int, error: OSError) -> str:
    if error.errno == errno.EACCES:
        return f"expected a port that this user may open, got {port}; choose one above 1023"
    found = holder(port)
    by = "a process that cannot be seen from here" if found is None else f"process {found[0]} ({found[1]})"
    return f"expected a free port, got {port}, which {by} holds; choose another, or leave it out to get a free one"


def holder(port: int) -> tuple[int, str] | None:
    """Process id and command of who listens on a local TCP port, or else is connected by it; None if unknown."""
    found = sorted(_sockets_on(port), key=lambda each: each[0] != LISTENING)
    names = {f"socket:[{inode}]": place for place, (_, inode) in enumerate(found) if inode}
    best: tuple[int, int, str] | None = None
    for process in Path("/proc").glob("[0-9]*") if names else ():
        try:
            places = [names[link] for each in os.scandir(process / "fd") if (link := os.readlink(each.path)) in names]
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended, or it is another user's
            continue
        for place in places:
            if best is None or place < best[0]:
                best = (place, int(process.name), " ".join(os.fsdecode(word) for word in words).strip())
    return None if best is None else (best[1], _printable(best[2]))


def _printable(command: str) -> str:
    """What a terminal can show, of bearable length."""
    return "".join(character if character.isprintable() else "?" for character in command)[:120] or "unnamed"


def _sockets_on(port: int) -> list[tuple[int, int]]:
    """State and inode of each TCP socket with that local port; a port that is only held has none."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port:
                found.append((int(fields[3], 16), int(fields[9])))
    return found
