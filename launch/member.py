"""One node's launcher, or one rank's, in a launch of several: hears the head, and obeys."""

import argparse
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.addresses import interface_of
from launch.events import NodeFacts, RankEnd, to_json
from launch.exit_codes import CRASHED
from launch.link import Link, Plan
from launch.private_files import read_json
from launch.run_folder import ATTEMPTS
from launch.spec import Spec

if TYPE_CHECKING:
    from launch.watch import Outcome

OVER_S = 120.0
"""How long a member that has ended waits for the head's word, so that srun does not end the others first."""
OWN_MODULES = ("launch.",)


class Member:
    """Connects to the head of an attempt; `stop` and `abort` are set by what it says."""

    def __init__(self, spec: Spec, attempt: int, name: str) -> None:
        self.spec, self.name = spec, name
        self.folder = Path(spec.run_dir) / ATTEMPTS / str(attempt)
        self.attempt = attempt
        self.stop = threading.Event()
        self.abort = threading.Event()
        self.wanted_round = 0
        """The latest round that a node asked for."""
        self.code: int | None = None
        """What all came to, once the head has said it."""
        self._over = threading.Event()
        hub = read_json(self.folder / "state" / "hub.json")
        if not hub:
            raise ValueError(f"expected the head's address in {self.folder}/state/hub.json, got none; submit again")
        self.link = Link(hub["endpoints"], hub["token"], name, self._hear)

    def _hear(self, kind: str, data: Any) -> None:
        if kind == "stop":
            self.stop.set()
        elif kind == "again":
            self.wanted_round = max(self.wanted_round, int(data["round"]))
        elif kind == "over":
            self.code = int(data["code"])
            self._over.set()
        elif kind in ("abort", "lost", "bye"):
            self.abort.set()
            if kind != "abort":
                self._over.set()

    def join(self, slots: int, round_number: int = 0) -> Plan:
        """Meet the others. Raises ValueError, with the same sentence on all members."""
        return self.link.join(slots, round_number=round_number, interface=self.spec.interface)

    def tell_end(self, end: RankEnd) -> None:
        """Tell of a rank's end, on the head's clock."""
        self.link.send("end", to_json(self._on_heads_clock(end)))

    def tell_outcome(self, ends: tuple[RankEnd, ...], facts: NodeFacts) -> int:
        """Tell all there is, and wait for the others -> the launch's exit code."""
        failed = not ends or any(end.code != 0 for end in ends)
        self.link.send("outcome", {**self._told(ends, facts), "failed": failed})
        self._over.wait(OVER_S)
        self.link.stop()
        return CRASHED if self.code is None else self.code

    def tell_round(self, restart: int, outcome: "Outcome") -> None:
        """Tell how a round ended that this restart follows: only the head sees all of it, and can judge."""
        facts = replace(outcome.facts, node_rank=self.link.members.index(self.name))
        self.link.send("round", {**self._told(outcome.ends, facts), "restart": restart})

    def _told(self, ends: tuple[RankEnd, ...], facts: NodeFacts) -> dict[str, Any]:
        return {"ends": [to_json(self._on_heads_clock(end)) for end in ends], "facts": to_json(facts)}

    def _on_heads_clock(self, end: RankEnd) -> RankEnd:
        ahead_s = self.link.clock_offset_s
        words = None if end.words is None else replace(end.words, time_s=end.words.time_s + ahead_s)
        return replace(end, time_s=end.time_s + ahead_s, words=words)


def read_arguments(prog: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """What srun was told to run: `spec`, the path of the run's spec, and `attempt`, its number."""
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    parser.add_argument("--spec", type=Path, required=True, metavar="FILE")
    parser.add_argument("--attempt", type=int, required=True, metavar="K")
    return parser.parse_args(argv)


def interfaces(plan: Plan, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that have the ranks' own connections take the way on which their node has reached the first one."""
    name = "lo" if len(plan.members) == 1 else interface_of(plan.address)
    wanted = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {variable: value for variable, value in wanted.items() if variable not in environ}


def arguments_of(spec: Spec, attempt: int) -> tuple[str, ...]:
    """The script's arguments; a later attempt of a run that can go on does so."""
    resumes = any(word.partition("=")[0] == "--resume" for word in spec.arguments)
    return (*spec.arguments, "--resume", "auto") if attempt and spec.resumable and not resumes else spec.arguments


def take_environment(spec: Spec, environ: "os._Environ[str]") -> None:
    """Change this process's environment into that of the person's script, from what the batch script needed."""
    if not spec.script.startswith(OWN_MODULES):
        environ.pop("PYTHONSAFEPATH", None)
        paths = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != spec.root]
        environ["PYTHONPATH"] = os.pathsep.join(paths)
        if not paths:
            del environ["PYTHONPATH"]
        sys.path[1:] = [path for path in sys.path[1:] if path != spec.root]  # the first is boot.py's, and goes later
    environ.update(spec.environment)


def ranks_here(spec: Spec, environ: Mapping[str, str]) -> int:
    """Ranks of this node: as many as were asked for, or one for each GPU that it was given. Raises ValueError."""
    if spec.nproc_per_node is not None:
        return spec.nproc_per_node
    visible = [device for device in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    count = environ.get("SLURM_GPUS_ON_NODE", "")
    found = int(count) if count.isdigit() else len(visible)
    if found == 0:
        raise ValueError("expected GPUs for the ranks of this node, got none; ask for GPUs or give --nproc-per-node")
    return found
