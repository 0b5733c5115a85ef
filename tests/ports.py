"""Ports for programs that have to be told one."""

import random
import socket
from contextlib import suppress


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on at this moment, and that systems do not hand out to connections."""
    found: set[int] = set()
    while len(found) < count:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.add(port)
    return sorted(found)
