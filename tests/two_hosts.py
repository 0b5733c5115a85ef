"""Two machines on this one: network namespaces joined by a cable that can be pulled.

with two_hosts() as (first, second):
    process = second.run([sys.executable, "-c", "..."])
    first.link_down()
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

INTERFACE = "eth0"


@dataclass(frozen=True)
class Host:
    """One of the two."""

    namespace: str
    address: str
    """IPv4, on `INTERFACE`."""

    def run(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
        """Start a program there; `options` are Popen's, text is on. The process id is the program's own."""
        return subprocess.Popen(["ip", "netns", "exec", self.namespace, *argv], text=True, **options)

    def link_down(self) -> None:
        """Pull the cable: nothing comes or goes any more, and nobody is told."""
        ip("-netns", self.namespace, "link", "set", INTERFACE, "down")

    def link_up(self) -> None:
        """Put it back."""
        ip("-netns", self.namespace, "link", "set", INTERFACE, "up")

    def add_address(self, interface: str, address: str) -> None:
        """Give it one more interface, which leads nowhere, with an address such as 10.9.9.1/24."""
        loose = f"{interface}-end"
        ip("-netns", self.namespace, "link", "add", interface, "type", "veth", "peer", "name", loose)
        ip("-netns", self.namespace, "address", "add", address, "dev", interface)
        for end in (interface, loose):
            ip("-netns", self.namespace, "link", "set", end, "up")


def missing_reason() -> str | None:
    """Why no namespaces can be made here, or None."""
    if not shutil.which("ip"):
        return "a test of two hosts needs ip: apt-get install iproute2"
    if os.geteuid() != 0:
        return "a test of two hosts needs root: it makes network namespaces"
    try:
        with two_hosts():
            return None
    except subprocess.CalledProcessError as error:
        return f"a test of two hosts needs network namespaces: {error.stderr.strip()}"


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nobody else; they are gone afterwards, also after an error."""
    mark = secrets.token_hex(3)
    hosts = Host(f"ringmark-{mark}a", "10.77.0.1"), Host(f"ringmark-{mark}b", "10.77.0.2")
    with ExitStack() as stack:
        for host in hosts:
            ip("netns", "add", host.namespace)
            stack.callback(ip, "netns", "delete", host.namespace)
        first, second = (host.namespace for host in hosts)
        ip("-netns", first, "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", second)
        for host in hosts:
            ip("-netns", host.namespace, "address", "add", f"{host.address}/24", "dev", INTERFACE)
            ip("-netns", host.namespace, "link", "set", "lo", "up")
            ip("-netns", host.namespace, "link", "set", INTERFACE, "up")
        yield hosts


def ip(*words: str) -> None:
    """Run ip; raises CalledProcessError."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=60)
