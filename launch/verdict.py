"""The one verdict of a launch: who ended first, where and why, who was only a victim, and the launch's exit code."""

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.case import Case
from launch.events import NodeFacts, RankEnd, node_facts, rank_end
from launch.exit_codes import CRASHED
from launch.judgement import Cause, Finding, find
from launch.private_files import write_json
from launch.stacks import name_ranks

FORMAT = 1
FILE_NAME = "verdict.json"
OF_RESTART = "verdict-restart-{}.json"
MOST_LINES = 12
LONGEST_LINE = 160


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a launch came to. Times are seconds since the epoch on the head node's clock."""

    code: int
    """Exit code of the launch, as a shell shows it."""
    cause: Cause
    ranks: tuple[int, ...]
    """Whose fault it is; empty if that cannot be told."""
    host: str | None
    """Of the first of them, or the node that was lost."""
    started_s: float
    ended_s: float
    after_s: float | None
    """Seconds from the start to the cause; None if unknown."""
    sentence: str
    lines: tuple[str, ...]
    """For a terminal: at most 12, of at most 160 characters each, without control characters."""
    victims: tuple[int, ...]
    log: str | None
    """Path of the log of the first culprit."""
    ends: tuple[RankEnd, ...]
    nodes: tuple[NodeFacts, ...]


def judge(ends: Iterable[RankEnd], nodes: Iterable[NodeFacts], *, started_s: float, world_size: int | None) -> Verdict:
    """Tell cause from consequence. `started_s` is on the clock of the ends; ranks that ended unseen may be absent.

    Without a `world_size` there may be more ranks, which other launchers judge.
    """
    case = Case(
        ends=tuple(sorted(ends)),
        nodes=tuple(sorted(nodes, key=lambda node: node.node_rank)),
        started_s=started_s,
        world_size=world_size,
    )
    found = find(case)
    culprits = [end for end in case.ends if end.rank in found.ranks]
    lost = case.lost[0].host if found.cause == "lost node" else None
    host = lost or next((end.host for end in culprits), None)
    host = host or next((stack.host for stack in case.stacks if stack.rank in found.ranks), None)
    log = next((end.log for end in culprits if end.log is not None), None)
    victims = tuple(end.rank for end in case.victims if end.rank not in found.ranks)
    return Verdict(
        code=found.code,
        cause=found.cause,
        ranks=found.ranks,
        host=host,
        started_s=started_s,
        ended_s=max((end.time_s for end in case.ends), default=started_s),
        after_s=None if found.time_s is None else found.time_s - started_s,
        sentence=plain(found.sentence),
        lines=_lines(case, found, victims, log),
        victims=victims,
        log=log,
        ends=case.ends,
        nodes=case.nodes,
    )


def without_ranks(why: str, *, started_s: float, ended_s: float) -> Verdict:
    """Of a launch whose ranks could not be started, or not brought together: no rank is blamed."""
    return Verdict(
        code=CRASHED,
        cause="exit",
        ranks=(),
        host=None,
        started_s=started_s,
        ended_s=ended_s,
        after_s=ended_s - started_s,
        sentence=plain(why),
        lines=(_short(plain(why)),),
        victims=(),
        log=None,
        ends=(),
        nodes=(),
    )


def _lines(case: Case, found: Finding, victims: tuple[int, ...], log: str | None) -> tuple[str, ...]:
    """What a person is told: nothing of what the ranks have said themselves."""
    if found.told:
        return ()
    lines = [found.sentence, *found.details]
    if victims and found.ranks:
        lines.append(f"{name_ranks(victims)} {'were' if len(victims) > 1 else 'was'} only waiting for {_them(found)}")
    if found.cause != "lost node":
        lines += [f"{node.host} was lost as well: {node.lost}" for node in case.lost[:2]]
        if case.unknown and name_ranks(case.unknown) not in found.sentence:
            lines.append(f"nothing is known of the end of {name_ranks(case.unknown)}")
    lines = lines[: MOST_LINES - 1]
    if log is not None:
        lines.append(f"log {log}")
    return tuple(_short(plain(line)) for line in lines)


def _them(found: Finding) -> str:
    return "it" if len(found.ranks) == 1 or found.cause == "lost node" else "them"


def plain(text: str) -> str:
    """Text that a terminal takes for nothing else: line breaks and tabs become spaces, other control characters `?`."""
    text = text.replace("\n", " ").replace("\t", " ").rstrip()
    return "".join("?" if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp") else each for each in text)


def _short(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 1] + "…"


def write(verdict: Verdict, folder: Path, restart: int | None = None) -> Path:
    """Store a verdict in a folder, or that of a round which this restart followed -> the file.

    It is readable by its owner only; whoever reads finds all of it, or none.
    """
    path = folder / (FILE_NAME if restart is None else OF_RESTART.format(restart))
    write_json(path, {"format": FORMAT, **asdict(verdict)})
    return path


def remove(folder: Path) -> None:
    """Remove the verdicts of an earlier launch, which would be taken for this one's if it is killed."""
    for old in (folder / FILE_NAME, *folder.glob(OF_RESTART.format("*"))):
        old.unlink(missing_ok=True)


def read(path: Path) -> Verdict:
    """The verdict in a file. Raises ValueError with a remedy if it is none, or one of another version."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = data.pop("format")
        if found != FORMAT:
            raise ValueError(f"format {found}")
        lists = {name: tuple(data[name]) for name in ("ranks", "lines", "victims")}
        ends = tuple(rank_end(each) for each in data["ends"])
        nodes = tuple(node_facts(each) for each in data["nodes"])
        return Verdict(**{**data, **lists, "ends": ends, "nodes": nodes})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"expected a {FILE_NAME} of format {FORMAT}, got {path}: {error}; use the ringmark that wrote it"
        ) from None
