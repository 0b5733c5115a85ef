"""Addresses and ports: what is told to others is really there, and really ours."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import addresses
from launch.addresses import candidates, interface_of
from launch.ports import HeldPort, holder
from tests.two_hosts import INTERFACE, Host, missing_reason, two_hosts

ROOT = Path(__file__).resolve().parent.parent
ASK = "from launch.addresses import *; import sys; print(*candidates(*sys.argv[1:]))"


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    reason = missing_reason()
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with two_hosts() as pair:
        yield pair


def said(host: Host, code: str, *words: str) -> str:
    process = host.run([sys.executable, "-c", code, *words], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.wait(timeout=20) == 0
    assert process.stdout is not None
    with process.stdout:
        return process.stdout.read().strip()


def test_candidates_are_addresses_of_this_machine() -> None:
    known = subprocess.run(["ip", "-brief", "address"], capture_output=True, text=True, check=True).stdout
    found = candidates()
    assert found
    for address in found:
        assert f" {address}/" in known
        assert interface_of(address) in known


def test_a_host_without_default_route_has_its_own_address_only(hosts: tuple[Host, Host]) -> None:
    for host in hosts:
        assert said(host, ASK) == host.address
        code = "from launch.addresses import *; import sys; print(interface_of(sys.argv[1]))"
        assert said(host, code, host.address) == INTERFACE


def test_bridges_of_containers_come_last_and_a_default_route_first(hosts: tuple[Host, Host]) -> None:
    with two_hosts() as (host, _):
        host.add_address("docker0", "10.0.0.1/24")
        host.add_address("aa0", "10.88.0.1/24")
        host.add_address("zz0", "10.99.0.1/24")
        subprocess.run(
            ["ip", "-netns", host.namespace, "route", "add", "default", "via", "10.99.0.2", "dev", "zz0"], check=True
        )
        subprocess.run(
            ["ip", "-netns", host.namespace, "address", "add", "fd77::1/64", "dev", "zz0", "nodad"], check=True
        )
        assert said(host, ASK).split() == ["10.99.0.1", "10.77.0.1", "10.88.0.1", "fd77::1", "10.0.0.1"]
        assert said(host, ASK, "docker0") == "10.0.0.1"
        host.link_down()
        assert host.address not in said(host, ASK).split()


def test_nothing_but_loopback_is_left_without_a_network(hosts: tuple[Host, Host]) -> None:
    with two_hosts() as (host, _):
        host.link_down()
        assert said(host, ASK) == "127.0.0.1"


def test_an_unknown_interface_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"expected a network interface .*, got 'ib7'; there are .*lo \(127\.0\.0\.1\)"
    ):
        candidates("ib7")
    with pytest.raises(ValueError, match=r"expected an address of this machine, got 203\.0\.113\.9; it has .*127"):
        interface_of("203.0.113.9")


def test_loopback_is_one_interface_for_all_its_addresses() -> None:
    assert interface_of("127.0.0.1") == interface_of("127.0.1.1") == "lo"
    assert candidates("lo")[0] == "127.0.0.1"


def test_many_addresses_are_all_read(hosts: tuple[Host, Host]) -> None:
    with two_hosts() as (host, _):
        for number in range(2, 80):
            subprocess.run(
                ["ip", "-netns", host.namespace, "address", "add", f"10.66.0.{number}/24", "dev", INTERFACE], check=True
            )
        assert len(said(host, ASK).split()) == 79
    assert addresses.IFREQ_BYTES * 64 < 79 * addresses.IFREQ_BYTES


def test_a_held_port_is_given_to_nobody_else() -> None:
    with HeldPort() as held:
        assert held.port > 0
        with pytest.raises(ValueError, match=f"expected a free port, got {held.port}"):
            HeldPort(port=held.port)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", held.port))
        # As torch's store does it: on all addresses, with the option that lets it.
        with socket.socket() as store:
            store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            store.bind(("", held.port))
            store.listen()
    HeldPort(port=held.port).close()


def test_torch_store_listens_on_a_held_port_and_on_a_given_listener() -> None:
    from torch.distributed import TCPStore

    with HeldPort() as held:
        store = TCPStore("127.0.0.1", held.port, is_master=True, wait_for_workers=False)
        store.set("key", "value")
        assert TCPStore("127.0.0.1", held.port, is_master=False).get("key") == b"value"
    held = HeldPort()
    store = TCPStore(
        "127.0.0.1", held.port, is_master=True, wait_for_workers=False, master_listen_fd=held.listener()
    )  # fmt: skip
    store.set("key", "other")
    assert TCPStore("127.0.0.1", held.port, is_master=False).get("key") == b"other"
    held.close()  # it is the store's now
    assert store.get("key") == b"other"
    with pytest.raises(ValueError, match="closed or given away"):
        held.listener()


def test_a_taken_port_is_refused_with_who_has_it() -> None:
    code = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 0));"
        "print(s.getsockname()[1], flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        found = holder(port)
        with pytest.raises(ValueError, match=rf"got {port}, which process {process.pid} \(.*python.* holds; choose"):
            HeldPort(port=port)
        process.kill()
    assert found is not None
    assert found[0] == process.pid
    assert holder(port) is None


def test_what_is_left_of_closed_connections_does_not_block_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()
            time.sleep(0.05)
    with HeldPort(port=port) as held:
        assert held.port == port


@pytest.mark.parametrize("port", [-1, 65536])
def test_an_impossible_port_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match=f"expected a port from 1 to 65535, got {port}"):
        HeldPort(port=port)


def test_an_address_of_another_machine_cannot_be_held() -> None:
    with pytest.raises(ValueError, match=r"expected an address of this machine, got 203\.0\.113\.9"):
        HeldPort("203.0.113.9")


def test_a_hundred_launches_at_once_hold_different_ports() -> None:
    held = [HeldPort() for _ in range(100)]
    assert len({each.port for each in held}) == 100
    for each in held:
        each.close()


def test_ipv6_ports_are_held_too() -> None:
    if "::1" not in [each.address for each in addresses.local()] or not shutil.which("ip"):
        pytest.skip("this machine has no IPv6")
    with HeldPort("::1") as held, socket.socket(socket.AF_INET6) as other, pytest.raises(OSError, match="in use"):
        other.bind(("::1", held.port))
