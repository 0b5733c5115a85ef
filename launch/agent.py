"""torchrun's engine and flags, watched: ranks in milliseconds, one verdict, nothing left behind.

`python launch/boot.py agent [TORCHRUN'S OPTIONS] SCRIPT [ARGUMENTS]` does what `torchrun` does with them.
"""

import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from launch.argv import UsageError, fail
from launch.deadline import Deadline
from launch.exit_codes import CRASHED
from launch.guardian import Guardian
from launch.nursery import NotBornError, Nursery
from launch.processes import adopt_orphans, kill
from launch.reporter import SOCKET, VARIABLE, private_path
from launch.torchrun_argv import TorchrunLine, split

if TYPE_CHECKING:
    from launch.events import RankEnd
    from launch.rendezvous import Company
    from launch.verdict import Verdict
    from launch.watch import Outcome, Watch
    from launch.witness import Life, Witness

PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
TO_END = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Signals after which ranks that do not end in time are made to."""
GRACE_S = 30.0
STOP = "stop"
"""A file of this name beside the verdict asks the ranks to save and stop."""
STOP_POLL_S = 0.5


def why_plain(line: TorchrunLine, environ: Mapping[str, str]) -> str | None:
    """Why the ranks are to be started one by one, each with an import of torch of its own; None if they are forked."""
    if "plain" in line.ours:
        return "--plain"
    for name in ("no-python", "numa-binding"):
        if name in line.given or environ.get(f"PET_{name.upper().replace('-', '_')}", "0") not in ("0", ""):
            return f"--{name}"
    return next((f"{name} is set" for name in ("PYTHON_EXEC", "LD_PRELOAD") if environ.get(name)), None)


class Launcher:
    """One launch on this node, from its first process to its last."""

    def __init__(self, line: TorchrunLine, host: str | None = None) -> None:
        _check_script(line)
        self.line, self.host = line, host or socket.gethostname()
        self.on_end: Callable[[RankEnd], None] = lambda end: None
        """Called with each rank that ends, at once."""
        self.on_round: Callable[[int, Outcome], None] = self._tell_round
        """Called with the number of a restart, and the end of the round before it."""
        self.company: Company | None = None
        """The other nodes, where there are any that ringmark itself brings together."""
        self.started_s = time.time()
        self.run_dir = Path(line.ours["run-dir"]) if "run-dir" in line.ours else None
        self.verdict_dir = Path(line.ours["verdict-dir"]) if "verdict-dir" in line.ours else self.run_dir
        """Where the verdict is stored; the run's folder, unless the ranks' own output has one."""
        self.hang_timeout_s = _seconds("hang-timeout", line.ours.get("hang-timeout"))
        self.why_plain = why_plain(line, os.environ)
        self.signals: list[int] = []
        self.witness: Witness | None = None
        self.watch: Watch | None = None
        self.folder = private_path()
        self.guardian = Guardian(self.folder, f"{VARIABLE}={self.folder / SOCKET}")
        adopt_orphans()
        for number in PASSED_ON:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup is to be respected
                signal.signal(number, self._handle)
        self.nursery = self._fork_nursery() if self.why_plain is None else None
        self.folder.mkdir(mode=0o700)  # now that there is somebody who removes it, whatever happens here

    def _fork_nursery(self) -> Nursery:
        """Import torch once for the launcher and all its ranks: the import is most of what a start costs."""
        threads = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"  # a process of several threads cannot be forked safely
        gc.disable()  # what an import makes stays; looking through it again and again takes a tenth of the time
        importlib.import_module("torch")
        gc.freeze()
        gc.enable()
        nursery = Nursery(list(filter(None, self.line.ours.get("preload", "").split(","))), self.guardian.release)
        self.guardian.watch_adopter(nursery.pid)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads
        return nursery

    def run(self) -> "Outcome":
        """Launch, and wait for the end. Raises ValueError for what cannot be started."""
        for folder in filter(None, (self.run_dir, self.verdict_dir)):
            _make(folder)  # now: it would be late to find out when the ranks have worked for hours
        from launch.engine import run_engine  # imports torch

        if self.verdict_dir is None or self.company is not None:  # the head of a job looks for the file itself
            return run_engine(self)
        file = self.verdict_dir / STOP
        file.unlink(missing_ok=True)  # it was meant for an earlier launch
        with Deadline(self._stop, margin_s=0, stop_file=file):
            return run_engine(self)

    def begin(self) -> None:
        """The options are good: what comes of this launch takes the place of what an earlier one left."""
        from launch.verdict import remove

        if self.verdict_dir is not None and self.company is None:  # a job's attempts have folders of their own
            remove(self.verdict_dir)

    def _stop(self, reason: str) -> None:
        self.say(f"{reason}: the ranks are asked to stop")
        while not self.ask_to_stop(resumable=self.line.script.startswith("launch.")):
            time.sleep(STOP_POLL_S)  # in a thread that ends with the launch

    def ask_to_stop(self, resumable: bool) -> bool:
        """Ask the ranks to save and stop, unless they would not understand it yet -> whether they were asked.

        One that is `resumable` would die of the signal before its first step; any other script knows only SIGTERM.
        """
        lives = self.running()
        if not lives or (resumable and any(life.step is None for life in lives)):
            return False
        for life in lives:
            kill(life.pid, signal.SIGUSR1 if resumable else signal.SIGTERM)
        return True

    def say(self, text: str) -> None:
        """Tell the person at the terminal, who may have closed it."""
        if "quiet" not in self.line.ours:
            _print(text)

    def round_failed(self, outcome: "Outcome") -> None:
        """A round failed that is followed by another."""
        assert self.watch is not None
        self.on_round(self.watch.rounds, outcome)

    def _tell_round(self, restart: int, outcome: "Outcome") -> None:
        """Tell why it failed; where there are other nodes, their head does."""
        self.judge(outcome, restart)
        _print(f"restart {restart}: all ranks start again")

    def judge(self, outcome: "Outcome", restart: int | None = None) -> int:
        """Say what happened, and store it, beside others if a restart follows -> the exit code."""
        from launch.verdict import judge

        verdict = judge(outcome.ends, (outcome.facts,), started_s=self.started_s, world_size=None)
        for text in verdict.lines:
            _print(text)
        self._store(verdict, restart)
        return verdict.code

    def unborn(self, why: str) -> int:
        """Say why there were no ranks, and store it -> the exit code."""
        from launch.verdict import without_ranks

        _print(why)
        self._store(without_ranks(why, started_s=self.started_s, ended_s=time.time()), None)
        return CRASHED

    def _store(self, verdict: "Verdict", restart: int | None) -> None:
        from launch.verdict import write

        if self.verdict_dir is not None:
            try:
                self.verdict_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                write(verdict, self.verdict_dir, restart)
            except OSError as error:  # what was said stands, and so does the exit code
                _print(f"the verdict could not be stored: {error}")

    def signal_names(self) -> tuple[str, ...]:
        """Signals that asked this launcher to end, by name."""
        return tuple(signal.Signals(number).name for number in self.signals if number in TO_END)

    def running(self) -> "list[Life]":
        lives = [] if self.witness is None else list(self.witness.lives.values())
        return [life for life in lives if life.end is None and life.pid]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on to the ranks, which end in their own time. A second Ctrl-C ends everything now."""
        again = number == signal.SIGINT and signal.SIGINT in self.signals
        self.signals.append(number)
        lives = self.running()
        if again or not lives:
            self.end()
            os._exit(128 + number)
        for life in lives:
            life.asked = life.asked or number in TO_END
            kill(life.pid, signal.SIGTERM if number == signal.SIGHUP else number)
        if number in TO_END:
            signal.signal(signal.SIGALRM, self._out_of_patience)
            if signal.getitimer(signal.ITIMER_REAL)[0] == 0.0:
                signal.setitimer(
                    signal.ITIMER_REAL, _seconds("shutdown-timeout", self.line.given.get("shutdown-timeout")) or GRACE_S
                )

    def end(self) -> None:
        """The launch is over: wait until nothing of it is left. Signals say nothing any more."""
        for number in PASSED_ON:
            signal.signal(number, lambda *_: None)
        self.guardian.end()

    def _out_of_patience(self, number: int, frame: FrameType | None) -> None:
        for life in self.running():
            kill(life.pid, signal.SIGKILL)


def _check_script(line: TorchrunLine) -> None:
    """Raise UsageError for a script that is not there, before any process is started."""
    no_file = (
        {"module", "no-python", "help"} & set(line.given)
        or os.environ.get("PET_MODULE")
        or os.environ.get("PET_NO_PYTHON")
    )
    script = Path(line.script)
    if not no_file and not script.is_file() and not (script / "__main__.py").is_file():
        what = "a folder without __main__.py" if script.is_dir() else "no such file"
        raise UsageError(f"expected a Python script, got {line.script}: {what}; a module needs -m before it")


def _make(folder: Path) -> None:
    """Make a folder for this user alone. Raises ValueError if that cannot be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"expected a folder that can be written, got {error}; choose another one") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"expected a folder that can be written, got {folder}; choose another one")


def _seconds(name: str, text: str | None) -> float | None:
    """A time in seconds from a flag. Raises UsageError if it is none."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise UsageError(f"expected --{name} as seconds above 0, got {text!r}; write for example --{name} 60")
    return value


def _print(text: str) -> None:
    try:
        print(f"ringmark: {text}", file=sys.stderr, flush=True)
    except OSError:
        return  # the terminal is gone


def main(argv: Sequence[str] | None = None) -> int:
    """Entry; returns the exit code."""
    launcher = None
    try:
        launcher = Launcher(split(sys.argv[1:] if argv is None else argv))
        return launcher.judge(launcher.run())
    except (UsageError, ValueError) as error:
        return fail(error)
    except NotBornError as error:
        if launcher is None:
            _print(str(error))
            return CRASHED
        return launcher.unborn(str(error))
    finally:
        if launcher is not None:
            launcher.end()


def entry() -> NoReturn:
    """Run and end, without torch's teardown, which takes a while and has nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of a launch that has not begun
    try:
        code = main()
    except SystemExit as stop:  # torchrun's parser has spoken
        code = stop.code if isinstance(stop.code, int) else 2
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
