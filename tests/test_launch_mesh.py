"""Connections between nodes: real sockets, a stopped process, network namespaces with slow and cut cables."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.checks import network
from launch.checks.finding import Facts, Finding
from launch.doctor import DoctorOptions, Report, examine, measured_rates
from launch.doctor_crew import Crew
from launch.mesh import TOKEN_BYTES, Listener, reach, rounds, stream
from launch.stacks import process_state
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "0123456789abcdef" * 2
NAMES = ("a", "b", "c")


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener(["127.0.0.1", "127.0.0.2"], TOKEN)
    yield listener
    listener.close()


@given(st.integers(0, 12), st.integers(1, 30))
def test_rounds_pair_everyone_with_everyone_both_ways_and_nobody_twice_at_once(nodes: int, limit: int) -> None:
    found = rounds(nodes, limit)
    for pairs in found:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
    pairs_of = [pair for pairs in found for pair in pairs]
    assert len(pairs_of) == len(set(pairs_of))
    assert {(other, one) for one, other in pairs_of} == set(pairs_of)
    assert len(found) <= limit + 1
    if limit >= 2 * nodes:
        assert {frozenset(pair) for pair in pairs_of} == {frozenset(pair) for pair in combinations(range(nodes), 2)}


def test_the_first_endpoint_that_answers_is_taken_and_the_others_say_why_not(listener: Listener) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()
    found = reach([nobody, listener.endpoints[1], listener.endpoints[0]], TOKEN)
    assert found.endpoint == listener.endpoints[1]
    assert found.errors == ("127.0.0.1: connection refused",)
    assert found.round_trip_s is not None
    assert 0 < found.round_trip_s < 3
    assert found.ahead_s is not None
    assert abs(found.ahead_s) < 1


def test_clocks_are_compared_by_what_each_says() -> None:
    listener = Listener(["127.0.0.1"], TOKEN, clock=lambda: time.time() + 20)
    found = reach(listener.endpoints, TOKEN, clock=lambda: time.time() - 5)
    listener.close()
    assert found.ahead_s == pytest.approx(25, abs=1)


def test_who_does_not_know_the_secret_is_not_served_and_disturbs_nobody(listener: Listener) -> None:
    assert reach(listener.endpoints, "f" * TOKEN_BYTES).endpoint is None
    with socket.create_connection(listener.endpoints[0]) as stranger:
        stranger.sendall(os.urandom(4096))
        assert reach(listener.endpoints, TOKEN).endpoint == listener.endpoints[0]


def test_a_stopped_process_accepts_but_does_not_answer() -> None:
    code = f"""
import time
from launch.mesh import Listener
print(Listener(["127.0.0.1"], "{TOKEN}").endpoints[0][1], flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        endpoint = ("127.0.0.1", int(process.stdout.readline()))
        assert reach([endpoint], TOKEN).endpoint == endpoint
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: process_state(process.pid) == "stopped")
        stopped = reach([endpoint], TOKEN, timeout_s=0.3)
        process.kill()
    assert (stopped.endpoint, stopped.errors) == (None, ("127.0.0.1: no answer",))


def test_a_stream_arrives_and_a_closed_listener_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    listener = Listener(["127.0.0.1"], TOKEN)
    assert stream(listener.endpoints[0], TOKEN, 0.05) > 1e6
    listener.close()
    with pytest.raises(OSError, match="refused"):
        stream(listener.endpoints[0], TOKEN, 0.05)
    wait_until(lambda: not set(threading.enumerate()) - before)


def nodes(*hostnames: str) -> list[dict[str, Any]]:
    """What the judges of the network know of nodes a, b, ..."""
    return [{"member": member, "node": "abcdef"[member], "hostname": name} for member, name in enumerate(hostnames)]


def one(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_names_that_do_not_resolve_or_mean_loopback() -> None:
    found = network.resolve(["localhost", "nobody.invalid"])
    assert found["nobody.invalid"] == []
    assert {"127.0.0.1", "::1"} & set(found["localhost"])
    facts = nodes("localhost", "nobody.invalid")
    findings = network.judge_names(facts, {0: found, 1: {"localhost": ["10.0.0.1"]}})
    assert [(each.level, each.node) for each in findings] == [("warning", "a"), ("warning", "a")]
    assert "own name localhost" in findings[0].sentence
    assert "expected nobody.invalid to resolve" in findings[1].sentence
    assert one(network.judge_names(facts[:1], {0: {"localhost": ["127.0.0.1"]}})).level == "ok"


def tried(ahead_s: float | None = 0.0, errors: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"endpoint": None if errors else ("10.0.0.1", 1), "errors": errors, "ahead_s": ahead_s}


def test_the_pair_without_a_connection_is_named_and_the_node_that_fails_with_most() -> None:
    lost = tried(None, ("10.0.0.3: no answer",))
    pair = {0: {1: lost, 2: tried()}, 1: {0: tried(), 2: tried()}, 2: {0: tried(), 1: tried()}}
    finding = one(network.judge_reach(nodes("h", "h", "h"), pair))
    assert (finding.level, finding.node, finding.bad_node) == ("error", "a, b", False)
    assert "expected a to connect to b, got 10.0.0.3: no answer" in finding.sentence
    cut_off = {0: {1: tried(), 2: lost}, 1: {0: tried(), 2: lost}, 2: {0: tried(), 1: tried()}}
    assert {(each.node, each.bad_node) for each in network.judge_reach(nodes("h", "h", "h"), cut_off)} == {("c", True)}


@pytest.mark.parametrize(("skew_s", "level"), [(-4.0, "ok"), (6.0, "warning"), (-16.0, "error")])
def test_the_clock_that_is_off_is_named(skew_s: float, level: str) -> None:
    ahead = [0.0, skew_s, 0.0]
    mesh = {a: {b: tried(ahead[b] - ahead[a]) for b in range(3) if b != a} for a in range(3)}
    finding = one(network.judge_clocks(nodes("h", "h", "h"), mesh))
    assert (finding.level, finding.bad_node) == (level, level == "error")
    assert finding.node == ("" if level == "ok" else "b")
    two = {0: {1: tried(skew_s)}, 1: {0: tried(-skew_s)}}
    pair = one(network.judge_clocks(nodes("h", "h"), two))
    assert (pair.level, pair.bad_node) == (level, False)


def test_a_slow_pair_is_named_and_a_node_that_is_slow_with_all() -> None:
    def judged(slow: set[frozenset[int]], members: int, expected_gbit: float | None = None) -> list[Finding]:
        pairs = {
            (a, b): 1e9 if frozenset((a, b)) in slow else 9e9 for a in range(members) for b in range(members) if a != b
        }
        return network.judge_rates(nodes(*["h"] * members), pairs, expected_gbit)

    pair = one(judged({frozenset((0, 2))}, 4))
    assert (pair.level, pair.node, pair.bad_node) == ("warning", "a, c", False)
    assert "got 1;" in pair.sentence
    node = judged({frozenset((0, 2)), frozenset((1, 2))}, 3)
    assert {(each.level, each.node, each.bad_node) for each in node} == {("error", "c", True)}
    assert one(judged({frozenset((0, 1))}, 2)).level == "ok"
    assert one(judged({frozenset((0, 1))}, 2, expected_gbit=5)).level == "error"
    broken = network.judge_rates(nodes("h", "h", "h"), {(0, 1): None, (0, 2): 9e9, (1, 2): 9e9}, None)
    assert one(broken).node == "a, b"


def test_what_was_slow_once_is_tried_again() -> None:
    """A receiver whose CPU was busy for a moment is no slow link; a stream that broke is told all the same."""
    told: dict[tuple[int, int], list[float | None]] = {(0, 1): [9e9], (1, 0): [1e9, 8e9], (1, 2): [9e9], (2, 1): [9e9]}
    told |= {(0, 2): [1e9, 5e8, 2e9], (2, 0): [None, 9e9]}
    orders = []

    def ask(order: Facts, timeout_s: float) -> dict[int, Facts]:
        orders.append(order["pairs"])
        return {one: {"to": other, "rate": told[one, other].pop(0)} for one, other in order["pairs"]}

    rates = measured_rates(ask, [0, 1, 2], DoctorOptions())
    assert rates == {(0, 1): 9e9, (1, 0): 8e9, (1, 2): 9e9, (2, 1): 9e9, (0, 2): 2e9, (2, 0): None}
    assert sorted(orders[6:8]) == [[(0, 2)], [(1, 0)]]
    assert orders[8:] == [[(0, 2)]]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def shape(namespace: str, device: str, mbit: int) -> None:
    """Let a cable carry so much from this end. A burst smaller than a segment of 64 kB would let nothing through."""
    rate = ["tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "100ms"]
    subprocess.run(
        ["ip", "netns", "exec", namespace, "tc", "qdisc", "replace", "dev", device, "root", *rate], check=True
    )


@pytest.fixture(scope="module")
def triangle() -> Iterator[list[str]]:
    """Three hosts, each with a cable to each other of 400 Mbit/s: a to b is device ab at a's end, and ba at b's."""
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("network namespaces need root")
    hosts = [f"rm{os.getpid()}{name}" for name in NAMES]
    with ExitStack() as stack:
        for host in hosts:
            ip("netns", "add", host)
            stack.callback(ip, "netns", "delete", host)
            ip("-netns", host, "link", "set", "lo", "up")
        for net, (one, other) in enumerate(combinations(range(3), 2)):
            ends = [(one, NAMES[one] + NAMES[other]), (other, NAMES[other] + NAMES[one])]
            (_, device), (_, peer) = ends
            ip("-netns", hosts[one], "link", "add", device, "type", "veth", "peer", peer, "netns", hosts[other])
            for host, name in ends:
                ip("-netns", hosts[host], "address", "add", f"10.77.{net}.{host + 1}/24", "dev", name)
                ip("-netns", hosts[host], "link", "set", name, "up")
                shape(hosts[host], name, 400)
        yield hosts


def examined(hosts: list[str], run_dir: Path) -> Report:
    commands = tuple(
        ("ip", "netns", "exec", host, sys.executable, "-m", "launch.doctor_node", str(member))
        for member, host in enumerate(hosts)
    )
    options = DoctorOptions(run_dir=run_dir, import_torch=False, stream_s=0.5)
    return examine(Crew(commands=commands, names=NAMES), options, os.environ)


def test_the_slow_pair_is_named_then_the_slow_node_then_the_one_cut_off(triangle: list[str], tmp_path: Path) -> None:
    def of(check: str, report: Report) -> list[tuple[str, str, bool]]:
        return [(each.level, each.node, each.bad_node) for each in report.findings if each.check == check]

    whole = examined(triangle, tmp_path)
    assert of("connections", whole) == [("ok", "", False)]
    assert of("bandwidth", whole) == [("ok", "", False)], whole.gbit
    assert of("clocks", whole) == [("ok", "", False)]
    assert of("shared folder", whole) == [("ok", "", False)]

    shape(triangle[0], "ac", 40)
    pair = examined(triangle, tmp_path)
    assert of("bandwidth", pair) == [("warning", "a, c", False)], pair.gbit
    assert any("from a to c" in each.sentence for each in pair.findings), (pair.findings, pair.gbit)
    assert (pair.gbit["c > a"] or 0) > 5 * (pair.gbit["a > c"] or 1), pair.gbit  # not held up by what a still sends
    assert pair.exclude == ()

    shape(triangle[2], "cb", 40)
    node = examined(triangle, tmp_path)
    assert set(of("bandwidth", node)) == {("error", "c", True)}, node.gbit
    assert node.exclude == ("c",)

    for device in ("ca", "cb"):
        ip("-netns", triangle[2], "link", "set", device, "down")
    cut = examined(triangle, tmp_path)
    assert set(of("connections", cut)) == {("error", "c", True)}
    assert cut.exclude == ("c",)
    assert not list(tmp_path.iterdir())
