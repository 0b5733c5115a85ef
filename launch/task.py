"""Runs once per rank inside a SLURM step, where srun itself starts the ranks: no torchrun between.

Internal: `srun ... python launch/boot.py task --spec RUN/spec.json --attempt K`, from launch.batch in mode srun.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from launch import spec
from launch.cpus import gpu_bus_ids, plan
from launch.exit_codes import MISTAKE
from launch.guardian import Guardian
from launch.link import Plan
from launch.member import Member, arguments_of, interfaces, read_arguments, take_environment
from launch.nursery import Birth
from launch.oom import OomCounter
from launch.processes import kill
from launch.rank import to_argument
from launch.reporter import SOCKET, VARIABLE, private_path
from launch.torchrun import BOOT
from launch.watch import Watch
from launch.witness import Life, Witness

PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
GRACE_S = 30.0
POLL_S = 0.05


class Task:
    """One rank and who watches it."""

    def __init__(self, wanted: spec.Spec, attempt: int, name: str) -> None:
        self.spec, self.name = wanted, name
        self.host, _, self.local_rank = name.rpartition(".")
        self.folder = private_path()
        self.folder.mkdir(mode=0o700)
        self.guardian = Guardian(self.folder, f"{VARIABLE}={self.folder / SOCKET}")  # before any thread
        self.signals: list[int] = []
        self.life: Life | None = None
        self.member = Member(wanted, attempt, name)
        self.witness = Witness(self.folder, self.host, None)
        self.witness.on_end = self.member.tell_end
        self.watch = Watch(
            witness=self.witness,
            host=self.host,
            hang_timeout_s=wanted.hang_timeout_s,
            logs=None,
            session=self.guardian.watch,
        )

    def variables(self, where: Plan) -> dict[str, str]:
        """torchrun's variables, from SLURM's order of tasks."""
        hosts = [member.rpartition(".")[0] for member in where.members]
        nodes = list(dict.fromkeys(hosts))
        local, world = str(hosts.count(self.host)), str(len(hosts))
        rank = str(where.node_rank)
        group = {"GROUP_RANK": str(nodes.index(self.host)), "GROUP_WORLD_SIZE": str(len(nodes))}
        role = {"ROLE_RANK": rank, "ROLE_NAME": "default", "ROLE_WORLD_SIZE": world}
        return {
            **{"RANK": rank, "LOCAL_RANK": self.local_rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": local},
            **{"MASTER_ADDR": where.master_addr, "MASTER_PORT": str(where.master_port)},
            **group,
            **role,
            **{"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": Path(self.spec.run_dir).name},
            **interfaces(where, os.environ),
            VARIABLE: self.witness.address,
        }

    def run(self) -> int:
        """Start the rank, wait for its end -> the launch's exit code."""
        for number in PASSED_ON:
            signal.signal(number, self._handle)
        oom = OomCounter()
        where = self.member.join(1)
        variables = self.variables(where)
        ranks = int(variables["LOCAL_WORLD_SIZE"])
        cpus = plan(ranks, allowed=sorted(os.sched_getaffinity(0)), gpus=gpu_bus_ids(os.environ)[:ranks])
        variables.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(cpus.threads)))
        rank, local_rank = int(variables["RANK"]), int(self.local_rank)
        stack_file = self.folder / "stack.txt"
        birth = Birth(
            script=self.spec.script,
            is_module=self.spec.is_module,
            arguments=arguments_of(self.spec, self.member.attempt),
            environment={},
            cpus=cpus.slices[local_rank],
            threads=cpus.threads,
            stack_file=str(stack_file),
            recorder=self.spec.hang_timeout_s is not None,
        )
        log = self.member.folder / "logs" / f"rank-{rank}-{self.host}.log"
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.life = Life(rank=rank, local_rank=local_rank, log=str(log), stack_file=stack_file)
        self.watch.begin()
        self.witness.expect(self.life)
        process = subprocess.Popen(
            [sys.executable, "-u", str(BOOT), "rank", to_argument(birth)],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        pump = threading.Thread(target=_copy, args=(process.stdout, log, rank), daemon=True)
        pump.start()
        self.life.pid = process.pid
        self.witness.watch(self.life)
        self.watch.running({local_rank: self.life})
        self._follow(self.life)
        process.wait()
        pump.join(1.0)
        names = tuple(signal.Signals(number).name for number in self.signals if number != signal.SIGUSR1)
        outcome = self.watch.outcome(where.node_rank, oom.increase(), names)
        return self.member.tell_outcome(outcome.ends, outcome.facts)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)
        if self.life is not None and self.life.pid and self.life.end is None:
            self.life.asked = self.life.asked or number not in (signal.SIGUSR1, signal.SIGUSR2)
            kill(self.life.pid, number)

    def _follow(self, life: Life) -> None:
        """Wait for the rank's end; ask it to stop or end it when the head says so."""
        asked, end_at = False, None
        while life.end is None:
            time.sleep(POLL_S)
            if self.member.stop.is_set() and not asked and (life.step is not None or not self.spec.resumable):
                asked = True
                kill(life.pid, signal.SIGUSR1 if self.spec.resumable else signal.SIGTERM)
            if end_at is None and (self.member.abort.is_set() or self.watch.hung()):
                self.watch.look()
                life.asked = True
                kill(life.pid, signal.SIGTERM)
                kill(life.pid, signal.SIGCONT)
                end_at = time.monotonic() + GRACE_S
            if end_at is not None and time.monotonic() > end_at:
                kill(life.pid, signal.SIGKILL)
        self.watch.over()


def _copy(source: IO[bytes], log: Path, rank: int) -> None:
    """Write a rank's lines into its log, and with its name to the job's output."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        for line in source:
            file.write(line)
            sys.stdout.buffer.write(b"[rank %d] " % rank + line)
            sys.stdout.buffer.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run this task's rank; returns the exit code of the whole launch."""
    options = read_arguments("launch.task", argv)
    task = None
    try:
        wanted = spec.read(options.spec)
        name = f"{os.environ['SLURMD_NODENAME']}.{os.environ['SLURM_LOCALID']}"
        take_environment(wanted, os.environ)
        os.chdir(wanted.work_dir)
        task = Task(wanted, options.attempt, name)
        return task.run()
    except KeyError as error:
        print(f"ringmark: expected a SLURM task, found no {error}; use `ringmark submit`", file=sys.stderr)
        return MISTAKE
    except (OSError, ValueError) as error:
        print(f"ringmark: {error}", file=sys.stderr)
        return MISTAKE
    finally:
        if task is not None:
            task.guardian.end()


def entry() -> NoReturn:
    """Run and end at once."""
    code = main()
    sys.stdout.flush()
    os._exit(code)
