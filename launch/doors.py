"""Whether other machines can really connect to the first one: it opens doors, the others try them."""

import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.addresses import LOOPBACK, candidates, interface_of
from launch.ports import BACKLOG, HeldPort, tcp_socket

TRY_S = 5.0
"""How long a member tries to connect."""
WORD_BYTES = 64


class Doors:
    """On the first member: for each of its addresses a port that is held for the ranks, and a listener to try.

    Whoever connects to a listener is told `word`, since the same address may be on another machine as well.
    Raises ValueError if the port that was asked for cannot be had, or no address can be used.
    """

    def __init__(self, word: str, *, alone: bool, interface: str | None = None, port: int = 0) -> None:
        self.word = word
        self._held: list[HeldPort] = []
        self._probes: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        try:
            for address in [LOOPBACK] if alone else candidates(interface):
                self._open(address, port)
        except BaseException:
            self.close()
            raise

    def _open(self, address: str, port: int) -> None:
        self._held.append(HeldPort(address, port))
        probe = tcp_socket(address)
        self._probes.append(probe)
        probe.bind((address, 0))
        probe.listen(BACKLOG)
        probe.setblocking(False)
        self._selector.register(probe, selectors.EVENT_READ)

    def describe(self) -> list[dict[str, Any]]:
        """What the others are told."""
        return [
            {
                "address": held.host,
                "interface": interface_of(held.host),
                "port": held.port,
                "probe": probe.getsockname()[1],
            }
            for held, probe in zip(self._held, self._probes, strict=True)
        ]

    def answer(self, timeout_s: float) -> None:
        """Tell the word to those who come within this time."""
        for key, _ in self._selector.select(timeout_s):
            assert isinstance(key.fileobj, socket.socket)
            try:
                visitor, _ = key.fileobj.accept()
                with visitor:
                    visitor.send(self.word.encode())  # a new connection takes 64 bytes at once
            except OSError:  # it has gone again
                continue

    def keep(self, address: str) -> HeldPort:
        """The port that is held at an address; all others are let go of."""
        (kept,) = [held for held in self._held if held.host == address]
        self._held.remove(kept)
        self.close()
        return kept

    def close(self) -> None:
        """Let go of everything."""
        self._selector.close()
        for held in self._held:
            held.close()
        for probe in self._probes:
            probe.close()


@dataclass
class _Try:
    """One connection that is being tried."""

    connection: socket.socket
    heard: bytes = b""
    error: str | None = "timed out"
    own: str | None = None


def try_doors(
    doors: Sequence[Mapping[str, Any]], word: str, timeout_s: float = TRY_S
) -> list[tuple[str | None, str | None]]:
    """For each door why it cannot be reached, None if it can, and this machine's own address on the way there."""
    deadline = time.monotonic() + timeout_s
    tries = []
    with selectors.DefaultSelector() as selector:
        for door in doors:
            each = _Try(tcp_socket(door["address"]))
            tries.append(each)
            each.connection.setblocking(False)
            try:
                each.connection.connect((door["address"], door["probe"]))
            except BlockingIOError:
                pass
            except OSError as error:
                each.error = str(error.strerror).lower()
                continue
            selector.register(each.connection, selectors.EVENT_READ, each)
        while selector.get_map() and (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                if _listen(key.data, word):
                    selector.unregister(key.fileobj)
    for each in tries:
        each.connection.close()
    return [(each.error, each.own) for each in tries]


def _listen(each: _Try, word: str) -> bool:
    """Read what a door says -> whether it is known now if this is the right one."""
    try:
        chunk = each.connection.recv(WORD_BYTES)
    except BlockingIOError:
        return False
    except OSError as error:
        each.error = str(error.strerror).lower()
        return True
    each.heard += chunk
    if chunk and len(each.heard) < len(word):
        return False
    if each.heard == word.encode():
        each.error, each.own = None, each.connection.getsockname()[0]
    else:
        each.error = "another machine answered"
    return True
