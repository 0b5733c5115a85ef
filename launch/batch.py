"""Runs once, on a job's first node, for as long as the job: starts the step, hears all nodes, judges, and goes on.

Internal: `python -m launch.batch --spec RUN/spec.json`, inside the batch script.
"""

import argparse
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from launch import attempts, run_folder, spec
from launch.deadline import Deadline, end_time_s, how_it_ends
from launch.doctor import DoctorOptions, examine, lines
from launch.doctor import write as write_report
from launch.doctor_crew import crew_of
from launch.events import NodeFacts, RankEnd
from launch.exit_codes import CRASHED, DONE, MISTAKE, STOPPED
from launch.head import Head, Told
from launch.hub import Hub
from launch.job import Job, members_of, read_job, srun_command
from launch.private_files import write_json, write_private
from launch.sequel import STOPPING, margin_s, missing_attempts, record, take_up
from launch.slurm_text import SlurmError
from launch.verdict import Verdict, judge, write

HUB_FILE = "hub.json"
POLL_S = 0.2
GOODBYE_S = 10.0
TO_STOP = (signal.SIGUSR1, signal.SIGUSR2)
TO_END = (signal.SIGTERM, signal.SIGINT)


class Batch:
    """One attempt of a run, from its step's start to its verdict."""

    def __init__(self, wanted: spec.Spec, job: Job, number: int) -> None:
        self.spec, self.job, self.number = wanted, job, number
        self.run = Path(wanted.run_dir)
        self.folder = self.run / run_folder.ATTEMPTS / str(number)
        self.started_s = time.time()
        self.members = members_of(wanted, job)
        self.head = Head([name for name, _ in self.members], [node for _, node in self.members])
        self.head.on_round = self._round_failed
        self.signals: list[int] = []
        self.stopping_s: float | None = None
        """When the ranks were asked to stop."""

    def launch(self) -> Verdict:
        """Start the step and wait for its end -> what it came to."""
        state = self.folder / "state"
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        token = secrets.token_hex(32)
        names = [name for name, _ in self.members]
        for number in (*TO_STOP, *TO_END):
            signal.signal(number, self._handle)
        with Hub(token, names, self.head.on_event, interface=self.spec.interface) as hub:
            write_json(state / HUB_FILE, {"endpoints": hub.endpoints, "token": token})
            command = srun_command(self.spec, self.job.cpus_per_task, self.number, [node for _, node in self.members])
            environment = os.environ | self._hosts(state)
            try:
                with (
                    subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as step,
                    Deadline(
                        lambda reason: self._stop(hub, reason),
                        margin_s=margin_s(self.run, self.spec.stop_margin_s),
                        stop_file=self.run / run_folder.STOP,
                        end_time=lambda: end_time_s(self.job.job_id),
                    ),
                ):
                    self._follow(hub, step)
            finally:
                (state / HUB_FILE).unlink(missing_ok=True)  # nobody is to find the token of a launch that is over
        return self._judged()

    def _hosts(self, state: Path) -> dict[str, str]:
        """For srun's arbitrary distribution: where each task of mode srun runs, which may differ between nodes."""
        if self.spec.mode != "srun":
            return {}
        file = state / "hosts"
        write_private(file, "".join(f"{node}\n" for _, node in self.members))
        return {"SLURM_HOSTFILE": str(file)}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)

    def _stop(self, hub: Hub, reason: str) -> None:
        print(f"ringmark: {reason}: the ranks are asked to save and stop", flush=True)
        self.head.stop, self.stopping_s = reason, time.monotonic()
        hub.broadcast("stop", {"reason": reason})

    def _follow(self, hub: Hub, step: "subprocess.Popen[bytes]") -> None:
        """Hear all nodes until the step is over."""
        told_stop, known_plan = False, False
        while not self.head.over:
            self.head.hear(hub, POLL_S)
            if self.head.plan is not None and not known_plan:
                known_plan = True
                write_json(self.folder / "nodes.json", self.head.plan | {"members": self.members})
            if not told_stop and any(number in TO_STOP for number in self.signals):
                told_stop = True
                self._stop(hub, "a signal came")
            if step.poll() is not None and self.head.events.empty():
                time.sleep(POLL_S)  # what was sent last may still be under way
                while not self.head.events.empty():
                    self.head.hear(hub, POLL_S)
                self.head.all_lost(hub, f"its launcher ended without a word (srun: exit code {step.returncode})")
        hub.broadcast("over", {"code": self._judged().code})
        if self.stopping_s is not None:
            write_json(self.folder / STOPPING, {"took_s": time.monotonic() - self.stopping_s})
        try:
            step.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            step.terminate()
            step.wait()

    def _judged(self) -> Verdict:
        return self._judge(self.head.ends(), self.head.facts())

    def _judge(self, ends: Sequence[RankEnd], facts: Sequence[NodeFacts]) -> Verdict:
        size = sum(self.head.plan["slots"]) if self.head.plan is not None else 0
        return judge(tuple(ends), tuple(facts), started_s=self.started_s, world_size=size)

    def _round_failed(self, restart: int, told: Sequence[Told]) -> None:
        """Tell why all ranks start again; the attempt's own verdict comes at its end."""
        verdict = self._judge([end for ends, _ in told for end in ends], [facts for _, facts in told])
        for line in (*verdict.lines, f"restart {restart}: all ranks start again"):
            print(f"ringmark: {line}", flush=True)
        try:
            write(verdict, self.folder, restart)
        except OSError as error:  # its launch goes on all the same
            print(f"ringmark: the verdict could not be stored: {error}", flush=True)


def healthy(wanted: spec.Spec) -> bool:
    """Whether doctor finds all nodes of this job good; it says what is not, and resubmit --exclude-bad reads it."""
    run = Path(wanted.run_dir)
    report = examine(crew_of(os.environ, "all"), DoctorOptions(run_dir=run, interface=wanted.interface), os.environ)
    write_report(report, run / "doctor.json")
    bad = [finding for finding in report.findings if finding.level == "error"]
    if bad:
        print("\n".join(lines(report, colour=False)), flush=True)
        hint = f"; `ringmark resubmit --exclude-bad {run}` avoids bad nodes" if report.exclude else ""
        print(f"ringmark: nothing was started{hint}", flush=True)
    return not bad


def attempt(wanted: spec.Spec, job: Job) -> int:
    """Run one attempt, and have the next one follow -> the job's exit code.

    Raises ValueError for what cannot be started, OSError and SlurmError for what broke.
    """
    run = Path(wanted.run_dir)
    if run_folder.is_done(run):
        print("ringmark: the run is done already; this job has nothing to do", flush=True)
        return DONE
    if (reason := run_folder.stop_reason(run)) is not None:
        print(f"ringmark: the run was asked to stop ({reason}); `ringmark resubmit {run}` goes on", flush=True)
        return STOPPED
    if wanted.preflight and not healthy(wanted):
        return CRASHED
    missing_attempts(run)
    number = len(attempts.read(run)[0])
    before = take_up(wanted, job, number)
    batch = Batch(wanted, job, number)
    verdict = batch.launch()
    ending = how_it_ends(job.job_id, job.restarts)
    for line in verdict.lines:
        print(f"ringmark: {line}", flush=True)
    if batch.head.refusal is not None:
        print(f"ringmark: {batch.head.refusal}", flush=True)
    write(verdict, batch.folder)
    return record(wanted, job, verdict, ending, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one attempt; returns the job's exit code."""
    parser = argparse.ArgumentParser(prog="launch.batch", description=__doc__, allow_abbrev=False)
    parser.add_argument("--spec", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    try:
        return attempt(spec.read(options.spec), read_job(os.environ))
    except (OSError, ValueError, SlurmError) as error:
        print(f"launch.batch: {error}", file=sys.stderr)
        return MISTAKE if isinstance(error, ValueError) else CRASHED


if __name__ == "__main__":
    sys.exit(main())
