"""Processes as Linux shows them: real ones, that hide as well as they can."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import processes
from launch.guardian import Guardian
from launch.processes import descendants, kill, sweep
from tests.launches import ROOT, processes_of

NEST = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from launch.processes import adopt_orphans, name_process
adopt_orphans()
name_process("a name that is too long for it")
between = os.fork()
if between == 0:
    os.setsid()
    if os.fork() == 0:      # an orphan in a session of its own, which the one above adopts
        for descriptor in range(3):
            os.close(descriptor)
        time.sleep(1000)
    os._exit(0)
os.waitpid(between, 0)
print("up", flush=True)
time.sleep(1000)
"""
HEIR = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from launch.processes import die_with
parent = os.getpid()
if os.fork() == 0:
    die_with(parent if sys.argv[2] == "real" else 1)
    print("up", flush=True)
    time.sleep(1000)
os.wait()
"""


def start(folder: Path, code: str, *words: str, **more: str) -> subprocess.Popen[str]:
    """A Python process, marked so that its descendants can be found."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT), *words],
        env=os.environ | {"TMPDIR": str(folder)} | more,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(folder: Path, count: int) -> bool:
    """Whether so many processes of a folder are there before long."""
    deadline = time.monotonic() + 10
    while len(processes_of(folder)) != count:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def nest(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(tmp_path, NEST)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert until(tmp_path, 2)
    yield process
    for pid in processes_of(tmp_path):
        kill(pid, signal.SIGKILL)
    process.communicate()


def test_orphans_descend_from_who_adopts_them(tmp_path: Path, nest: subprocess.Popen[str]) -> None:
    assert descendants([nest.pid]) == set(processes_of(tmp_path)) - {nest.pid}
    assert Path(f"/proc/{nest.pid}/comm").read_text() == "a name that is \n"


def test_a_sweep_ends_what_descends_and_spares_who_it_is_told_to(tmp_path: Path, nest: subprocess.Popen[str]) -> None:
    assert sweep([nest.pid], (), b"NO=mark", spared={nest.pid}) >= 1
    assert processes_of(tmp_path) == [nest.pid]
    assert nest.poll() is None


def test_a_sweep_ends_what_has_a_session_or_a_mark(tmp_path: Path) -> None:
    by_session = start(tmp_path, "import time; time.sleep(1000)")
    by_mark = start(tmp_path, "import time; time.sleep(1000)", RINGMARK_TEST="mine")
    other = start(tmp_path, "import time; time.sleep(1000)", RINGMARK_TEST="mine too")
    assert until(tmp_path, 3)
    try:
        assert sweep([other.pid], [by_session.pid], b"RINGMARK_TEST=mine", ()) == 2
        assert [by_session.wait(5), by_mark.wait(5)] == [-signal.SIGKILL] * 2
        assert other.poll() is None
    finally:
        for process in (by_session, by_mark, other):
            process.kill()
            process.communicate()


def test_a_sweep_of_everybodys_processes_is_one_of_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(processes, "kill", lambda pid, number: killed.append(pid))  # for it would be all of them
    monkeypatch.setattr(processes, "SWEEPS", 1)
    assert sweep([0, 1], [0, 1], b"RINGMARK_TEST=nobody's", ()) == 0
    assert killed == []
    guardian = object.__new__(Guardian)
    for session in (0, 1):
        for watch in (guardian.watch, guardian.watch_adopter):
            with pytest.raises(ValueError, match="expected the session of a process that was started"):
                watch(session)


@pytest.mark.parametrize(("parent", "left"), [("real", 2), ("another", 1)])
def test_a_child_dies_with_its_parent_also_if_that_has_happened(tmp_path: Path, parent: str, left: int) -> None:
    process = start(tmp_path, HEIR, parent)
    assert process.stdout is not None
    if parent == "real":
        assert process.stdout.readline() == "up\n"
        assert len(processes_of(tmp_path)) == left
        process.kill()
        assert until(tmp_path, 0)
    else:
        assert process.stdout.read() == ""  # its child ended at once, and so did it
    process.communicate()


def test_who_is_gone_cannot_be_killed_and_that_is_fine() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    kill(process.pid, signal.SIGKILL)
