"""A process that imports torch once and then forks the ranks: they start in milliseconds instead of one import each.

It is forked from the launcher before that has imported anything large, so that both import side by side. It never
touches a GPU, and has one thread only: a fork of more would be wrong, and is then refused.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""SLURM sends its signals to every process of a step; the nursery ends with its launcher."""
LARGEST_MESSAGE = 1 << 20
"""Bytes of one request; more than Linux lets the arguments of a process have on most machines is refused before."""


@dataclass(frozen=True, kw_only=True)
class Birth:
    """A rank to be started."""

    script: str
    """Path of a Python script, or the name of a module."""
    is_module: bool
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    """What is added to the launcher's own."""
    stdout: str | None = None
    """File to append to; None is the launcher's."""
    stderr: str | None = None
    cpus: tuple[int, ...] = ()
    """CPUs it may run on; empty is all of the launcher's."""
    threads: int | None = None
    """Threads of torch's operators; None leaves torch's choice."""
    stack_file: str | None = None
    """Where it writes its Python stack when asked by a signal."""
    recorder: bool = False
    """Whether a thread of it is to tell what torch's flight recorder knows, when asked."""


def live(channel: socket.socket, modules: Sequence[str]) -> NoReturn:
    """Be the nursery: import, say whether forking is safe, fork upon request, and report every end."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    for name in modules:
        with contextlib.suppress(ImportError):  # the rank's own import will tell
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    _say(channel, {"ready": len(os.listdir("/proc/self/task")), "cuda": _cuda_touched()})
    children: dict[int, int] = {}
    while True:
        _wait(channel, wake_read)
        for pid, status in _ended():
            if pid in children:
                code = os.waitstatus_to_exitcode(status)
                _say(channel, {"ended": children.pop(pid), "code": code, "time_s": time.time()})
        for request in _requests(channel):
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for descriptor in (wake_read, wake_write, channel.fileno()):
                    os.close(descriptor)
                _be_born(request)
            children[pid] = request["id"]
            _say(channel, {"born": request["id"], "pid": pid})


def _cuda_touched() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _wait(channel: socket.socket, wake: int) -> None:
    readable, _, _ = select.select([channel.fileno(), wake], [], [])
    if wake in readable:
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)


def _ended() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def _say(channel: socket.socket, message: Mapping[str, Any]) -> None:
    try:
        channel.send(json.dumps(message).encode())
    except OSError:
        os._exit(0)  # the launcher is gone, and its guardian ends the rest


def _requests(channel: socket.socket) -> Iterator[dict[str, Any]]:
    while True:
        try:
            data = channel.recv(LARGEST_MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            os._exit(0)
        yield json.loads(data)


def _be_born(request: dict[str, Any]) -> NoReturn:
    """In the fork: become the rank."""
    from launch.rank import be_rank

    code = 1
    try:
        del request["id"]
        birth = Birth(**{**request, "arguments": tuple(request["arguments"]), "cpus": tuple(request["cpus"])})
        code = be_rank(birth, parent=os.getppid())
    finally:
        os._exit(code)


class Nursery:
    """The launcher's side."""

    def __init__(self) -> None:
        self.channel, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.channel, self._theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST_MESSAGE * 2)
        self._next = 0

    def child(self, modules: Sequence[str]) -> NoReturn:
        """What the new process does; to be called in it."""
        self.channel.close()
        live(self._theirs, modules)

    def close_theirs(self) -> None:
        """In the launcher, once the nursery is there."""
        self._theirs.close()

    def request(self, birth: Birth) -> int:
        """Ask for a rank -> the number by which it is spoken of. Raises OSError if the nursery is gone."""
        self._next += 1
        self.channel.send(json.dumps({"id": self._next, **asdict(birth)}).encode())
        return self._next

    def hear(self) -> dict[str, Any] | None:
        """The next message, waiting for it; None if the nursery is gone."""
        data = self.channel.recv(LARGEST_MESSAGE)
        return json.loads(data) if data else None
