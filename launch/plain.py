"""Mode torchrun: the real torchrun on each node of a job, with the place to meet worked out for it."""

import json
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from launch.cpus import gpu_bus_ids, plan
from launch.exit_codes import shell_code
from launch.guardian import Guardian
from launch.member import Member, arguments_of, interfaces
from launch.nursery import Birth
from launch.oom import OomCounter
from launch.processes import descendants, kill
from launch.rank import to_argument
from launch.reporter import SOCKET, VARIABLE, private_path
from launch.spec import Spec
from launch.torchrun import BOOT
from launch.watch import Watch
from launch.witness import Life, Witness

PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
POLL_S = 0.1


def run_torchrun(wanted: Spec, attempt: int, name: str, ranks: int) -> int:
    """Run torchrun for this node's ranks -> the launch's exit code. Raises ValueError if the nodes cannot meet.

    Ranks still speak of their own ends; of one that is killed, only torchrun's exit code is known.
    """
    folder = private_path()
    folder.mkdir(mode=0o700)
    guardian = Guardian(folder, f"{VARIABLE}={folder / SOCKET}")
    try:
        member = Member(wanted, attempt, name)
        oom = OomCounter()
        witness = Witness(folder, name, None)
        witness.on_end = member.tell_end
        where = member.join(ranks)
        cpus = plan(ranks, allowed=sorted(os.sched_getaffinity(0)), gpus=gpu_bus_ids(os.environ)[:ranks])
        birth = Birth(
            script=wanted.script,
            is_module=wanted.is_module,
            arguments=arguments_of(wanted, attempt),
            environment={},
            threads=cpus.threads,
        )
        logs = member.folder / "torchrun"
        for local_rank in range(ranks):
            witness.expect(Life(rank=where.first_rank + local_rank, local_rank=local_rank))
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", str(wanted.nodes)),
            *("--node-rank", str(where.node_rank), "--master-addr", where.master_addr),
            *("--master-port", str(where.master_port), "--nproc-per-node", str(ranks)),
            *("--max-restarts", str(wanted.max_restarts), "--log-dir", str(logs), "--tee", "3"),
            *("--", str(BOOT), "rank", to_argument(birth), json.dumps(cpus.slices)),
        ]
        variables = interfaces(where, os.environ) | {VARIABLE: witness.address}
        variables.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(cpus.threads)))
        code = shell_code(_follow(command, os.environ | variables, member))
        watch = Watch(witness=witness, host=name, hang_timeout_s=None, logs=None, session=lambda pid: None)
        outcome = watch.outcome(where.node_rank, oom.increase())
        told = member.tell_outcome(outcome.ends, outcome.facts)
        return told if told else code
    finally:
        guardian.end()


def _follow(command: list[str], environment: dict[str, str], member: Member) -> int:
    process = subprocess.Popen(command, env=environment)

    def pass_on(number: int, frame: FrameType | None) -> None:
        kill(process.pid, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    asked = ended = False
    while process.poll() is None:
        time.sleep(POLL_S)
        if member.stop.is_set() and not asked:
            asked = True
            for pid in descendants([process.pid]):
                kill(pid, signal.SIGUSR1 if member.spec.resumable else signal.SIGTERM)
        if member.abort.is_set() and not ended:
            ended = True
            process.terminate()
    return process.returncode
