"""The processes that look at nodes for the doctor: one here, or one on each node of a SLURM job."""

import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch.doctor_node import Assembler

ROOT = Path(__file__).resolve().parent.parent
END_S = 3.0
"""How long the nodes have to tidy up."""


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Processes that look at nodes: one for each, or one srun for all."""

    commands: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    """Names of the nodes, by member, as far as they are known before the nodes speak."""
    asked: int | None = None
    """CPUs that each was asked for."""


def crew_of(environ: Mapping[str, str], nodes: Literal["all", "this"]) -> Crew:
    """All nodes of the SLURM job that we are in, or else this machine. Raises ValueError if SLURM does not answer."""
    asked = environ.get("SLURM_CPUS_PER_TASK", "")
    cpus = int(asked) if asked.isdecimal() else None
    command = (sys.executable, "-m", "launch.doctor_node")
    if nodes == "this" or "SLURM_JOB_ID" not in environ or not shutil.which("srun", path=environ.get("PATH")):
        return Crew(
            commands=((*command, "0"),), names=(environ.get("SLURMD_NODENAME") or os.uname().nodename,), asked=cpus
        )
    listed = subprocess.run(
        ["scontrol", "show", "hostnames", environ.get("SLURM_JOB_NODELIST", "")],
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    names = tuple(listed.stdout.split())
    if not names:
        raise ValueError(
            f"expected the nodes of job {environ['SLURM_JOB_ID']} from scontrol, got {listed.stderr.strip()!r}; "
            "use --nodes this"
        )
    count = len(names)
    srun = (
        *("srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--export=ALL", "--mpi=none"),
        # --overlap: a job's own shell may hold its CPUs. One node that fails must not take the others' answers with it.
        *("--overlap", "--kill-on-bad-exit=0", "--wait=0", *([f"--cpus-per-task={cpus}"] if cpus else [])),
    )
    return Crew(commands=((*srun, *command),), names=names, asked=cpus)


class Nodes:
    """The nodes at work: orders go to all of them, answers come from each."""

    def __init__(self, crew: Crew, environ: Mapping[str, str]) -> None:
        self.silent: dict[int, str] = {}
        """Members that did not answer, or failed to find out, and what is known of it."""
        self._members = range(len(crew.names))
        self._assembler = Assembler()
        path = os.pathsep.join(filter(None, [str(ROOT), environ.get("PYTHONPATH")]))
        self._processes = [
            subprocess.Popen(
                command,
                env={**environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for command in crew.commands
        ]
        self._selector = selectors.DefaultSelector()
        self._rest: dict[int, bytes] = {}
        self._complaints: dict[int, bytes] = {}
        for process in self._processes:
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
                self._selector.register(pipe, selectors.EVENT_READ, pipe is process.stderr)

    def ask(self, order: Mapping[str, Any], timeout_s: float) -> dict[int, dict[str, Any]]:
        """Give an order to all nodes -> their answers, by member; who gives none in time is not waited for again."""
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(order).encode() + b"\n")
                process.stdin.flush()
        answers: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + timeout_s
        waited_for = set(self._members) - set(self.silent)
        while waited_for - set(answers) - set(self.silent) and self._selector.get_map() and time.monotonic() < deadline:
            for line in self._lines(deadline - time.monotonic()):
                member, answer = self._assembler.add(line) or (-1, {})
                if "failed" in answer:
                    self.silent[member] = answer["failed"]
                elif answer.get("did") == order["do"]:
                    answers[member] = answer
        why = f"it did not answer within {timeout_s:g} s" if self._selector.get_map() else "its process ended"
        words = b"".join(self._complaints.values()).decode(errors="replace").strip().splitlines()
        for member in waited_for - set(answers) - set(self.silent):
            self.silent[member] = why + (f": {words[-1][:300]}" if words else "")
        return answers

    def _lines(self, timeout_s: float) -> Iterator[str]:
        """Whole lines that come within a time, which is over as soon as anything comes."""
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._selector.unregister(key.fileobj)
            elif key.data:
                self._complaints[key.fd] = (self._complaints.get(key.fd, b"") + data)[-4000:]
            else:
                *lines, self._rest[key.fd] = (self._rest.get(key.fd, b"") + data).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)

    def close(self) -> None:
        """No more orders: the nodes tidy up and end, or are ended."""
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        for stop in (lambda _: None, subprocess.Popen.terminate, subprocess.Popen.kill):
            deadline = time.monotonic() + END_S
            for process in self._processes:
                if process.poll() is None:
                    stop(process)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(max(0.1, deadline - time.monotonic()))
        for process in self._processes:
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()
        self._selector.close()
