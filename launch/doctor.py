"""`ringmark doctor`: is this machine, or every node of this job, fit to train?"""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from launch.argv import parse
from launch.checks import gpus, machine, network, software, storage, variables
from launch.checks.finding import Facts, Finding
from launch.doctor_crew import Crew, Nodes, crew_of
from launch.exit_codes import DONE, FAILED
from launch.mesh import TOKEN_BYTES, rounds

Ask = Callable[[Facts, float], Mapping[int, Facts]]
"""An order to all nodes and seconds -> the answer of each member that gave one in time."""
FORMAT = 1
MOST_ROUNDS = 8
MORE_TRIES = 2
ORDER = ("error", "warning", "ok")
COLOURS = {"error": "\x1b[31m", "warning": "\x1b[33m", "ok": "\x1b[32m"}


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What is checked, and against what. Inside a SLURM job all its nodes are looked at."""

    json: Path | None = None
    """File for everything that was found out, as JSON."""
    nodes: Literal["all", "this"] = "all"
    """All nodes of the SLURM job, or this machine only."""
    run_dir: Path = Path("runs")
    """Folder that the run will write to."""
    gpus: int | None = None
    """GPUs that each node should have; by default what its job was given."""
    cpus: int | None = None
    """CPUs that each node should have; by default what the job asked for each task."""
    interface: str | None = None
    """Network interface between the nodes; by default any whose address all can connect to."""
    expect_gbit: float | None = None
    """Gbit/s that one TCP stream should reach between any two nodes; by default half of what is usual among them."""
    stream_s: float = 0.3
    """Seconds of each measurement of bandwidth; 0 is none."""
    import_torch: bool = True
    """Whether torch is imported on each node, to see its devices."""
    timeout_s: float = 60.0
    """How long a node may take to answer."""

    def __post_init__(self) -> None:
        for name in ("gpus", "cpus", "expect_gbit", "stream_s"):
            value = getattr(self, name)
            if value is not None and value < 0:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"expected {flag} of at least 0, got {value}; leave it out for the default")
        if not self.timeout_s > 0:
            raise ValueError(f"expected --timeout-s above 0, got {self.timeout_s}; try 60")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found out, and what it means."""

    nodes: tuple[Facts, ...]
    findings: tuple[Finding, ...]
    """The worst first."""
    mesh: Mapping[int, Any]
    """What each node said of its connections, by member."""
    gbit: Mapping[str, float | None]
    """Gbit/s of one stream, by `n1 > n2`; None if it broke."""

    @property
    def exclude(self) -> tuple[str, ...]:
        """Names of the nodes that a job is better off without."""
        return tuple(sorted({finding.node for finding in self.findings if finding.bad_node}))


def examine(crew: Crew, options: DoctorOptions, environ: Mapping[str, str]) -> Report:
    """Look at all nodes and at what lies between them."""
    order = {
        "do": "facts",
        "token": secrets.token_hex(TOKEN_BYTES // 2),
        "mark": secrets.token_hex(8),
        "listen": len(crew.names) > 1,
        "run_dir": str(options.run_dir.absolute()),
        "interface": options.interface,
        "import_torch": options.import_torch,
        "import_timeout_s": 0.75 * options.timeout_s,
    }
    nodes = Nodes(crew, environ)
    try:
        told = nodes.ask(order, options.timeout_s)
        facts = [{**told[member], "node": crew.names[member]} for member in sorted(told)]
        around = [{key: each[key] for key in ("member", "hostname", "endpoints")} for each in facts]
        met = nodes.ask({"do": "connect", "nodes": around}, options.timeout_s) if facts else {}
        rates = measured_rates(nodes.ask, sorted(met), options)
    finally:
        nodes.close()
    mesh = {member: dict(answer["reached"]) for member, answer in met.items()}
    findings = [*_silent(crew, nodes.silent), *_judged(facts, options, crew.asked)]
    if facts:
        resolved = {member: answer["resolved"] for member, answer in met.items()}
        findings += network.judge_names(facts, resolved)
    if len(facts) > 1:
        findings += network.judge_reach(facts, mesh)
        findings += network.judge_clocks(facts, mesh)
        findings += storage.judge_shared(facts, {member: answer["unseen"] for member, answer in met.items()})
        findings += network.judge_rates(facts, rates, options.expect_gbit)
    names = crew.names
    return Report(
        nodes=tuple(facts),
        findings=tuple(sorted(findings, key=lambda finding: ORDER.index(finding.level))),
        mesh=mesh,
        gbit={f"{names[one]} > {names[other]}": rate and rate / 1e9 for (one, other), rate in rates.items()},
    )


def measured_rates(ask: Ask, members: Sequence[int], options: DoctorOptions) -> dict[tuple[int, int], float | None]:
    """bit/s by sender and receiver. What looks slow is tried twice more, and the best counts: a CPU may be busy."""
    if not options.stream_s or len(members) < 2:
        return {}
    plan = [[(members[one], members[other]) for one, other in pairs] for pairs in rounds(len(members), MOST_ROUNDS)]
    rates = _streamed(ask, plan, options)
    least = 1e9 * network.least_gbit(rates, options.expect_gbit)
    for _ in range(MORE_TRIES):
        slow = {pair for pair, rate in rates.items() if rate is not None and rate < least}
        again = _streamed(ask, [pairs for each in plan if (pairs := [pair for pair in each if pair in slow])], options)
        rates |= {pair: rate and max(rate, rates[pair] or 0.0) for pair, rate in again.items()}
    return rates


def _streamed(
    ask: Ask, plan: Sequence[Sequence[tuple[int, int]]], options: DoctorOptions
) -> dict[tuple[int, int], float | None]:
    rates: dict[tuple[int, int], float | None] = {}
    for pairs in plan:
        order = {"do": "stream", "duration_s": options.stream_s, "pairs": pairs}
        answers = ask(order, options.stream_s + options.timeout_s)
        rates |= {
            (member, answer["to"]): answer["rate"] for member, answer in answers.items() if answer["to"] is not None
        }
    return rates


def _silent(crew: Crew, silent: Mapping[int, str]) -> list[Finding]:
    return [
        Finding(
            level="error",
            check="answer",
            node=crew.names[member],
            sentence=f"expected the node to answer, got: {why}; look at it, or leave it out",
            bad_node=len(silent) < len(crew.names),
        )
        for member, why in sorted(silent.items())
    ]


def _judged(facts: Sequence[Facts], options: DoctorOptions, asked: int | None) -> list[Finding]:
    if not facts:
        return []
    return [
        *software.judge(facts),
        *storage.judge(facts),
        *machine.judge(facts, asked if options.cpus is None else options.cpus),
        *machine.judge_load(facts),
        *machine.judge_limits(facts),
        *gpus.judge(facts, options.gpus),
        *gpus.judge_leftover(facts),
        *variables.judge(facts),
    ]


def lines(report: Report, colour: bool) -> list[str]:
    """The findings for a terminal, aligned, the worst first, and what to do about bad nodes."""
    rows = [(each.level, each.check, each.node, printable(each.sentence)) for each in report.findings]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    found = []
    for level, *rest in rows:
        padded = f"{level:<{widths[0]}}"
        words = [f"{word:<{width}}" for word, width in zip(rest, widths[1:], strict=False)]
        found.append("  ".join([f"{COLOURS[level]}{padded}\x1b[0m" if colour else padded, *words, rest[2]]))
    counts = [sum(each.level == level for each in report.findings) for level in ORDER[:2]]
    found.append(f"nodes: {len(report.nodes)}, errors: {counts[0]}, warnings: {counts[1]}")
    return [*found, f"--exclude={','.join(report.exclude)}"] if report.exclude else found


def printable(text: str) -> str:
    """Text of another machine without what a terminal would obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def write(report: Report, path: Path) -> None:
    """Store everything as JSON, readable by its owner only."""
    data = {"format": FORMAT, "time_s": time.time(), "exclude": ",".join(report.exclude), **asdict(report)}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1)


def doctor(argv: Sequence[str]) -> int:
    """Check this machine or all nodes of this job, print what was found -> 0, or 1 if anything is broken.

    Raises UsageError or ValueError for a mistake in the command.
    """
    description = "Check this machine, or all nodes of this SLURM job, for what makes training fail or crawl."
    options = parse(DoctorOptions, argv, prog="ringmark doctor", description=description)
    report = examine(crew_of(os.environ, options.nodes), options, os.environ)
    print("\n".join(lines(report, colour=sys.stdout.isatty())))
    if options.json is not None:
        try:
            write(report, options.json)
        except OSError as error:
            raise ValueError(
                f"expected to write --json {options.json}, got: {error.strerror}; check the path"
            ) from None
    return FAILED if any(finding.level == "error" for finding in report.findings) else DONE
