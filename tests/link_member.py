"""Members and heads of a launch for tests, in threads and in processes of their own.

python -m tests.link_member TOKEN NAME [--join] [--interface=NAME] ENDPOINT...
python -m tests.link_member TOKEN --head LOST_AFTER_S NAME...
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.hub import Hub
from launch.link import Link
from launch.wire import Limits

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "a token that nobody guesses"
NAMES = ("n1", "n2", "n3")
GONE = ("connection closed", "connection broken: Connection reset by peer")
"""What is said of a process that is gone; the second if it had not read all that was sent to it."""


class Events:
    """What a hub or a link said, in order."""

    def __init__(self) -> None:
        self.queue: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, *event: Any) -> None:
        self.queue.put(event)

    def wait_for(self, kind: str, timeout_s: float = 30) -> tuple[Any, ...]:
        """The next event of a kind."""
        deadline = time.monotonic() + timeout_s
        while True:
            event = self.queue.get(timeout=max(0.001, deadline - time.monotonic()))
            self.seen.append(event)
            if event[-2] == kind:
                return event


@contextmanager
def hub(members: tuple[str, ...] = NAMES, **limits: float) -> Iterator[tuple[Hub, Events]]:
    events = Events()
    with Hub(TOKEN, members, events, limits=Limits(**limits)) as head:
        yield head, events
    assert head.failure is None
    assert [thread.name for thread in threading.enumerate() if thread.name == "hub"] == []


@contextmanager
def nothing_left() -> Iterator[None]:
    """No thread and no descriptor outlives a test."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name in ("hub", "link")] == []
    assert len(os.listdir("/proc/self/fd")) <= before


def in_threads(work: Callable[[str], Any], names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """Results by name; a ValueError is a result."""
    results: dict[str, Any] = {}

    def run(name: str) -> None:
        try:
            results[name] = work(name)
        except ValueError as error:
            results[name] = error

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def member(head: Hub, name: str, *options: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "tests.link_member", TOKEN, name, *options, *head.endpoints]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def read_line(process: "subprocess.Popen[str]") -> Any:
    """The next JSON line that a member or a head printed."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


@contextmanager
def killed(*processes: "subprocess.Popen[str]") -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def be_member(token: str, name: str, words: list[str]) -> None:
    """Say what happens, one JSON list a line, until the head is gone."""
    gone = []
    interface = [word.partition("=")[2] for word in words if word.startswith("--interface=")]

    def tell(kind: str, data: Any) -> None:
        print(json.dumps([kind, data]), flush=True)
        if kind in ("lost", "bye"):
            gone.append(kind)

    with Link([word for word in words if not word.startswith("--")], token, name, tell) as link:
        if "--join" in words:
            try:
                plan = link.join(slots=1, interface=interface[0] if interface else None)
                print(json.dumps(["plan", [plan.node_rank, plan.master_addr, plan.address]]), flush=True)
            except ValueError as error:
                print(json.dumps(["refused", str(error)]), flush=True)
        link.send("hello", {"from": name})
        while not gone:
            time.sleep(0.05)


def be_head(token: str, lost_after_s: float, names: list[str]) -> None:
    """Print the endpoints, then what happens, one JSON list a line, for a minute."""
    lines: queue.Queue[list[Any]] = queue.Queue()
    with Hub(token, names, lambda *event: lines.put(list(event)), limits=Limits(lost_after_s=lost_after_s)) as head:
        print(json.dumps(head.endpoints), flush=True)
        while True:
            print(json.dumps(lines.get(timeout=60)), flush=True)


if __name__ == "__main__":
    if sys.argv[2] == "--head":
        be_head(sys.argv[1], float(sys.argv[3]), sys.argv[4:])
    else:
        be_member(sys.argv[1], sys.argv[2], sys.argv[3:])
