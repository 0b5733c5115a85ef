"""The processes of one round on this node, as torch's elastic engine wants to see them."""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.api import PContext, RunProcsResult, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from launch.events import RankEnd
from launch.nursery import Birth, NotBornError, Nursery
from launch.processes import kill
from launch.rank import to_argument
from launch.rank_logs import RankLogs, Shown
from launch.reporter import VARIABLE
from launch.victims import is_victim
from launch.watch import Watch
from launch.witness import Life

BOOT = Path(__file__).with_name("boot.py")
BIRTH_TIMEOUT_S = 120.0
CAUSE_WAIT_S = 1.0
"""How long one waits for a cause when all that is known are ranks that have lost a peer."""
KILLED_WAIT_S = 10.0
INTO_LOG = 'log=$1; shift; exec "$0" "$@" >>"$log" 2>&1'
"""For a command that is no Python: both streams at the end of one file, which torch would open twice from its start."""


@dataclass
class Crew:
    """What every round of a launch shares."""

    watch: Watch
    nursery: Nursery | None
    """None: each rank is started anew."""
    folder: Path
    """Private folder of this launch."""
    wraps: bool
    """Whether the ranks run Python, so that `launch/rank.py` can stand around the script."""
    shutdown_s: float
    slices: Sequence[tuple[int, ...]] = ()
    """CPUs of each rank."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of all ranks beside torchrun's."""
    met: Mapping[str, str] = field(default_factory=dict)
    """The same, as far as they follow from where the nodes have met."""

    def start_processes(self, **asked: Any) -> PContext:
        """What the engine calls in place of its own function of that name."""
        self.watch.begin()
        for rank_environment in asked["envs"].values():
            rank_environment |= {**self.environment, **self.met}
            rank_environment[VARIABLE] = self.watch.witness.address
            rank_environment["TORCHELASTIC_RESTART_COUNT"] = str(self.watch.rounds - 1)  # other nodes' restarts too
        del asked["start_method"]
        forked = self.nursery is not None and not self.watch.witness.orphaned
        if forked:
            del asked["numa_options"]  # with any, ranks are started anew
        context: _Watched = (_Forked if forked else _Started)(self, asked)
        logs = asked["logs_specs"]
        if isinstance(logs, RankLogs):
            context.shown = logs.shown(context.stdouts, asked["log_line_prefixes"] or {}, sys.stdout)
            context.shown.start()
        context.start()
        return context

    def birth(self, argv: Sequence[str], local_rank: int, context: PContext) -> tuple[Birth, Life]:
        """The rank that a command line `-u [-m] SCRIPT ARGUMENTS` means, and what is to be known of it."""
        words = list(argv[1:])  # without -u
        is_module = words[0] == "-m"
        words = words[1:] if is_module else words
        environment = context.envs[local_rank]
        rank = int(environment["RANK"])
        stack_file = self.folder / f"stack-{self.watch.rounds}-{rank}.txt"
        birth = Birth(
            script=words[0],
            is_module=is_module,
            arguments=tuple(words[1:]),
            environment=environment,
            stdout=context.stdouts[local_rank] or None,
            stderr=context.stderrs[local_rank] or None,
            cpus=self.slices[local_rank] if self.slices else (),
            threads=_count(environment.get("OMP_NUM_THREADS")),
            stack_file=str(stack_file),
            recorder=self.watch.hang_timeout_s is not None,
        )
        log = birth.stderr or birth.stdout
        return birth, Life(rank=rank, local_rank=local_rank, log=log, stack_file=stack_file)


class _Watched(PContext):
    """How the end of a round is seen and made, alike for forked and started ranks."""

    crew: Crew
    lives: dict[int, Life]
    shown: Shown | None = None
    """What shows the ranks' logs, if they are ours."""

    def _poll(self) -> RunProcsResult | None:
        """None while ranks run; else how the round ended, the first to fail first."""
        ends = [life.end for life in self.lives.values() if life.end is not None]
        failed = sorted((end for end in ends if end.code != 0), key=lambda end: end.time_s)
        watch = self.crew.watch
        if not failed and (watch.hung() or watch.ended or self._cause_is_late()):
            watch.look()
            failed = [_still_there(life) for life in self.lives.values() if life.end is None]
        if failed:
            watch.over()
            first = failed[0]
            failure = ProcessFailure(
                local_rank=first.local_rank,
                pid=first.pid,
                exitcode=first.code,
                error_file=self.error_files[first.local_rank],
            )
            self.close(timeout=int(self.crew.shutdown_s))
            return RunProcsResult(failures={first.local_rank: failure}, stdouts=self.stdouts, stderrs=self.stderrs)
        if len(ends) == len(self.lives):
            watch.over()
            self.close()
            nothing = dict.fromkeys(self.lives)
            return RunProcsResult(return_values=nothing, stdouts=self.stdouts, stderrs=self.stderrs)
        return None

    def close(self, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        """End the round, and show what its ranks have written last."""
        super().close(death_sig, timeout)
        if self.shown is not None:
            self.shown.stop()

    def _cause_is_late(self) -> bool:
        """Whether ranks have said that they fail, and still nobody ended: peers of a rank that is silent, mostly."""
        now = time.time()
        for life in self.lives.values():
            words = life.words
            if words is not None and life.end is None:
                wait_s = CAUSE_WAIT_S if is_victim(words.type, words.message) else self.crew.shutdown_s
                if now - words.time_s > wait_s:
                    return True
        return False

    def end_all(self, number: int, timeout_s: float) -> None:
        """End what still runs: gently, and after a while by force."""
        running = [life for life in self.lives.values() if life.end is None and life.pid]
        for life in running:
            life.asked = True
            kill(life.pid, number)
            kill(life.pid, signal.SIGCONT)  # one that is stopped would not hear it
        if not _wait_for(running, timeout_s):
            for life in running:
                if life.end is None:
                    kill(life.pid, signal.SIGKILL)
            _wait_for(running, KILLED_WAIT_S)


def _count(text: str | None) -> int | None:
    """OMP_NUM_THREADS may also be a list, one number for each level of nesting."""
    first = (text or "").partition(",")[0].strip()
    return int(first) if first.isdigit() and int(first) else None


def _still_there(life: Life) -> RankEnd:
    return RankEnd(
        rank=life.rank, local_rank=life.local_rank, host="", pid=life.pid, time_s=time.time(), code=1, words=life.words
    )


def _wait_for(lives: Sequence[Life], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while any(life.end is None for life in lives):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class _Forked(_Watched):
    """Ranks that the nursery forks."""

    def __init__(self, crew: Crew, asked: dict[str, Any]) -> None:
        PContext.__init__(self, **asked)
        self.crew, self.lives = crew, {}

    def _start(self) -> None:
        assert self.crew.nursery is not None
        for local_rank in range(self.nprocs):
            birth, life = self.crew.birth(self.args[local_rank], local_rank, self)
            self.lives[local_rank] = life
            number = self.crew.nursery.number()
            self.crew.watch.witness.expect_birth(life, number)  # before it can answer
            self.crew.nursery.request(number, birth)
        if not self.crew.watch.witness.wait_born(list(self.lives.values()), BIRTH_TIMEOUT_S):
            raise NotBornError(f"expected the ranks to be forked within {BIRTH_TIMEOUT_S:.0f} s, got none; use --plain")
        self.crew.watch.running(self.lives)

    def pids(self) -> dict[int, int]:
        return {local_rank: life.pid for local_rank, life in self.lives.items()}

    def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:
        self.crew.watch.over()
        self.end_all(death_sig, min(timeout, self.crew.shutdown_s))


class _Started(_Watched, SubprocessContext):
    """Ranks that are started anew, by torchrun's own means."""

    def __init__(self, crew: Crew, asked: dict[str, Any]) -> None:
        SubprocessContext.__init__(self, **asked)
        self.crew, self.lives = crew, {}

    def _start(self) -> None:
        command = self.entrypoint
        for local_rank in range(self.nprocs):
            if self.crew.wraps:
                birth, life = self.crew.birth(self.args[local_rank], local_rank, self)
                self.args[local_rank] = ("-u", str(BOOT), "rank", to_argument(birth))
                self.stdouts[local_rank] = self.stderrs[local_rank] = ""  # it opens its log itself
            else:
                life = Life(
                    rank=int(self.envs[local_rank]["RANK"]),
                    local_rank=local_rank,
                    log=self.stderrs[local_rank] or self.stdouts[local_rank] or None,
                )
                if life.log is not None and self.stdouts[local_rank] == self.stderrs[local_rank]:
                    self.args[local_rank] = ("-c", INTO_LOG, command, life.log, *self.args[local_rank])
                    self.entrypoint = "/bin/sh"
                    self.stdouts[local_rank] = self.stderrs[local_rank] = ""
            self.lives[local_rank] = life
            self.crew.watch.witness.expect(life)
        super()._start()
        for local_rank, pid in super().pids().items():
            self.lives[local_rank].pid = pid
            self.crew.watch.witness.watch(self.lives[local_rank])
        self.crew.watch.running(self.lives)

    def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:
        self.crew.watch.over()
        self.end_all(death_sig, min(timeout, self.crew.shutdown_s))
        super()._close(death_sig, timeout)


def replace_engine_processes(crew: Crew) -> None:
    """Have torch's engine start its ranks through the crew; nothing else of it changes."""
    from torch.distributed.elastic.agent.server import local_elastic_agent

    local_elastic_agent.start_processes = crew.start_processes  # type: ignore[assignment]


def python_is_ours(command: object) -> bool:
    """Whether the engine would start the interpreter that runs this."""
    return isinstance(command, str) and os.path.realpath(command) == os.path.realpath(sys.executable)
