"""Rules by which a cause is told from its consequences; each looks at a `Case` and gives a `Finding` or None."""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launch.case import Case, cause_s
from launch.events import RankEnd, Stack
from launch.exit_codes import (
    CRASHED,
    FAILED,
    HANG,
    INTERRUPTED,
    MISTAKE,
    OUT_OF_MEMORY,
    STOPPED,
    STORAGE,
    TERMINATED,
    TOLD_BY_RANKS,
    shell_code,
)
from launch.recorder import behind
from launch.stacks import describe, name_ranks, odd_one_out, waits_in
from launch.victims import killed_for_memory, loader_was_killed, timed_out

Cause = Literal[
    "done", "stopped", "exception", "exit", "signal", "oom", "hang", "lost node", "interrupted", "mistake"
]  # fmt: skip
CAUSES: Mapping[int, Cause] = {MISTAKE: "mistake", STOPPED: "stopped", INTERRUPTED: "interrupted"}
"""Of codes that ranks end with by themselves; any other is an exit."""
TOLD = TOLD_BY_RANKS | frozenset(range(MISTAKE, STORAGE + 1))
TOGETHER_S = 1.0
"""Ranks that raise the same within so long have the same fault; none is a consequence of another."""
TRACEBACK_FRAME = re.compile(r'File "(.*)", line (\d+), in (.*)')
A_COLLECTIVE = "a collective (distributed_c10d.py:0)"
"""A frame for a rank that has waited for others, nobody knows in what."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a rule has found."""

    code: int
    cause: Cause
    sentence: str
    ranks: tuple[int, ...] = ()
    time_s: float | None = None
    """When the cause was, in seconds since the epoch."""
    details: tuple[str, ...] = ()
    told: bool = False
    """Whether the ranks have said it themselves, so that nothing needs to be added."""


def find(case: Case) -> Finding:
    """The first rule that applies."""
    rules = (_stopped, _done, _own_failure, _interrupted, _lost_node, _left_early, _hang, _timed_out, _was_asked)
    return next((found for rule in rules if (found := rule(case)) is not None), None) or _nothing_seen(case)


def _stopped(case: Case) -> Finding | None:
    if not case.ends or case.unknown or case.stalled_s is not None or any(end.code != STOPPED for end in case.ends):
        return None
    return Finding(code=STOPPED, cause="stopped", sentence="stopped with a checkpoint", told=True)


def _done(case: Case) -> Finding | None:
    cut_short = case.signals and not all(end.finished for end in case.ends)
    # To be asked for its stack lets a stopped rank go on, and all may then come to their end: it was a hang still.
    unclear = not case.ends or case.unknown or cut_short or case.stalled_s is not None
    if unclear or any(end.code != 0 for end in case.ends):
        return None
    return Finding(code=0, cause="done", sentence="done", told=True)


def _own_failure(case: Case) -> Finding | None:
    if not case.failures:
        return None
    first = case.failures[0]
    same = [end for end in case.failures if end is first or _alike(first, end)]
    ranks = tuple(sorted(end.rank for end in same))
    code, cause, what = _what(first, case.kills(first.host))
    after = f"{cause_s(first) - case.started_s:.1f} s after the start"
    if len(same) > 1:
        verb = f"raised {what}" if first.words else f"ended with {what}"
        sentence = f"{name_ranks(ranks)} all {verb}" + ("" if first.words else f", {after}")
    else:
        sentence = f"{who(first)} {'failed' if first.words else 'ended'} first, {after}: {what}"
    details = first.words.traceback[-6:] if first.words else ()
    told = cause in ("stopped", "interrupted", "mistake") or first.code in TOLD_BY_RANKS
    return Finding(
        code=code, cause=cause, sentence=sentence, ranks=ranks, time_s=cause_s(first), details=details, told=told
    )


def _alike(first: RankEnd, other: RankEnd) -> bool:
    """Whether two ranks have the same fault at the same time. Equal signals are none: one may follow from the other."""
    if first.words and other.words:
        same = (first.words.type, first.words.message) == (other.words.type, other.words.message)
        return same and cause_s(other) - cause_s(first) <= TOGETHER_S
    return first.words is other.words and first.code == other.code and first.code in TOLD


def _what(end: RankEnd, kills: int) -> tuple[int, Cause, str]:
    """The launch's code, the cause, and words for it, of a rank that failed by itself on a host with so many kills."""
    most_likely = f"most likely for memory: the kernel killed {kills} process{'es' if kills > 1 else ''} there"
    if end.words is not None and end.code not in CAUSES:
        said = f"{end.words.type}: {end.words.message}".removesuffix(": ")
        if killed_for_memory(end.words) or (kills and loader_was_killed(end.words)):
            return OUT_OF_MEMORY, "oom", f"{said}; {most_likely}" if kills else said
        code = end.code if end.code > 0 else FAILED
        # C++ has no other way to end than to abort.
        return shell_code(end.code) if end.code == -signal.SIGABRT else code, "exception", said
    if end.code == -signal.SIGKILL and kills:
        return OUT_OF_MEMORY, "oom", f"SIGKILL, {most_likely}"
    if end.code < 0:
        return shell_code(end.code), "signal", _signal_name(-end.code)
    cause = CAUSES.get(end.code, "exit")
    return end.code, cause, f"exit code {end.code}"


def _interrupted(case: Case) -> Finding | None:
    if not case.signals:
        return None
    number = getattr(signal, case.signals[0], signal.SIGTERM)
    code = INTERRUPTED if number == signal.SIGINT else 128 + int(number)
    details = [
        f"{who(end)} failed while it was stopping: {end.words.type}: {end.words.message}"
        for end in case.ends
        if end.code not in (0, STOPPED)
        and end.words
        and end not in case.victims
        and end.words.type != "KeyboardInterrupt"
    ]
    if case.stacks:
        details.append(f"nothing moved any more when it was stopping: {odd_one_out(case.stacks)[1]}")
    sentence = f"ended by {' and '.join(case.signals)}"
    told = code == INTERRUPTED and not details
    return Finding(code=code, cause="interrupted", sentence=sentence, details=tuple(details[:6]), told=told)


def _lost_node(case: Case) -> Finding | None:
    if not case.lost:
        return None
    hosts = ", ".join(node.host for node in case.lost)
    there = [end for end in case.ends if end.host in {node.host for node in case.lost}]
    ranks = tuple(sorted(end.rank for end in there)) or case.unknown
    sentence = f"{hosts} was lost: {case.lost[0].lost}" + (f"; {name_ranks(ranks)} ran there" if ranks else "")
    time_s = min((end.time_s for end in there), default=None)
    return Finding(code=CRASHED, cause="lost node", sentence=sentence, ranks=ranks, time_s=time_s)


def _hang(case: Case) -> Finding | None:
    if not case.stacks or not (case.victims or case.stalled_s is not None):
        return None  # they were only looked at because others failed
    stacks = _where_all_waited(case)
    ranks, sentence = odd_one_out(stacks)
    late, began = behind(each for node in case.nodes for each in node.collectives)
    ranks, sentence = ranks or late, f"{sentence}; {began}" if began else sentence
    early = _first_to_leave(case)
    if early and not (early[0].finished and ranks):
        ranks = tuple(sorted(end.rank for end in early))
        sentence = f"{_leaving(early)}; {sentence}"
    if not ranks and case.stalled_s is None and (waited := _timed_out(case)) is not None:
        sentence = waited.sentence  # for somebody elsewhere, most likely
    if case.stalled_s is not None:
        sentence = f"nothing moved for {case.stalled_s:.0f} s: {sentence}"
    # The way to the place of the first odd one, or where everybody stands.
    inside = [frame for one in stacks if one.rank in ranks[:1] for frame in one.frames[:6]]
    where = inside or [f"{name_ranks([one.rank])} ({one.host}, {one.state}) in {describe(one)}" for one in stacks[:6]]
    return Finding(
        code=HANG, cause="hang", sentence=sentence, ranks=ranks, details=tuple(f"  {line}" for line in where)
    )


def _where_all_waited(case: Case) -> list[Stack]:
    """Stacks, for victims those of the moment when they gave up: since then they only wait to be ended."""
    stopped = {one.rank for one in case.stacks if one.state == "stopped"}  # it spoke when it was let go on
    gave_up = {end.rank: end for end in case.victims if end.words is not None and end.rank not in stopped}
    stacks = [one for one in case.stacks if one.rank not in gave_up]
    for rank, end in gave_up.items():
        assert end.words is not None
        found = [match for line in end.words.traceback if (match := TRACEBACK_FRAME.search(line))]
        frames = [f"{match[3]} ({match[1].rpartition('/')[2]}:{match[2]})" for match in reversed(found)]
        if waits_in(frames) is None:
            frames.insert(0, A_COLLECTIVE)
        stacks.append(Stack(rank=rank, host=end.host, frames=tuple(frames), state="sleeping"))
    return sorted(stacks, key=lambda one: one.rank)


def _left_early(case: Case) -> Finding | None:
    """Victims without a culprit, but somebody had gone in peace; one that had finished, if nobody else can be it."""
    early = _first_to_leave(case)
    in_question = {one.rank for one in case.stacks} - {end.rank for end in case.victims}
    if not (early and case.victims) or (early[0].finished and in_question):
        return None
    ranks = tuple(sorted(end.rank for end in early))
    time_s = min(end.time_s for end in early)
    sentence = f"{_leaving(early)}, {time_s - case.started_s:.1f} s after the start"
    if early[0].finished:
        sentence += f", while {name_ranks(end.rank for end in case.victims)} still waited for more"
    return Finding(code=CRASHED, cause="exit", sentence=sentence, ranks=ranks, time_s=time_s)


def _first_to_leave(case: Case) -> list[RankEnd]:
    """Ranks that ended with 0 by themselves: those that had not finished, or else all."""
    return [end for end in case.left if not end.finished] or list(case.left)


def _leaving(early: Sequence[RankEnd]) -> str:
    name = who(early[0]) if len(early) == 1 else name_ranks(end.rank for end in early)
    if early[0].finished:
        return f"{name} had finished, exit code 0"
    return f"{name} ended without finishing, exit code 0"


def _timed_out(case: Case) -> Finding | None:
    late = [end for end in case.victims if end.words and timed_out(end.words)]
    if not late:
        return None
    first = min(late, key=cause_s)
    assert first.words is not None
    rest = {*range(case.world_size or 0), *(end.rank for end in case.ends)} - {end.rank for end in case.victims}
    sentence = f"{name_ranks(end.rank for end in late)} waited in vain for others: {first.words.message}"
    details = [f"{name_ranks(rest)} did not say that {'they' if len(rest) > 1 else 'it'} waited"] if rest else []
    return Finding(code=HANG, cause="hang", sentence=sentence, time_s=cause_s(first), details=tuple(details))


def _was_asked(case: Case) -> Finding | None:
    """The launcher stopped all of them, and no signal says why: what is worst among what the ranks gave as answer."""
    own = [end for end in case.ends if end.code > 0 and end not in case.victims]
    if case.victims or not own:
        return None
    worst = min(own, key=lambda end: (end.code in (STOPPED, INTERRUPTED, TERMINATED), cause_s(end)))
    code, cause, what = _what(worst, case.kills(worst.host))
    sentence = f"{who(worst)} failed while it was stopping: {what}"
    return Finding(code=code, cause=cause, sentence=sentence, ranks=(worst.rank,), time_s=cause_s(worst))


def _nothing_seen(case: Case) -> Finding:
    """Only victims, or ranks of which nothing is known: nobody is blamed."""
    said = "no rank's end tells what happened"
    if case.victims:
        names = name_ranks(end.rank for end in case.victims)
        said = f"{names} lost the connection to others, and none was seen to fail before"
    elif case.unknown:
        said = f"nothing is known of the end of {name_ranks(case.unknown)}"
    return Finding(code=CRASHED, cause="exit", sentence=said)


def who(end: RankEnd) -> str:
    """A rank, and where it ran."""
    return f"rank {end.rank} ({end.host}, local rank {end.local_rank})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
