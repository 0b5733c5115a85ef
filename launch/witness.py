"""The launcher's ear: what its ranks say, and when each of them ended, to the millisecond."""

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.events import LastWords, RankEnd
from launch.nursery import Nursery
from launch.reporter import SOCKET
from launch.victims import words_in_log

LARGEST_MESSAGE = 1 << 18
NO_NURSERY = "the process that forks the ranks was ended from outside"


@dataclass
class Life:
    """One rank of one round, as far as it is known."""

    rank: int
    local_rank: int
    pid: int = 0
    log: str | None = None
    stack_file: Path | None = None
    asked: bool = False
    """Whether the launcher has sent it a signal."""
    finished: bool = False
    words: LastWords | None = None
    step: int | None = None
    end: RankEnd | None = None
    spoken: threading.Event = field(default_factory=threading.Event)


class Witness:
    """Listens in a thread of its own, so that no work of the launcher's delays a time stamp."""

    def __init__(self, folder: Path, host: str, nursery: Nursery | None) -> None:
        self.address = str(folder / SOCKET)
        self.lives: dict[int, Life] = {}
        """By rank, of the latest round."""
        self.on_step: Callable[[int, int], None] = lambda rank, step: None
        """Called with a rank and the step that it made."""
        self.on_end: Callable[[RankEnd], None] = lambda end: None
        self.ready: dict[str, Any] | None = None
        """What the nursery said once it had imported; None if it is not that far, or there is none."""
        self.lost: str | None = None
        """Why the ranks of this round ended without anything that they or the launcher did."""
        self.orphaned = False
        """Whether the nursery is gone."""
        self.born = threading.Condition()
        self._host, self._nursery = host, nursery
        self._births: dict[int, Life] = {}
        self._handles: dict[int, Life] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(self.address)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        if nursery is not None:
            self._poll.register(nursery.channel, select.POLLIN)
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, name="witness", daemon=True).start()

    def new_round(self) -> None:
        """Forget the ranks of the round before."""
        with self._lock:
            self.lives, self.lost = {}, None

    def expect_birth(self, life: Life, number: int) -> None:
        """A rank for which the nursery is about to be asked, by that number."""
        with self._lock:
            self.lives[life.rank] = life
            self._births[number] = life
        if self.orphaned:
            self._end_orphans()

    def expect(self, life: Life) -> None:
        """A rank that is about to be started, and may speak at once."""
        with self._lock:
            self.lives[life.rank] = life

    def watch(self, life: Life) -> None:
        """A child of the launcher itself, whose `pid` is known."""
        with self._lock:
            handle = os.pidfd_open(life.pid)
            self._handles[handle] = life
            self._poll.register(handle, select.POLLIN)

    def wait_ready(self, timeout_s: float) -> dict[str, Any] | None:
        """What the nursery says of itself once it has imported; None if it is gone or too late."""
        with self.born:
            self.born.wait_for(lambda: self.ready is not None, timeout_s)
            return self.ready

    def wait_born(self, lives: list[Life], timeout_s: float) -> bool:
        """Wait until the ranks have process ids, or will never have -> whether it is so."""
        with self.born:
            return self.born.wait_for(lambda: all(life.pid or life.end for life in lives), timeout_s)

    def ended(self) -> list[RankEnd]:
        """The ends so far, of this round, in the order in which they came."""
        with self._lock:
            return sorted((life.end for life in self.lives.values() if life.end), key=lambda end: end.time_s)

    def _listen(self) -> None:
        while True:
            events = self._poll.poll(200)
            for descriptor, _ in events:
                if descriptor == self._socket.fileno():
                    self._drain()
            for descriptor, _ in events:
                if self._nursery is not None and descriptor == self._nursery.channel.fileno():
                    self._hear_nursery()
                elif descriptor in self._handles:
                    self._gone(descriptor)

    def _drain(self) -> None:
        """Take all that ranks have said; it was said before any end that is seen later."""
        while True:
            try:
                data = self._socket.recv(LARGEST_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            try:
                message = json.loads(data)
                life = self.lives[int(message["rank"])]
                self._take(life, message)
            except (ValueError, KeyError, TypeError):
                continue  # not of a rank of ours

    def _take(self, life: Life, message: dict[str, Any]) -> None:
        if message["kind"] == "step":
            life.step = int(message["step"])
            self.on_step(life.rank, life.step)
        elif message["kind"] == "exit" and not life.pid:  # of a rank that somebody else has started
            life.pid = int(message["pid"])
            self._end(life, int(message["code"]), time.time())
        elif message["kind"] == "finished":
            life.finished = True
        elif message["kind"] == "words":
            life.words = LastWords(
                time_s=float(message["time_s"]),
                type=str(message["type"]),
                message=str(message["message"]),
                traceback=tuple(map(str, message["traceback"])),
            )
            life.spoken.set()

    def _hear_nursery(self) -> None:
        assert self._nursery is not None
        message = self._nursery.hear()
        if message is None:
            self._poll.unregister(self._nursery.channel)
            self.orphaned = True
            self._end_orphans()
            message = {"ready": 0, "cuda": False}
        with self.born:
            if "ready" in message:
                self.ready = message
            elif "born" in message:
                self._births[message["born"]].pid = message["pid"]
            self.born.notify_all()
        if "ended" in message:
            self._drain()
            self._end(self._births.pop(message["ended"]), message["code"], message["time_s"])

    def _end_orphans(self) -> None:
        """The ranks end with the nursery, whose children they are."""
        self._drain()
        with self._lock:
            orphans, self._births = list(self._births.values()), {}
            self.lost = NO_NURSERY if orphans else self.lost
        for life in orphans:
            life.asked = True
            self._end(life, -signal.SIGKILL, time.time())

    def _gone(self, handle: int) -> None:
        at_s = time.time()
        life = self._handles[handle]
        status = os.waitid(os.P_PIDFD, handle, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if status is None:
            return
        self._poll.unregister(handle)
        del self._handles[handle]
        os.close(handle)
        self._drain()
        code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        self._end(life, code, at_s)

    def _end(self, life: Life, code: int, time_s: float) -> None:
        if code == -signal.SIGABRT and life.words is None and life.log:
            life.words = words_in_log(Path(life.log), time_s)
        end = RankEnd(
            rank=life.rank,
            local_rank=life.local_rank,
            host=self._host,
            pid=life.pid,
            time_s=time_s,
            code=code,
            asked=life.asked,
            finished=life.finished,
            words=life.words,
            log=life.log,
        )
        with self._lock:
            life.end = end
        self.on_end(end)
