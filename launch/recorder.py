"""Which collective each rank began last, from torch's flight recorder: it tells what stacks cannot, as on GPUs.

torch records always, but only the process itself can read it, so a thread of the rank waits at a pipe to be asked.

Ask only ranks that stand still and are to be ended: torch's reader keeps Python's lock while it waits for the records',
and whoever begins a collective holds the two in the other order, so that reading may stop a rank that still moves.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.events import Collective
from launch.stacks import name_ranks

POLL_S = 0.02
READERS = (("_dump_fr_trace_json", "gloo"), ("_dump_nccl_trace_json", "nccl"))
"""Functions of torch's C++ part, and the backend that each reads."""


def serve(stack_file: Path, rank: int) -> None:
    """In a rank: answer whenever its launcher asks, which knows the rank by this file.

    Tells of what begins from now on: a process that was forked has the records of its parent, which are not its own.
    """
    pipe = _pipe(stack_file)
    os.mkfifo(pipe, 0o600)
    arguments = (pipe, _answer_file(stack_file), rank, recorded())
    threading.Thread(target=_answer, args=arguments, name="recorder", daemon=True).start()


def ask(stack_files: Iterable[Path], timeout_s: float = 0.5) -> tuple[Collective, ...]:
    """The last collectives of the ranks of this machine that answer in time; nothing of those without torch."""
    files = [file for file in stack_files if _pipe(file).exists()]
    for file in files:
        _answer_file(file).unlink(missing_ok=True)
    deadline, deaf = time.monotonic() + timeout_s, files
    while time.monotonic() < deadline and not all(_answer_file(file).exists() for file in files):
        deaf = [file for file in deaf if not _knock(file)]
        time.sleep(POLL_S)
    found: list[Collective] = []
    for file in files:
        with contextlib.suppress(OSError, ValueError, TypeError):
            found += [Collective(**entry) for entry in json.loads(_answer_file(file).read_text())]
    return tuple(found)


def behind(collectives: Iterable[Collective]) -> tuple[tuple[int, ...], str]:
    """Ranks that have begun fewer or other collectives than most, none if that tells nothing -> they, and a sentence.

    Looks at one process group at a time, and takes the first that tells something.
    """
    groups: dict[str, list[Collective]] = {}
    for one in collectives:
        groups.setdefault(one.group, []).append(one)
    for group, members in sorted(groups.items()):
        places = Counter((one.number, one.name) for one in members)
        last = max(places)
        # A tie is decided by who is late; most ranks cannot be.
        most = max(places, key=lambda place: (places[place], place[0] == last[0]))
        odd = tuple(sorted(one.rank for one in members if (one.number, one.name) != most))
        if odd and 2 * len(odd) <= len(members) and (2 * len(odd) < len(members) or most[0] != min(places)[0]):
            began = "; ".join(
                f"{name_ranks(one.rank for one in members if (one.number, one.name) == place)} "
                f"began {place[0]} collectives of group {group}, the last {place[1]}"
                for place in sorted(places)
            )
            return odd, began
    return (), ""


def _pipe(stack_file: Path) -> Path:
    return stack_file.with_suffix(".ask")


def _answer_file(stack_file: Path) -> Path:
    return stack_file.with_suffix(".json")


def _knock(stack_file: Path) -> bool:
    """Ask a rank -> whether it heard."""
    try:
        os.close(os.open(_pipe(stack_file), os.O_WRONLY | os.O_NONBLOCK))
    except OSError:  # nobody reads there, or nobody yet
        return False
    return True


def _answer(pipe: Path, answer: Path, rank: int, since: Mapping[str, int]) -> None:
    temporary = answer.with_suffix(".tmp")
    while True:
        try:
            pipe.read_bytes()  # until the launcher opens it
            temporary.write_text(json.dumps([asdict(one) for one in last_collectives(rank, since)]))
            temporary.replace(answer)
        except OSError:  # the folder is gone, and with it whoever would ask
            return


def last_collectives(rank: int, since: Mapping[str, int]) -> list[Collective]:
    """What this process began last in each process group, of what `recorded` did not yet count."""
    latest: dict[str, Collective] = {}
    for backend, entries in _entries().items():
        for entry in entries:
            if entry.get("is_p2p") or entry.get("record_id", 0) < since.get(backend, 0):
                continue
            group = " ".join(map(str, entry.get("process_group", [backend])))
            one = Collective(
                rank=rank,
                group=group,
                number=int(entry.get("collective_seq_id", 0)),
                name=str(entry.get("profiling_name", "")).rpartition(":")[2],
                done=bool(entry.get("retired", False)),
            )
            latest[group] = one  # the records are in order; their numbers begin again with a group that is made anew
    return list(latest.values())


def recorded() -> dict[str, int]:
    """How many records torch has made in this process and its parents until now, by backend."""
    return {backend: 1 + max(entry.get("record_id", 0) for entry in entries) for backend, entries in _entries().items()}


def _entries() -> dict[str, list[Mapping[str, Any]]]:
    """torch's records by backend; nothing if this process has not imported torch's distributed part."""
    torch_c10d = sys.modules.get("torch._C._distributed_c10d")
    found: dict[str, list[Mapping[str, Any]]] = {}
    for function, backend in READERS:
        with contextlib.suppress(Exception):  # not in this build or version of torch, or changed in it
            if entries := json.loads(getattr(torch_c10d, function)())["entries"]:
                found[backend] = entries
    return found
