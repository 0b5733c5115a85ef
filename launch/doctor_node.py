"""Runs on each node that is looked at: says what it finds there, tries the other nodes, obeys the doctor's orders.

Internal: `python -m launch.doctor_node [MEMBER]`; orders come as lines of JSON on standard input, answers go to
standard output in short lines, since a scheduler that merges the output of several nodes cuts long ones.
"""

import base64
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.addresses import candidates
from launch.checks import gpus, machine, network, software, storage, variables
from launch.mesh import Listener, reach, reason, stream

LONGEST_PART_BYTES = 600
MARK = "ringmark-doctor"
"""First word of an answer; other lines are somebody else's, such as a login script's."""


def parts(member: int, answer: Mapping[str, Any]) -> Iterable[str]:
    """An answer as short lines: mark, member, number of the part, number of parts, text."""
    text = base64.b64encode(json.dumps(answer).encode()).decode()
    pieces = [text[start : start + LONGEST_PART_BYTES] for start in range(0, len(text), LONGEST_PART_BYTES)]
    for number, piece in enumerate(pieces):
        yield f"{MARK} {member} {number} {len(pieces)} {piece}"


class Assembler:
    """Answers out of the lines of several nodes, in whatever order they come."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[str]] = {}

    def add(self, line: str) -> tuple[int, dict[str, Any]] | None:
        """Take a line -> member and answer if it was the last part of one. Lines of another kind are left alone."""
        words = line.split()
        if len(words) != 5 or words[0] != MARK:
            return None
        member, number, count = map(int, words[1:4])
        pieces = self._pieces.setdefault(member, [])
        pieces[number:] = [words[4]]
        if len(pieces) < count:
            return None
        del self._pieces[member]
        return member, json.loads(base64.b64decode("".join(pieces)))


class Node:
    """This node, between the doctor's first order and the last."""

    def __init__(self, member: int, environ: Mapping[str, str]) -> None:
        self._member, self._environ = member, environ
        self._token = ""
        self._listener: Listener | None = None
        self._folder, self._mark = Path(), ""
        self._connected: dict[int, tuple[str, int]] = {}

    def facts(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that can be found out alone; and start to listen."""
        self._token, self._mark = order["token"], order["mark"]
        self._folder = storage.existing(Path(order["run_dir"]))
        # Who uses the GPUs is asked before torch is imported, which does.
        devices = gpus.gather(self._environ)
        importing = software.start_import() if order["import_torch"] else None
        # A node that is alone opens no port.
        self._listener = Listener(candidates(order["interface"]) if order["listen"] else (), self._token)
        places = {storage.RUN_FOLDER: self._folder}
        places |= {name: Path(name) for name in (storage.TMP, storage.SHARED_MEMORY)}
        return {
            "member": self._member,
            "hostname": socket.gethostname(),
            **machine.gather(),
            "gpus": devices,
            "variables": variables.gather(self._environ),
            "interfaces": [name for _, name in socket.if_nameindex()],
            "disks": storage.gather(places),
            "write_error": storage.write_mark(self._folder, self._mark, self._member),
            "endpoints": self._listener.endpoints,
            "versions": software.versions(),
            "import": importing and software.end_import(importing, order["import_timeout_s"]),
        }

    def connect(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Try every other node, resolve its name, look for its file."""
        others = [other for other in order["nodes"] if other["member"] != self._member]
        with ThreadPoolExecutor(16) as pool:
            tried = pool.map(
                lambda other: reach([(address, port) for address, port in other["endpoints"]], self._token), others
            )
            reached = {other["member"]: result for other, result in zip(others, tried, strict=True)}
        self._connected = {member: result.endpoint for member, result in reached.items() if result.endpoint}
        return {
            "reached": [[member, asdict(result)] for member, result in reached.items()],
            "resolved": network.resolve(sorted({each["hostname"] for each in order["nodes"]})),
            "unseen": storage.unseen(self._folder, self._mark, [other["member"] for other in others]),
        }

    def stream(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Send to another node if this round's pairs say so."""
        for sender, receiver in order["pairs"]:
            if sender == self._member and receiver in self._connected:
                try:
                    rate = stream(self._connected[receiver], self._token, order["duration_s"])
                except OSError as error:
                    return {"to": receiver, "rate": None, "error": reason(error)}
                return {"to": receiver, "rate": rate}
        return {"to": None}

    def close(self) -> None:
        """Leave nothing behind."""
        storage.remove_mark(self._folder, self._mark, self._member)
        if self._listener:
            self._listener.close()


def main() -> int:
    """Obey orders until there are no more; returns 0."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # by way of `finally`
    number = sys.argv[1] if len(sys.argv) > 1 else os.environ["SLURM_NODEID"]
    node = Node(int(number), os.environ)
    orders = {"facts": node.facts, "connect": node.connect, "stream": node.stream}
    try:
        for line in sys.stdin:
            order = json.loads(line)
            try:
                answer = orders[order["do"]](order)
            except Exception as error:  # whatever it is, the doctor should hear of it at once, not wait for this node
                answer = {"failed": f"{type(error).__name__}: {error}"}
            for part in parts(int(number), {"did": order["do"], **answer}):
                print(part, flush=True)
    finally:
        node.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
