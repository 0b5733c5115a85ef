"""How a member finds the head: at the first of its endpoints that can be connected to and proves to be the head."""

import os
import secrets
import select
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from launch.ports import tcp_socket
from launch.wire import GREETING_S, TICK_S, Limits, Lost, Wire, prepare, proof

PINGS = 5
"""Round trips of which the shortest sets the clock."""
PAUSE_S = 0.5
"""Before all endpoints are tried again."""


@dataclass(frozen=True)
class Welcome:
    """What the head said of itself."""

    members: tuple[str, ...]
    lost_after_s: float
    offset_s: float
    """Seconds since the epoch on the head's clock, less this process's monotonic clock."""


class _Refused(ValueError):
    """The head itself said no: no use in trying again."""


def connect(endpoints: Sequence[str], token: str, member: str, timeout_s: float) -> tuple[Wire, Welcome]:
    """A connection to the head. Raises ValueError with each endpoint's error after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    errors = dict.fromkeys(endpoints, "timed out")
    while True:
        found = _try_all(endpoints, deadline_s, errors, lambda wire: _shake_hands(wire, token, member, deadline_s))
        if found is not None:
            return found
        if time.monotonic() + PAUSE_S > deadline_s:
            tries = ", ".join(f"{endpoint}: {error}" for endpoint, error in errors.items())
            raise ValueError(
                f"{member} cannot reach the head of the launch at any of {tries}; "
                "check the network between the nodes, or name the interface that leads there"
            )
        time.sleep(PAUSE_S)


def _try_all(
    endpoints: Sequence[str], deadline_s: float, errors: dict[str, str], shake_hands: Callable[[Wire], Welcome]
) -> tuple[Wire, Welcome] | None:
    """Connect to all at once, and shake hands with one after another as they answer; the others are closed."""
    with selectors.DefaultSelector() as selector:
        for endpoint in endpoints:
            _begin(endpoint, selector, errors)
        try:
            while selector.get_map() and (left_s := deadline_s - time.monotonic()) > 0:
                for key, _ in selector.select(left_s):
                    assert isinstance(key.fileobj, socket.socket)
                    selector.unregister(key.fileobj)
                    code = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    try:
                        if code:
                            raise Lost(os.strerror(code).lower())
                        prepare(key.fileobj, Limits().lost_after_s)
                        wire = Wire(key.fileobj)
                        return wire, shake_hands(wire)
                    except BaseException as error:
                        key.fileobj.close()
                        if not isinstance(error, Lost):
                            raise
                        errors[key.data] = str(error)
        finally:
            for key in list(selector.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()
    return None


def _begin(endpoint: str, selector: selectors.BaseSelector, errors: dict[str, str]) -> None:
    host, _, port = endpoint.rpartition(":")
    connection = tcp_socket(host := host.strip("[]"))
    connection.setblocking(False)
    try:
        connection.connect((host, int(port)))
    except BlockingIOError:
        pass
    except OSError as error:
        connection.close()
        errors[endpoint] = str(error.strerror).lower()
        return
    selector.register(connection, selectors.EVENT_WRITE, endpoint)


def _shake_hands(wire: Wire, token: str, member: str, deadline_s: float) -> Welcome:
    """Prove to each other that both know the token. Raises Lost if this is not the head, ValueError if it refuses."""
    deadline_s = min(deadline_s, time.monotonic() + GREETING_S)
    greeting = _next(wire, deadline_s, "_greeting")
    nonce = secrets.token_hex(16)
    wire.post(
        "_hello",
        {"proof": proof(token, "member", str(greeting["nonce"]), member), "nonce": nonce, "member": member}
        | {"host": socket.gethostname(), "pid": os.getpid(), "time_s": time.time()},
    )
    try:
        answer = _next(wire, deadline_s, "_welcome", "_refused")
    except Lost as lost:
        raise Lost(f"{lost} (is it the head of another launch, with another token?)") from None
    if not secrets.compare_digest(str(answer["proof"]).encode(), proof(token, "head", nonce).encode()):
        raise Lost("it is not the head of this launch")
    if "reason" in answer:
        raise _Refused(f"the head of the launch refused {member}: {answer['reason']}; start each node once")
    lost_after_s = float(answer["lost_after_s"])
    prepare(wire.socket, lost_after_s)
    return Welcome(tuple(answer["members"]), lost_after_s, _clock_offset_s(wire, deadline_s))


def _clock_offset_s(wire: Wire, deadline_s: float) -> float:
    """The shortest round trip leaves the least doubt when the head looked at its clock."""
    trips = []
    for number in range(PINGS):
        start_s = time.monotonic()
        wire.post("_ping", {"id": number})
        answer = _next(wire, deadline_s, "_pong")
        end_s = time.monotonic()
        trips.append((end_s - start_s, float(answer["time_s"]) - (start_s + end_s) / 2))
    return min(trips)[1]


def _next(wire: Wire, deadline_s: float, *kinds: str) -> dict[str, Any]:
    """The next message, which must be of one of these kinds; events that come before it are kept. Raises Lost."""
    while time.monotonic() < deadline_s:
        wire.flush()
        select.select([wire.socket], [], [], min(TICK_S, max(0.0, deadline_s - time.monotonic())))
        found = None
        for kind, data in wire.receive():
            if found is None and kind in kinds and isinstance(data, dict):
                found = data
            elif kind in kinds or (kind.startswith("_") and kind != "_beat"):
                raise Lost("it is not the head of a launch")
            elif kind != "_beat":
                wire.unread.append((kind, data))
        if found is not None:
            return found
    raise Lost("connected, but nobody answered")
