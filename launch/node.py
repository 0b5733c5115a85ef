"""Runs once per node inside a SLURM step: starts and watches this node's ranks, and tells the head of the job.

Internal: `srun ... python launch/boot.py node --spec RUN/spec.json --attempt K`, from launch.batch.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from launch import spec
from launch.agent import Launcher
from launch.exit_codes import CRASHED, MISTAKE
from launch.member import Member, arguments_of, interfaces, ranks_here, read_arguments, take_environment
from launch.nursery import NotBornError
from launch.torchrun import PRELOAD
from launch.torchrun_argv import TorchrunLine

if TYPE_CHECKING:
    from launch.rendezvous import Company, Place

POLL_S = 0.1


def line_of(wanted: spec.Spec, ranks: int, attempt: int) -> TorchrunLine:
    """The launch of this node's part, as torchrun would be told."""
    given = {
        "nnodes": str(wanted.nodes),
        "nproc-per-node": str(ranks),
        "max-restarts": str(wanted.max_restarts),
        "rdzv-id": f"{Path(wanted.run_dir).name}-{attempt}",
    }
    ours = {"run-dir": str(Path(wanted.run_dir) / "attempts" / str(attempt))}
    if wanted.hang_timeout_s is not None:
        ours["hang-timeout"] = str(wanted.hang_timeout_s)
    if wanted.script.startswith("launch."):
        ours["preload"] = ",".join(PRELOAD)
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    if wanted.is_module:
        given, words = {**given, "module": "1"}, [*words, "--module"]
    arguments = arguments_of(wanted, attempt)
    return TorchrunLine(torchrun=tuple(words), given=given, ours=ours, script=wanted.script, arguments=arguments)


def company_of(member: Member, ranks: int) -> "Company":
    """The other nodes, as torch's engine sees them."""
    from launch.rendezvous import Company, Place, RestartsOverError

    environment: dict[str, str] = {}
    current = 0

    def meet(round_number: int) -> "Place":
        nonlocal current
        if round_number > member.spec.max_restarts:
            raise RestartsOverError(f"{round_number} restarts")
        if round_number > member.wanted_round:
            member.link.send("again", {"round": round_number})
        current = round_number
        plan = member.join(ranks, round_number)
        environment.clear()
        environment.update(interfaces(plan, os.environ))
        listener = None if plan.held is None else socket.socket(fileno=plan.held.listener())
        address, port = plan.master_addr, plan.master_port
        return Place(node_rank=plan.node_rank, nodes=len(plan.members), address=address, port=port, listener=listener)

    node_rank = member.link.members.index(member.name)
    return Company(
        meet=meet, node_rank=node_rank, waiting=lambda: int(member.wanted_round > current), environment=environment
    )


def obey(member: Member, launcher: Launcher) -> None:
    """Do what the head says, in a thread: ask the ranks to stop, or end them."""
    asked = False
    while not member.abort.wait(POLL_S):
        if member.stop.is_set() and not asked:
            asked = launcher.ask_to_stop(member.spec.resumable)
    while True:  # a round that is only about to begin is to end as well
        if launcher.watch is not None:
            launcher.watch.ended = True
        time.sleep(POLL_S)


def main(argv: Sequence[str] | None = None) -> int:
    """Run this node's ranks; returns the exit code of the whole launch."""
    options = read_arguments("launch.node", argv)
    launcher = None
    try:
        wanted = spec.read(options.spec)
        name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        take_environment(wanted, os.environ)
        ranks = ranks_here(wanted, os.environ)
        os.chdir(wanted.work_dir)
        if wanted.mode == "torchrun":
            from launch.plain import run_torchrun

            return run_torchrun(wanted, options.attempt, name, ranks)
        launcher = Launcher(line_of(wanted, ranks, options.attempt), host=name)  # before any thread: it forks
        member = Member(wanted, options.attempt, name)
        launcher.company = company_of(member, ranks)
        launcher.on_end, launcher.on_round = member.tell_end, member.tell_round
        threading.Thread(target=obey, args=(member, launcher), daemon=True).start()
        outcome = launcher.run()
        return member.tell_outcome(outcome.ends, outcome.facts)
    except (OSError, ValueError, NotBornError) as error:
        print(f"ringmark: {error}", file=sys.stderr)
        return CRASHED if isinstance(error, NotBornError) else MISTAKE
    finally:
        if launcher is not None:
            launcher.end()


def entry() -> NoReturn:
    """Run and end at once, without torch's teardown."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
