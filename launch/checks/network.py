"""Between the nodes: names, connections both ways, clocks, and the slow pair."""

import ipaddress
import socket
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from launch.checks.finding import Facts, Finding, Level, ok

SKEW_WARNING_S, SKEW_ERROR_S = 5.0, 15.0
"""torch's rendezvous takes a node for dead whose clock is 15 s behind."""
SLOW = 0.5
"""A pair is slow below this part of the usual rate."""
RESOLVE_TIMEOUT_S = 5.0
Mesh = Mapping[int, Mapping[int, Mapping[str, Any]]]
"""By member and other member: endpoint, errors, ahead_s, as launch.mesh.Reach says."""
Rates = Mapping[tuple[int, int], float | None]
"""By sender and receiver: bit/s, None if the stream broke."""


def resolve(names: Sequence[str]) -> dict[str, list[str]]:
    """Addresses of host names, all asked at once; none where there is no answer in time."""
    pool = ThreadPoolExecutor(max(1, len(names)))
    answers = {name: pool.submit(socket.getaddrinfo, name, None, type=socket.SOCK_STREAM) for name in names}
    found: dict[str, list[str]] = {}
    for name, answer in answers.items():
        try:
            found[name] = sorted({str(entry[4][0]) for entry in answer.result(RESOLVE_TIMEOUT_S)})
        except (OSError, UnicodeError, TimeoutError):
            found[name] = []
    pool.shutdown(wait=False, cancel_futures=True)
    return found


def judge_names(nodes: Sequence[Facts], resolved: Mapping[int, Mapping[str, Sequence[str]]]) -> list[Finding]:
    """Host names as each node resolves them. ringmark itself uses addresses; what else runs may not."""
    findings = []
    for facts in nodes:
        answers = resolved.get(facts["member"], {})
        own = answers.get(facts["hostname"], ())
        if len(nodes) > 1 and own and all(ipaddress.ip_address(each.partition("%")[0]).is_loopback for each in own):
            sentence = (
                f"expected the node's own name {facts['hostname']} to mean an address that others reach, got {own[0]}; "
                "set GLOO_SOCKET_IFNAME, or correct /etc/hosts"
            )
            findings.append(Finding(level="warning", check="names", node=facts["node"], sentence=sentence))
        missing = [name for name, addresses in answers.items() if not addresses]
        if missing:
            sentence = (
                f"expected {', '.join(missing)} to resolve, got no address; "
                "correct /etc/hosts or the DNS, or use addresses only"
            )
            findings.append(Finding(level="warning", check="names", node=facts["node"], sentence=sentence))
    return findings or [ok("names", "every node's name resolves on every node")]


def judge_reach(nodes: Sequence[Facts], mesh: Mesh) -> list[Finding]:
    """Connections, both ways; a node that most others fail with is the one to blame."""
    names = {facts["member"]: facts["node"] for facts in nodes}
    broken: dict[tuple[int, int], str] = {}
    for one, others in mesh.items():
        for other, tried in others.items():
            if tried["endpoint"] is None:
                broken[one, other] = "; ".join(tried["errors"]) or "it listens on no address"
    blamed = _blamed(set(broken), set(names))
    findings = []
    for (one, other), errors in broken.items():
        sentence = (
            f"expected {names[one]} to connect to {names[other]}, got {errors}; "
            "check firewall, routes and cables between the two"
        )
        node = next((names[each] for each in (one, other) if each in blamed), f"{names[one]}, {names[other]}")
        bad = bool({one, other} & blamed)
        findings.append(Finding(level="error", check="connections", node=node, sentence=sentence, bad_node=bad))
    count = len(names) * (len(names) - 1)
    return findings or [ok("connections", f"{count} between {len(names)} nodes, both ways")]


def _blamed(broken: set[tuple[int, int]], members: set[int]) -> set[int]:
    """Members that fail with more than half of the others, if there are at least two others."""
    failing = {one: {b if a == one else a for a, b in broken if one in (a, b)} for one in members}
    return {one for one, others in failing.items() if len(members) > 2 and len(others) > (len(members) - 1) / 2}


def judge_clocks(nodes: Sequence[Facts], mesh: Mesh) -> list[Finding]:
    """How far each clock is from the others', by the median of what they measured."""
    names = {facts["member"]: facts["node"] for facts in nodes}
    # A clock agrees with itself: without that, of three nodes the two good ones would be thought half wrong each.
    seen: dict[int, list[float]] = {member: [0.0] if len(names) > 2 else [] for member in names}
    for others in mesh.values():
        for other, tried in others.items():
            if tried["ahead_s"] is not None and other in seen:
                seen[other].append(tried["ahead_s"])
    ahead = {member: statistics.median(values) for member, values in seen.items() if values}
    if not ahead:
        return []
    findings: list[Finding] = []
    for member, offset_s in ahead.items():
        if abs(offset_s) > SKEW_WARNING_S and not (len(names) == 2 and findings):  # a pair is told once
            direction = "ahead of" if offset_s > 0 else "behind"
            sentence = (
                f"expected clocks within {SKEW_WARNING_S:g} s, got {names[member]} {abs(offset_s):.1f} s {direction} "
                f"{'the other node' if len(names) == 2 else 'the others'}; start chrony or ntpd there"
            )
            late, alone = abs(offset_s) > SKEW_ERROR_S, len(names) > 2
            level: Level = "error" if late else "warning"
            node = names[member] if alone else ", ".join(names.values())
            bad = late and alone
            findings.append(Finding(level=level, check="clocks", node=node, sentence=sentence, bad_node=bad))
    return findings or [ok("clocks", f"within {max(map(abs, ahead.values())):.3f} s of each other")]


def judge_rates(nodes: Sequence[Facts], rates: Rates, expected_gbit: float | None) -> list[Finding]:
    """The slow pair. The usual rate is the median of each node's best, so that one slow node does not lower it."""
    names = {facts["member"]: facts["node"] for facts in nodes}
    slowest = _slowest(rates)
    if not slowest:
        return []
    usual, least = _usual(slowest), least_gbit(rates, expected_gbit)
    slow = {pair: found for pair, found in slowest.items() if found[0] < least}
    best = _best(slowest)
    blamed = {
        member
        for member in best
        if len(nodes) > 2 and best[member] < least and any(best[other] >= least for other in best)
    }
    findings = []
    for pair, (gbit, (one, other)) in slow.items():
        culprits = sorted(pair & blamed)
        sentence = (
            f"expected at least {least:.3g} Gbit/s from {names[one]} to {names[other]}"
            f"{'' if expected_gbit is not None else f' ({usual:.3g} is usual here)'}, "
            f"got {gbit:.3g}; check the link's speed, its errors and what else uses it"
        )
        node = ", ".join(names[member] for member in culprits or sorted(pair))
        level: Level = "error" if culprits or expected_gbit is not None else "warning"
        findings.append(Finding(level=level, check="bandwidth", node=node, sentence=sentence, bad_node=bool(culprits)))
    lowest, highest = min(rate for rate, _ in slowest.values()), max(rate for rate, _ in slowest.values())
    return findings or [ok("bandwidth", f"{lowest:.3g} to {highest:.3g} Gbit/s between two nodes (one TCP stream)")]


def least_gbit(rates: Rates, expected_gbit: float | None) -> float:
    """Below what a rate is slow, Gbit/s: what the user expects, else a part of the usual; 0 for a single pair."""
    slowest = _slowest(rates)
    if expected_gbit is not None:
        return expected_gbit
    return SLOW * _usual(slowest) if len(slowest) > 1 else 0.0


def _slowest(rates: Rates) -> dict[frozenset[int], tuple[float, tuple[int, int]]]:
    """Gbit/s of each pair in its slower direction, and that direction as (sender, receiver)."""
    slowest: dict[frozenset[int], tuple[float, tuple[int, int]]] = {}
    for direction, rate in rates.items():
        found = ((rate or 0.0) / 1e9, direction)
        slowest[frozenset(direction)] = min(found, slowest.get(frozenset(direction), found))
    return slowest


def _best(slowest: Mapping[frozenset[int], tuple[float, tuple[int, int]]]) -> dict[int, float]:
    """Gbit/s of each member with the one with which it is fastest."""
    best: dict[int, float] = {}
    for pair, (gbit, _) in slowest.items():
        for member in pair:
            best[member] = max(gbit, best.get(member, 0.0))
    return best


def _usual(slowest: Mapping[frozenset[int], tuple[float, tuple[int, int]]]) -> float:
    return statistics.median(_best(slowest).values())
