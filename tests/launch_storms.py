"""Storms: launches that fail, hang, are killed or run beside each other, many times, each time at another moment.

`python -m tests.launch_storms NAME --count N [--seed S]` runs N trials of a kind and prints how many held.
"""

import argparse
import itertools
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launch.processes import kill
from launch.verdict import Verdict, read
from tests.launches import (
    LAUNCHER,
    SCRIPT,
    left_behind,
    listening_ports,
    processes_of,
    run,
    start,
    temporary_folder,
)
from tests.terminals import Terminal
from tests.waiting import wait_until

TWO = ("--nproc-per-node", "2")
PATHS: tuple[tuple[str, ...], ...] = ((), ("--plain",))
"""Forked ranks, and ranks that are started one by one."""
LIFE_S = 6.0
"""From the start of a launch until its ranks have run for a while."""
END_S = 15.0
"""After so long nothing of a launch may be left; ranks without a launcher give up by themselves only later."""
HANG_S = 4.0
NOTICE_S = 2.0
"""A hang is told at most so long after the timeout."""
MORE_TRIES = 2
"""So often a trial is repeated whose only fault is that the machine was too busy for it."""
LOOPBACK = frozenset({"0100007F", "0" * 24 + "01000000"})


@dataclass(frozen=True)
class Trial:
    """One launch of a storm."""

    good: bool
    note: str = ""
    """What was seen, where it did not hold."""
    figures: Mapping[str, float] = field(default_factory=dict)
    late: bool = False
    """Whether it held but for the time that it took."""


def tie(folder: Path, number: int, chance: random.Random) -> Trial:
    """Rank 1 ends 20 ms before rank 0, which reacts to it: it is named, and its code is the launch's."""
    done = run(folder, *TWO, "--run-dir", "run", *PATHS[number % 2], SCRIPT, "tie")
    verdict = _verdict(folder)
    good = verdict is not None and (verdict.ranks, verdict.code, done.returncode) == ((1,), 42, 42)
    return Trial(good, f"code {done.returncode}: {done.stderr}")


def kill9(folder: Path, number: int, chance: random.Random) -> Trial:
    """The launcher is killed at any moment: of its first 0.3 s, of its start, or while its ranks run and meet."""
    process = start(folder, *TWO, *PATHS[number % 2], SCRIPT, "stay")
    assert process.stdout is not None
    up = [process.stdout.readline() for _ in range(2 * (number % 3 == 2))]
    moment_s = chance.uniform(0, 0.3 if number % 3 == 0 else 1 if up else LIFE_S)
    time.sleep(moment_s)
    ports = listening_ports(processes_of(folder))
    process.kill()
    began = time.monotonic()
    left = left_behind(folder, END_S)
    gone_s = time.monotonic() - began
    process.communicate()
    return _nothing_left(left, f"killed after {moment_s:.3f} s", {"gone_s": gone_s, "ports": len(ports)})


def ctrlc(folder: Path, number: int, chance: random.Random) -> Trial:
    """Ctrl-C twice at a terminal, every third time while ranks run; they do not hear it."""
    terminal = Terminal(folder, [*LAUNCHER, *TWO, *PATHS[number % 2], SCRIPT, "deaf"])
    up = number % 3 == 2 and terminal.hear(b"up ", 2, 60)
    first_s, second_s = chance.uniform(0, 1 if up else LIFE_S), chance.uniform(0, 0.5)
    terminal.listen(first_s)
    terminal.type(b"\x03")
    terminal.listen(second_s)
    terminal.type(b"\x03")
    began = time.monotonic()
    code = terminal.wait(END_S)
    left = left_behind(folder, max(0.1, END_S - (time.monotonic() - began)))
    end_s = time.monotonic() - began
    terminal.close()
    seen = f"Ctrl-C after {first_s:.3f} s and {second_s:.3f} s later: code {code}, {terminal.said.decode()}"
    # Python itself ends by the signal before anything of ours has begun, and with 1 where it imports `site`.
    if code not in (130, -signal.SIGINT) and not (code == 1 and b"init_import_site" in terminal.said):
        return Trial(False, f"{seen} {left}")
    return _nothing_left(left, seen, {"gone_s": end_s})


def hangup(folder: Path, number: int, chance: random.Random) -> Trial:
    """The terminal is closed, every third time while ranks run."""
    terminal = Terminal(folder, [*LAUNCHER, *TWO, *PATHS[number % 2], SCRIPT, "stay"])
    up = number % 3 == 2 and terminal.hear(b"up ", 2, 60)
    moment_s = chance.uniform(0, 1 if up else LIFE_S)
    terminal.listen(moment_s)
    terminal.close()
    began = time.monotonic()
    code = terminal.wait(END_S)
    left = left_behind(folder, max(0.1, END_S - (time.monotonic() - began)))
    seen = f"closed after {moment_s:.3f} s: code {code}, {terminal.said.decode()}"
    return _nothing_left(left, seen, {"gone_s": time.monotonic() - began})


def nohup(folder: Path, number: int, chance: random.Random) -> Trial:
    """The terminal is closed, but nohup was asked to see to it: the launch finishes."""
    terminal = Terminal(folder, ["/usr/bin/nohup", *LAUNCHER, *TWO, *PATHS[number % 2], SCRIPT, "sum"])
    wait_until(lambda: _ignores(terminal.pid, signal.SIGHUP))
    moment_s = chance.uniform(0, LIFE_S / 2)
    terminal.listen(moment_s)
    terminal.close()
    code = terminal.wait(60)
    out = (folder / "nohup.out").read_text()
    seen = f"closed after {moment_s:.3f} s: code {code}, {out}"
    if (code, out.count('"sum": 1')) != (0, 2):
        return Trial(False, seen)
    return _nothing_left(left_behind(folder, END_S), seen, {})


def _ignores(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigIgn:")[2].split()[0], 16) >> (number - 1) & 1)


def daemon(folder: Path, number: int, chance: random.Random) -> Trial:
    """A rank leaves a process behind that has cut all ties; every other time the launcher is killed."""
    killed = number % 2 == 0
    process = start(folder, *TWO, *PATHS[number // 2 % 2], SCRIPT, "daemon", "stay" if killed else "end")
    assert process.stdout is not None
    up = [process.stdout.readline()[:2] for _ in range(2)]
    if killed:
        process.kill()
    err = process.communicate(timeout=60)[1]
    began = time.monotonic()
    left = left_behind(folder, END_S)
    good = up == ["up", "up"] and process.returncode == (-signal.SIGKILL if killed else 0)
    if not good:
        return Trial(False, f"code {process.returncode}, {up}: {err}")
    return _nothing_left(left, "killed" if killed else "ended", {"gone_s": time.monotonic() - began})


def pairs(folder: Path, number: int, chance: random.Random) -> Trial:
    """Two equal launches at once: both finish."""
    words = (*TWO, *PATHS[number % 2], "--rdzv-id", "same", SCRIPT, "sum")
    processes = [start(folder, *words) for _ in range(2)]
    ends = [process.communicate(timeout=100) for process in processes]
    sums = [sorted(line.partition('"sum": ')[2][:1] for line in out.splitlines()) for out, _ in ends]
    codes = [process.returncode for process in processes]
    return Trial(codes == [0, 0] and sums == [["1", "1"]] * 2, f"codes {codes}, sums {sums}: {ends}")


def loopback(folder: Path, number: int, chance: random.Random) -> Trial:
    """One node listens on loopback addresses only, from its start until its ranks have met."""
    process = start(folder, *TWO, *PATHS[number % 2], SCRIPT, "stay")
    seen: set[tuple[str, int]] = set()
    deadline = time.monotonic() + 60
    while len(seen) < 3 and time.monotonic() < deadline:  # the store and one socket of each rank
        seen |= set(listening_ports(processes_of(folder)))
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        seen |= set(listening_ports(processes_of(folder)))
    process.kill()
    process.communicate()
    left = left_behind(folder, END_S)
    good = len(seen) >= 3 and {address for address, _ in seen} <= LOOPBACK and not left
    return Trial(good, f"listened on {sorted(seen)}, left {left}", {"sockets": len(seen)})


def stop(folder: Path, number: int, chance: random.Random) -> Trial:
    """A rank is stopped by SIGSTOP inside a collective; noticed by us, or by gloo's own timeout every other time."""
    return _hang(folder, "stop", number)


def skip(folder: Path, number: int, chance: random.Random) -> Trial:
    """A rank skips a collective; noticed by us, or by gloo's own timeout every other time."""
    return _hang(folder, "skip", number)


def _hang(folder: Path, mode: str, number: int) -> Trial:
    ours = number % 2 == 0
    flags = ("--hang-timeout", str(HANG_S)) if ours else ()
    words = (*flags, *PATHS[number // 2 % 2], "--run-dir", "run", SCRIPT, mode, "1000" if ours else str(HANG_S))
    process = start(folder, "--nproc-per-node", "3", *words)
    _, err = process.communicate(timeout=100)
    ended_s = time.time()
    verdict = _verdict(folder)
    logs = "".join(path.read_text() for path in (folder / "run" / "logs").glob("*.log"))
    began = next((float(line.split()[1]) for line in logs.splitlines() if line.startswith("hangs")), None)
    if verdict is None or began is None:
        return Trial(False, f"code {process.returncode}: {err}")
    told_s = (folder / "run" / "verdict.json").stat().st_mtime - began
    stacks = {one.rank for node in verdict.nodes for one in node.stacks if any("launched.py" in x for x in one.frames)}
    said = {end.rank for end in verdict.ends if end.words is not None and end.words.traceback}
    good = (process.returncode, verdict.cause, verdict.ranks) == (6, "hang", (2,)) and stacks | said == {0, 1, 2}
    figures = {f"told_s_{'ours' if ours else 'gloo'}": told_s, "gone_s": ended_s - began}
    late = told_s > HANG_S + NOTICE_S
    note = f"told after {told_s:.1f} s, stacks {stacks}: {err}"
    return Trial(good and not late, note, figures, late=good and late)


def restart(folder: Path, number: int, chance: random.Random) -> Trial:
    """A rank is killed, and all start again."""
    began = time.monotonic()
    done = run(folder, *TWO, "--max-restarts", "1", *PATHS[number % 2], SCRIPT, "die-once")
    good = done.returncode == 0 and done.stdout.count('"sum": 1, "attempt": 1') == 2 and not left_behind(folder)
    return Trial(good, f"code {done.returncode}: {done.stdout} {done.stderr}", {"wall_s": time.monotonic() - began})


def _verdict(folder: Path) -> Verdict | None:
    path = folder / "run" / "verdict.json"
    return read(path) if path.exists() else None


def _nothing_left(left: list[str], seen: str, figures: Mapping[str, float]) -> Trial:
    names = [f"{each} ({_command(each)})" for each in left]
    return Trial(not left, f"{seen}: {'; '.join(names)}", figures)


def _command(what: str) -> str:
    try:
        pid = what.removeprefix("process ")
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:80] if pid.isdigit() else "folder"
    except OSError:
        return "gone since"


STORMS: Mapping[str, Callable[[Path, int, random.Random], Trial]] = {
    each.__name__: each for each in (tie, kill9, ctrlc, hangup, nohup, daemon, pairs, loopback, stop, skip, restart)
}


def storm(name: str, count: int, seed: int) -> list[Trial]:
    """So many trials of one kind, each in a folder of its own, of which nothing is left."""
    trials = []
    for number in range(count):
        for _ in range(1 + MORE_TRIES):
            folder = temporary_folder()
            try:
                trial = STORMS[name](folder, number, random.Random(f"{name} {seed} {number}"))
            finally:
                for pid in processes_of(folder):
                    kill(pid, signal.SIGKILL)
                shutil.rmtree(folder, ignore_errors=True)
            if not trial.good:
                print(f"{name} {number}: {trial.note}", flush=True)
            if not trial.late:
                break
        trials.append(trial)
    return trials


def main() -> int:
    """Entry; returns 0 if all trials held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(STORMS))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    trials = storm(options.name, options.count, options.seed)
    held = sum(trial.good for trial in trials)
    print(f"{options.name}: {held} of {len(trials)}")
    for name in sorted(set(itertools.chain.from_iterable(trial.figures for trial in trials))):
        values = [trial.figures[name] for trial in trials if name in trial.figures]
        print(f"  {name}: median {statistics.median(values):.2f}, highest {max(values):.2f} of {len(values)}")
    return 0 if held == len(trials) else 1


if __name__ == "__main__":
    sys.exit(main())
