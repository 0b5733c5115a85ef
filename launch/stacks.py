"""Where every rank stands, asked from outside: at a signal it writes its Python stack, even while it waits in C++."""

import faulthandler
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from launch.events import Stack
from launch.processes import kill

SIGNAL = int(signal.SIGRTMIN) + 10
"""A real-time signal: glibc keeps the two below SIGRTMIN, torch and NCCL use ordinary ones, and Python uses none."""
LONGEST_S = 5.0
"""A rank that is starved of CPU time may take so long to write its stacks; most take milliseconds."""
QUIET_S = 0.1
"""Stacks that have not grown for so long are whole."""
POLL_S = 0.02
MOST_FRAMES = 50
MOST_SPANS = 8
COLLECTIVES = frozenset({"distributed_c10d.py", "_functional_collectives.py"})
"""Files of torch whose public functions wait for other ranks."""
PLUMBING = COLLECTIVES | {"c10d_logger.py", "graph.py", "_tensor.py"}
BACKWARD = "_engine_run_backward (graph.py:"
"""DistributedDataParallel waits for other ranks in here, in C++."""

State = Literal["running", "sleeping", "stopped", "waiting for a disk", "gone"]
STATES: dict[str, State] = {"R": "running", "T": "stopped", "t": "stopped", "D": "waiting for a disk"}
STATES |= {"Z": "gone", "X": "gone"}
THREAD = re.compile(r"(Current thread|Thread) (0x[0-9a-f]+)")
FRAME = re.compile(r'  File "(.*)", line (\d+|\?+) in (.*)')
PLACE = re.compile(r"(.*) \((.*):(?:\d+|\?+)\)")


@dataclass(frozen=True, kw_only=True)
class RankHandle:
    """A rank as its launcher can reach it; the process must not have been reaped yet."""

    rank: int
    host: str
    pid: int
    stack_file: Path
    """The file that the rank has given to `register`."""


def register(file: TextIO) -> None:
    """In a rank, on its main thread: from now on SIGNAL makes it write its stacks into `file`, which stays open."""
    file.write(f"main {threading.main_thread().ident:#018x}\n")
    file.flush()
    faulthandler.register(SIGNAL, file=file, all_threads=True)


def collect(ranks: Sequence[RankHandle], timeout_s: float = LONGEST_S) -> tuple[Stack, ...]:
    """Where these ranks of this machine stand. One that is stopped goes on, so that it can answer."""
    states = [process_state(each.pid) for each in ranks]
    before = [_size(each.stack_file) for each in ranks]
    asked = [_ask(each.pid, state) for each, state in zip(ranks, states, strict=True)]
    for each, state, one in zip(ranks, states, asked, strict=True):
        if one and state == "stopped":  # only once all were asked: ranks that wait for it may end as soon as it goes on
            kill(each.pid, signal.SIGCONT)
    waited_for = [(each.stack_file, size) for each, size, one in zip(ranks, before, asked, strict=True) if one]
    if waited_for:
        _await_answers(waited_for, timeout_s)
    return tuple(
        Stack(
            rank=each.rank,
            host=each.host,
            frames=parse(*_answer(each.stack_file, start)) if one else (),
            # A short access to a disk is no news; one that lasts is.
            state=process_state(each.pid) if state == "waiting for a disk" else state,
        )
        for each, state, start, one in zip(ranks, states, before, asked, strict=True)
    )


def process_state(pid: int) -> State:
    """What a process does, as its kernel sees it."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    return STATES.get(letter, "sleeping")


def _ask(pid: int, state: State) -> bool:
    """Send SIGNAL to a process that expects it; another would die of it -> whether it was sent."""
    try:
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        if state == "gone" or not caught or not int(caught[1], 16) >> (SIGNAL - 1) & 1:
            return False
        os.kill(pid, SIGNAL)
    except OSError:  # it has just ended
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _await_answers(starts: Sequence[tuple[Path, int]], timeout_s: float) -> None:
    """Wait until each of these files tells of its rank's main thread, which comes last, and none grows any more."""
    changed = time.monotonic()
    deadline = changed + timeout_s
    sizes: list[int] = []
    while (now := time.monotonic()) < deadline:
        latest = [_size(path) for path, _ in starts]
        if latest != sizes:
            sizes, changed = latest, now
        elif now - changed >= QUIET_S and all(_has_main(*_answer(*each)) for each in starts):
            return
        time.sleep(POLL_S)


def _answer(path: Path, start: int) -> tuple[str, str]:
    """The part of a rank's file that begins at byte `start`, and the identity of the main thread."""
    try:
        content = path.read_bytes()
    except OSError:
        return "", ""
    first, _, _ = content.decode(errors="replace").partition("\n")
    return content[start:].decode(errors="replace"), first.removeprefix("main ").strip()


def _has_main(text: str, main: str) -> bool:
    return any(head[2] == main for head in THREAD.finditer(text))


def parse(text: str, main: str) -> tuple[str, ...]:
    """Frames of one thread of faulthandler's text, innermost first; of the one that got the signal if `main` is absent.

    `main` is the thread's identity as faulthandler writes it: 0x and 16 hexadecimal digits.
    """
    threads: dict[str, list[str]] = {}
    current = reading = ""
    for line in text.splitlines():
        if head := THREAD.match(line):
            reading = head[2]
            threads[reading] = []  # a later answer replaces an earlier one
            current = reading if head[1] == "Current thread" else current
        elif reading and (frame := FRAME.fullmatch(line)):
            threads[reading].append(f"{frame[3]} ({frame[1].rpartition('/')[2]}:{frame[2]})")
    return tuple(threads.get(main, threads.get(current, []))[:MOST_FRAMES])


def waits_in(frames: Sequence[str]) -> str | None:
    """The collective that a rank waits in, `backward` for DistributedDataParallel's own; None if it is elsewhere."""
    for frame in frames:
        place = PLACE.fullmatch(frame)
        if place and place[2] in COLLECTIVES and not place[1].startswith("_"):
            return place[1]
    return "backward" if frames and frames[0].startswith(BACKWARD) else None


def describe(stack: Stack) -> str:
    """Where a rank stands, for a person: the collective and who called it, or the innermost frame."""
    if not stack.frames:
        return "an unknown place"
    name = waits_in(stack.frames)
    if name is None:
        return stack.frames[0]
    # torch's own functions called backward stand between the engine and whoever called them.
    callers = (
        frame
        for frame in stack.frames
        if (place := PLACE.fullmatch(frame)) and place[2] not in PLUMBING and place[1] != "backward"
    )
    caller = next(callers, None)
    return f"{name} from {caller}" if caller else name


def name_ranks(ranks: Iterable[int]) -> str:
    """Ranks, written compactly: `rank 5`, `ranks 0-3, 5`."""
    ordered = sorted(set(ranks))
    spans: list[list[int]] = []
    for rank in ordered:
        if spans and spans[-1][-1] == rank - 1:
            spans[-1][1:] = [rank]
        else:
            spans.append([rank])
    shown = ", ".join("-".join(map(str, span)) for span in spans[:MOST_SPANS])
    rest = f" and more, {len(ordered)} in all" if len(spans) > MOST_SPANS else ""
    return f"rank{'s' if len(ordered) > 1 else ''} {shown}{rest}"


def odd_one_out(stacks: Sequence[Stack]) -> tuple[tuple[int, ...], str]:
    """Ranks that the others most likely wait for, none if nothing tells them apart -> they, and a sentence.

    A stopped rank is one always, then one that waits for a disk, then one that is gone. Otherwise it is a minority that
    is not in a collective while the others are, or that is in another one. Where no collective shows, since those of a
    GPU are awaited anywhere, it is a minority that is not at the line where most are.
    """
    for state, what in (("stopped", "stopped"), ("waiting for a disk", "waiting for a disk"), ("gone", "gone")):
        odd = [stack for stack in stacks if stack.state == state]
        if odd and (state == "stopped" or len(odd) < len(stacks)):
            where = f", in {describe(odd[0])}" if len(odd) == 1 and odd[0].frames else ""
            what = f"{name_ranks(stack.rank for stack in odd)} {'is' if len(odd) == 1 else 'are'} {what}{where}"
            return _ranks(odd), _sentence(what, odd, stacks)
    odd = _minority(stacks)
    groups = _places(odd or stacks)
    what = "; ".join(
        f"{name_ranks(ranks)} {'stands' if len(ranks) == 1 else 'stand'} in {place}" for place, ranks in groups.items()
    )
    return _ranks(odd), _sentence(what, odd, stacks) if odd else what


def _ranks(stacks: Iterable[Stack]) -> tuple[int, ...]:
    return tuple(sorted(stack.rank for stack in stacks))


def _places(stacks: Iterable[Stack]) -> dict[str, list[int]]:
    """Ranks by where they stand."""
    places: dict[str, list[int]] = {}
    for stack in sorted(stacks, key=lambda stack: stack.rank):
        places.setdefault(describe(stack), []).append(stack.rank)
    return places


def _sentence(what: str, odd: Sequence[Stack], stacks: Sequence[Stack]) -> str:
    """`what` of the odd ones, then where the others are."""
    others = [stack for stack in stacks if stack not in odd]
    if not others:
        return what
    places = sorted(_places(others).items(), key=lambda item: -len(item[1]))
    if len(places) == 1:
        return (
            f"{what}, {f'the other {len(others)}' if len(others) > 1 else name_ranks(_ranks(others))} in {places[0][0]}"
        )
    return f"{what}, " + ", ".join(f"{name_ranks(ranks)} in {place}" for place, ranks in places)


def _minority(stacks: Sequence[Stack]) -> list[Stack]:
    waiting = [stack for stack in stacks if waits_in(stack.frames)]
    absent = [stack for stack in stacks if not waits_in(stack.frames)]
    if waiting and absent:
        # Where most are not in a collective, those who are may be the odd ones, or the only ones on time.
        return absent if len(absent) <= len(waiting) else []
    places = [waits_in(stack.frames) or (stack.frames or ("",))[0] for stack in stacks]
    place, most = Counter(places).most_common(1)[0] if places else ("", 0)
    if not place or 2 * most <= len(stacks):
        return []
    return [stack for stack, each in zip(stacks, places, strict=True) if each != place]
