"""A process that forks the ranks from one import of torch: they start in milliseconds instead of one import each.

It is forked from the launcher, which has imported torch and started no thread yet. It never touches a GPU, and has one
thread only: a fork of more would be wrong, and is then refused.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from launch.guardian import ignore_signals, signals_blocked
from launch.processes import adopt_orphans, kill

ORPHANED_S = 20.0
"""How long it waits to be ended by the guardian once the launcher is gone."""
LARGEST_MESSAGE = 1 << 20
"""Bytes of one request; more than Linux lets the arguments of a process have on most machines is refused before."""


class NotBornError(Exception):
    """The ranks could not be forked, or their nodes brought together; one sentence says why."""


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
    """Be the nursery: import, say whether forking is safe, fork upon request, and report every end.

    It adopts what its ranks leave behind, so that this can be found and ended.
    """
    ignore_signals()
    adopt_orphans()
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    gc.disable()
    for name in modules:
        with contextlib.suppress(ImportError):  # the rank's own import will tell
            importlib.import_module(name)
    gc.freeze()  # the ranks share these pages
    gc.enable()
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
        for request in _requests(channel, children):
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
    with contextlib.suppress(OSError):  # the launcher is gone, as the next request will tell
        channel.send(json.dumps(message).encode())


def _requests(channel: socket.socket, children: Iterable[int]) -> Iterator[dict[str, Any]]:
    while True:
        try:
            data = channel.recv(LARGEST_MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            _orphaned(children)
        yield json.loads(data)


def _orphaned(children: Iterable[int]) -> NoReturn:
    """The launcher is gone: end the ranks, and hold what they leave behind until the guardian has found it."""
    for pid in children:
        kill(pid, signal.SIGKILL)
    time.sleep(ORPHANED_S)
    os._exit(0)


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

    def __init__(self, modules: Sequence[str], release: Callable[[], None] = lambda: None) -> None:
        """Fork it. In it, `release` is called and then `modules` are imported, side by side with the launcher."""
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.channel, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST_MESSAGE * 2)
        self._next = 0
        with signals_blocked():
            self.pid = os.fork()
            if self.pid == 0:
                self.channel.close()
                try:
                    release()
                    live(theirs, modules)
                finally:
                    os._exit(1)
        theirs.close()

    def number(self) -> int:
        """By which the next rank is to be spoken of."""
        self._next += 1
        return self._next

    def request(self, number: int, birth: Birth) -> None:
        """Ask for a rank. Raises NotBornError for more than one message holds.

        A nursery that is gone is seen by who hears it.
        """
        message = json.dumps({"id": number, **asdict(birth)}).encode()
        why = f"at most {LARGEST_MESSAGE:,}"
        try:
            if len(message) <= LARGEST_MESSAGE:
                self.channel.send(message)
                return
        except ConnectionError:
            return
        except OSError as error:  # a machine that allows smaller buffers
            why = str(error)
        what = f"expected to ask for a rank in one message, got {len(message):,} bytes of arguments and variables"
        raise NotBornError(f"{what} ({why}); use --plain")

    def hear(self) -> dict[str, Any] | None:
        """The next message, waiting for it; None if the nursery is gone."""
        try:
            data = self.channel.recv(LARGEST_MESSAGE)
        except OSError:
            data = b""
        return json.loads(data) if data else None
