"""What collectives measure where it is known what a link carries: hosts on a switch, every link limited both ways."""

import ctypes
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.cases.collectives import Options, cells
from bench.collectives import measure_collectives
from bench.record import read
from bench.summaries.collectives import busbw
from ddp.context import DistContext
from tests import ranks, two_hosts
from tests.two_hosts import INTERFACE, ip

RATE_BITS_PER_S = 50e6
PAYLOAD = 1448 / 1514
"""Of a full Ethernet frame without its check sum, as tbf counts it: 1500 bytes less 20 of IP and 32 of TCP, and 14."""
LIMIT = ["root", "tbf", "rate", f"{RATE_BITS_PER_S:.0f}bit", "burst", "80kb", "latency", "5ms"]
"""A queue of 5 ms, as a switch has: behind one of 50 ms a rank waits for what its neighbour's data waits in, and of
what the links carry 5 to 10 % are lost to all_reduce and send_recv of 8 MiB."""
NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of <sched.h>."""


@contextmanager
def switched_hosts(count: int) -> Iterator[list[str]]:
    """Names of network namespaces that are joined by a switch; they are gone afterwards, also after an error."""
    mark = secrets.token_hex(3)
    hosts, switch = [f"ringmark-{mark}{number}" for number in range(count)], f"ringmark-{mark}s"
    with ExitStack() as stack:
        for namespace in (switch, *hosts):
            ip("netns", "add", namespace)
            stack.callback(ip, "netns", "delete", namespace)
        ip("-netns", switch, "link", "add", "switch", "type", "bridge")
        ip("-netns", switch, "link", "set", "switch", "up")
        for number, host in enumerate(hosts):
            port = f"port{number}"
            ip("-netns", switch, "link", "add", port, "type", "veth", "peer", INTERFACE, "netns", host)
            ip("-netns", switch, "link", "set", port, "master", "switch", "up")
            ip("-netns", host, "address", "add", f"10.78.0.{number + 1}/24", "dev", INTERFACE)
            ip("-netns", host, "link", "set", INTERFACE, "up")
            ip("-netns", host, "link", "set", "lo", "up")
            for namespace, device in ((host, INTERFACE), (switch, port)):
                words = ["tc", "-netns", namespace, "qdisc", "add", "dev", device, *LIMIT]
                subprocess.run(words, check=True, capture_output=True, timeout=60)
        yield hosts


def enter(host: str) -> None:
    """Move this process into a host."""
    descriptor = os.open(f"/run/netns/{host}", os.O_RDONLY)
    assert ctypes.CDLL(None, use_errno=True).setns(descriptor, NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
    os.close(descriptor)
    os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE


def measure(ctx: DistContext, options: Options) -> None:
    measure_collectives(options, cells(options), ctx, {"device": "cpu"})


@pytest.mark.parametrize(
    ("count", "ops"),
    [
        (2, ("all_reduce", "broadcast", "send", "send_recv")),
        (3, ("all_reduce", "all_gather", "send_recv")),
        (4, ("all_reduce", "all_gather")),
    ],
)
def test_on_links_of_known_speed_busbw_is_what_a_link_carries(
    count: int, ops: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := two_hosts.missing_reason():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    join, best = ranks.process_group, dict.fromkeys(ops, 0.0)
    with switched_hosts(count) as hosts:

        def from_a_host(info: Any, **options: Any) -> Any:
            enter(hosts[info.rank])
            return join(info, **options)

        monkeypatch.setattr(ranks, "process_group", from_a_host)
        for attempt in range(8):  # a busy machine can only make it slower, so more attempts tell more of the links
            out, left = tmp_path / str(attempt), tuple(op for op in ops if best[op] < 0.95)
            sizes = {"min_bytes": "4M", "max_bytes": "4M"}
            options = Options(ops=left, ranks=count, block_s=0.05, rounds=1, out=out, **sizes)
            ranks.run_ranks(partial(measure, options=options), count)
            for record in read(out)[0]:
                share = (busbw(record) or 0.0) / (RATE_BITS_PER_S / 8 * PAYLOAD)
                print(f"{record.cell['op']} on {count} hosts: {share:.4f} of what a link carries")
                assert record.raw["wrong_elements"] == 0
                assert share < 1.05
                best[record.cell["op"]] = max(best[record.cell["op"]], share)
            if min(best.values()) > 0.95:
                break
    assert best == pytest.approx(dict.fromkeys(ops, 1.0), rel=0.05)
