"""The addresses of this machine at which another one may reach it, by what the kernel says: no names are resolved."""

import array
import fcntl
import ipaddress
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
SIOCGIFCONF, SIOCGIFFLAGS = 0x8912, 0x8913
IFREQ_BYTES = 40
"""Size of the kernel's struct ifreq on 64-bit Linux: 16 bytes of name, then an address of 24."""
IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40
LINK_LOCAL, TENTATIVE, DUPLICATE = 0x20, 0x40, 0x08
"""Scope and flags in /proc/net/if_inet6: valid on one cable only, not yet checked, somebody else's."""
INTERNAL = re.compile(r"(docker|virbr|veth|br-|cni|flannel|cali|lxc|vmnet|vboxnet|podman)")
"""Names of interfaces that lead to this machine's own containers; the same address may be on every machine."""


@dataclass(frozen=True)
class Address:
    """One address of one interface."""

    interface: str
    address: str
    flags: int
    """The interface's, as SIOCGIFFLAGS gives them."""

    @property
    def is_loopback(self) -> bool:
        """Whether it leads nowhere but to this machine."""
        return bool(self.flags & IFF_LOOPBACK)


def candidates(interface: str | None = None) -> list[str]:
    """Addresses that other machines may connect to, best first: IPv4 before IPv6, routed before others.

    Those of one interface only if one is named. Loopback if there is nothing else. Raises ValueError, naming the
    interfaces there are, for one that does not exist or has no address.
    """
    there = [each for each in local() if each.flags & IFF_UP]
    if interface is not None:
        chosen = [each for each in there if each.interface == interface]
        if not chosen:
            known = ", ".join(f"{name} ({address})" for name, address in _by_interface(there).items())
            raise ValueError(f"expected a network interface with an address, got {interface!r}; there are {known}")
    else:
        chosen = [each for each in there if not each.is_loopback]
    routes = _routes()
    found = sorted(chosen, key=lambda each: _rank(each, routes))
    return list(dict.fromkeys(each.address for each in found)) or [LOOPBACK]


def interface_of(address: str) -> str:
    """Name of the interface that has an address, for GLOO_SOCKET_IFNAME. Raises ValueError if none has it."""
    wanted = ipaddress.ip_address(address)
    there = local()
    for each in there:
        if ipaddress.ip_address(each.address) == wanted or (each.is_loopback and wanted.is_loopback):
            return each.interface
    known = ", ".join(each.address for each in there)
    raise ValueError(f"expected an address of this machine, got {address}; it has {known}")


def local() -> list[Address]:
    """All addresses of this machine but IPv6's link-local ones, which need an interface to mean anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        pairs = [*_ipv4(probe), *_ipv6()]
        return [Address(name, address, _flags(probe, name)) for name, address in pairs]


def _ipv4(probe: socket.socket) -> list[tuple[str, str]]:
    size_bytes = IFREQ_BYTES * 64
    while True:
        buffer = array.array("B", bytes(size_bytes))
        request = struct.pack("iP", size_bytes, buffer.buffer_info()[0])
        filled_bytes = struct.unpack("iP", fcntl.ioctl(probe, SIOCGIFCONF, request))[0]
        if filled_bytes + IFREQ_BYTES <= size_bytes:  # a full buffer may have cut some off
            break
        size_bytes *= 2
    data = buffer.tobytes()
    entries = [data[start : start + IFREQ_BYTES] for start in range(0, filled_bytes, IFREQ_BYTES)]
    # An alias such as eth0:1 is an address of eth0.
    return [
        (entry[:16].split(b"\0")[0].decode().split(":")[0], socket.inet_ntop(socket.AF_INET, entry[20:24]))
        for entry in entries
    ]


def _ipv6() -> list[tuple[str, str]]:
    found = []
    for line in _lines("/proc/net/if_inet6"):
        digits, _, _, scope, flags, name = line.split()
        if int(scope, 16) != LINK_LOCAL and not int(flags, 16) & (TENTATIVE | DUPLICATE):
            found.append((name, socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))))
    return found


def _flags(probe: socket.socket, name: str) -> int:
    try:
        answer = fcntl.ioctl(probe, SIOCGIFFLAGS, struct.pack("16s24x", name.encode()))
    except OSError:  # it has just gone
        return 0
    return int(struct.unpack("16sH22x", answer)[1])


def _routes() -> dict[str, bool]:
    """Interfaces that a route leads to, and whether one of their routes is a default."""
    found: dict[str, bool] = {}
    for line in _lines("/proc/net/route")[1:]:
        name, destination = line.split()[:2]
        found[name] = found.get(name, False) or int(destination, 16) == 0
    for line in _lines("/proc/net/ipv6_route"):
        fields = line.split()
        found[fields[-1]] = found.get(fields[-1], False) or (int(fields[0], 16) == 0 and fields[1] == "00")
    return found


def _rank(each: Address, routes: dict[str, bool]) -> tuple[bool, bool, bool, int]:
    """What comes first sorts first; a bridge of containers comes after everything that may lead to another machine."""
    route = routes.get(each.interface)
    return (
        INTERNAL.match(each.interface) is not None,
        ":" in each.address,
        not each.flags & IFF_RUNNING,
        2 if route is None else 1 - route,
    )


def _by_interface(there: list[Address]) -> dict[str, str]:
    return {each.interface: each.address for each in reversed(there)}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # a kernel without IPv6
        return []
