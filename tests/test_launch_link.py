"""How nodes agree on a plan, and what they say when the cable between them is pulled."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from launch.doors import Doors, try_doors
from launch.hub import Hub
from launch.link import Link, Plan
from tests.link_member import GONE, NAMES, ROOT, TOKEN, Events, hub, in_threads, killed, nothing_left, read_line
from tests.two_hosts import Host, missing_reason, two_hosts
from tests.waiting import wait_until

LOST_AFTER_S = 6


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


def joining(head: Hub, **options: Any) -> Callable[[str], Plan]:
    def join(name: str) -> Plan:
        with Link(head.endpoints, TOKEN, name, Events()) as link:
            plan = link.join(slots=2 if name == "n1" else 1, facts={"name": name}, **options)
            if plan.held is not None:
                assert plan.held.port == plan.master_port
                plan.held.close()
            return plan

    return join


def test_three_members_get_the_same_plan() -> None:
    with hub() as (head, events):
        plans = in_threads(joining(head))
        planned = events.wait_for("planned")[2]
    assert {plan.slots for plan in plans.values()} == {(2, 1, 1)}
    assert [plans[name].node_rank for name in NAMES] == [0, 1, 2]
    assert [plans[name].first_rank for name in NAMES] == [0, 2, 3]
    assert plans["n3"].world_size == 4
    assert plans["n2"].facts == ({"name": "n1"}, {"name": "n2"}, {"name": "n3"})
    assert plans["n2"].hosts == (socket.gethostname(),) * 3
    assert len({(plan.master_addr, plan.master_port) for plan in plans.values()}) == 1
    assert (plans["n1"].held is not None, plans["n2"].held) == (True, None)
    assert planned["master_port"] == plans["n1"].master_port


def test_one_member_alone_stays_on_loopback() -> None:
    with hub(("n1",)) as (head, _):
        assert [endpoint.rpartition(":")[0] for endpoint in head.endpoints] == ["127.0.0.1"]
        (plan,) = in_threads(joining(head), ("n1",)).values()
    assert (plan.master_addr, plan.address) == ("127.0.0.1", "127.0.0.1")


def test_a_restart_is_another_round_with_another_port() -> None:
    with hub() as (head, _):
        first = in_threads(joining(head))
        again = in_threads(joining(head))
        second = in_threads(joining(head, round_number=1))
    assert {str(error) for error in again.values()} == {"round 0 is over; start the launch again"}
    assert {plan.round for plan in second.values()} == {1}
    assert second["n1"].master_port != first["n1"].master_port


def test_a_port_that_was_asked_for_is_the_master_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with hub(("n1",)) as (head, _):
            (refused,) = in_threads(joining(head, port=port), ("n1",)).values()
    assert f"got {port}, which process {os.getpid()}" in str(refused)
    with hub(("n1",)) as (head, _):
        (plan,) = in_threads(joining(head, port=port), ("n1",)).values()
    assert plan.master_port == port


def test_a_member_that_is_missing_is_named_to_everyone() -> None:
    with hub(join_s=5) as (head, events):
        found = in_threads(joining(head), ("n1", "n3"))
        reason = events.wait_for("refused")[2]["reason"]
    assert {str(error) for error in found.values()} == {"2 of 3 nodes joined within 5 s; missing n2"}
    assert reason == "2 of 3 nodes joined within 5 s; missing n2"


def is_cut(head: Hub, link: Link) -> None:
    """The connection of a member breaks once it and another one wait for the third."""
    wait_until(lambda: len(head._joining._facts) == 2)
    link._wire.socket.shutdown(socket.SHUT_RDWR)


def test_a_member_that_is_lost_while_the_others_join_is_named() -> None:
    with hub() as (head, _):
        links = [Link(head.endpoints, TOKEN, name, Events()) for name in NAMES]
        with ExitStack() as stack:
            for link in links[:2]:
                stack.enter_context(link)
            links[2]._post("_join", {"round": 0, "slots": 1, "host": "h", "facts": {}, "doors": [], "word": ""})
            threading.Thread(target=lambda: is_cut(head, links[2])).start()
            found = in_threads(lambda name: links[NAMES.index(name)].join(slots=1), ("n2",))
            links[2].stop()
    assert "n3 was lost while the nodes joined: connection closed" in str(found["n2"])


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    reason = missing_reason()
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with two_hosts() as pair:
        pair[0].add_address("aa0", "10.88.0.1/24")  # the second host has no way there
        subprocess.run(
            ["ip", "-netns", pair[0].namespace, "route", "add", "default", "via", "10.88.0.2", "dev", "aa0"], check=True
        )
        yield pair


def start(host: Host, *words: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "tests.link_member", TOKEN, *words]
    return host.run(argv, cwd=ROOT, stdout=subprocess.PIPE)


@contextmanager
def launch_on(hosts: tuple[Host, Host], *options: str) -> Iterator[list["subprocess.Popen[str]"]]:
    """A head and two members that join -> those three processes."""
    head = start(hosts[0], "--head", str(LOST_AFTER_S), "n1", "n2")
    with killed(head):
        endpoints = read_line(head)
        members = [start(host, name, "--join", *options, *endpoints) for host, name in zip(hosts, NAMES, strict=False)]
        with killed(*members):
            yield [head, *members]


def next_of(process: "subprocess.Popen[str]", kind: str) -> Any:
    while (event := read_line(process))[-2] != kind:
        pass
    return event


def test_the_ranks_meet_at_an_address_that_all_can_reach(hosts: tuple[Host, Host]) -> None:
    code = "from launch.addresses import candidates; print(candidates()[0])"
    first = hosts[0].run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert first.communicate(timeout=20)[0].strip() == "10.88.0.1"
    with launch_on(hosts) as (_, one, two):
        assert read_line(one) == ["plan", [0, hosts[0].address, hosts[0].address]]
        assert read_line(two) == ["plan", [1, hosts[0].address, hosts[1].address]]


def test_nodes_that_cannot_reach_each_other_are_named_on_both(hosts: tuple[Host, Host]) -> None:
    with launch_on(hosts, "--interface=aa0") as (head, one, two):
        expected = "n2 cannot reach n1 at any of 10.88.0.1 (aa0): network is unreachable; check the network"
        assert read_line(one)[1].startswith(expected)
        assert read_line(two)[1].startswith(expected)
        assert next_of(head, "refused")[2]["reason"].startswith(expected)


@pytest.mark.parametrize("pulled", [0, 1])
def test_when_the_cable_is_pulled_both_sides_say_so(hosts: tuple[Host, Host], pulled: int) -> None:
    with launch_on(hosts) as (head, _, two):
        next_of(head, "hello"), next_of(head, "hello")
        hosts[pulled].link_down()
        start_s = time.monotonic()
        try:
            assert next_of(two, "lost")[1]["reason"]
            assert next_of(head, "lost")[0] == "n2"
            assert time.monotonic() - start_s < LOST_AFTER_S + 12
        finally:
            hosts[pulled].link_up()
            if pulled == 0:
                subprocess.run(["ip", "-netns", hosts[0].namespace, "route", "replace", "10.77.0.0/24", "dev", "eth0"])


def test_a_short_break_loses_nobody(hosts: tuple[Host, Host]) -> None:
    with launch_on(hosts) as (head, _, two):
        next_of(head, "hello"), next_of(head, "hello")
        hosts[1].link_down()
        time.sleep(0.5)
        hosts[1].link_up()
        time.sleep(LOST_AFTER_S + 1)
        assert two.poll() is None
        two.kill()
        assert next_of(head, "lost") in [["n2", "lost", {"reason": reason}] for reason in GONE]


def test_another_machine_behind_the_same_address_is_not_taken_for_the_first() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"welcome")).start()
        doors = [{"address": "127.0.0.1", "probe": server.getsockname()[1]}]
        assert try_doors(doors, "welcome!!")[0][0] == "another machine answered"


def test_doors_that_are_closed_or_silent_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.close()
        doors = [{"address": "127.0.0.1", "probe": each} for each in (silent.getsockname()[1], port)]
        start_s = time.monotonic()
        assert [error for error, _ in try_doors(doors, "word", timeout_s=0.3)] == ["timed out", "connection refused"]
        assert time.monotonic() - start_s < 5


def test_doors_hold_one_port_and_let_go_of_the_rest() -> None:
    doors = Doors("word", alone=False)
    described = doors.describe()
    kept = doors.keep(described[0]["address"])
    assert kept.port == described[0]["port"]
    kept.close()
