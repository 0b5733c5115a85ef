"""The comparison of launchers: real launches, and the arithmetic on times that are given."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.record import Record, read
from bench.summaries.launch import summarise
from launch import startup
from launch.startup import BARE, OURS, TORCHRUN, Launches, StartupOptions, commands, measure, rounds, store


def test_our_launcher_is_timed_at_all_its_stages() -> None:
    start = measure(commands(2)[OURS], 2)
    assert list(start.launcher_s) == ["python", "guardian", "import", "nursery", "born", "ranks ended"]
    assert list(start.ranks_s) == ["first line", "process group", "wrapped model", "first step"]
    for times in (start.launcher_s, start.ranks_s):
        assert [0.0, *times.values(), start.end_s] == sorted([0.0, *times.values(), start.end_s])
    assert start.launcher_s["nursery"] < start.ranks_s["first line"]
    assert start.ranks_s["first step"] < start.launcher_s["ranks ended"]


def test_all_launchers_are_asked_for_the_same() -> None:
    for name, command in commands(3).items():
        assert command[-1] == startup.SCRIPT
        assert ("3" in command) == (name != BARE)


def test_a_launch_that_fails_is_not_counted() -> None:
    with pytest.raises(ValueError, match="expected 2 ranks to start, got 1 by"):
        measure([sys.executable, "-c", "open('rank-0.json', 'w').write('{}')"], 2)


def record(launcher: str, ranks: int, *first_lines_s: float) -> Record:
    later = {} if ranks == 1 else {"process group": 1, "wrapped model": 2, "first step": 3}
    starts = [
        {
            "ranks_s": {"first line": each, **{stage: each + more for stage, more in later.items()}},
            "end_s": each + 4,
            "launcher_s": {"python": each / 2} if launcher == OURS else {},
        }
        for each in first_lines_s
    ]
    cell = {"launcher": launcher, "ranks": ranks}
    return Record(case="launch", cell=cell, status="ok", raw={"starts": starts}, environment={})


def test_ratios_are_of_the_same_round_and_stages_of_the_same_launch() -> None:
    section = summarise([record(OURS, 2, 1, 2, 4), record(TORCHRUN, 2, 2, 4, 8), record(BARE, 1, 1, 4, 4)])
    whole, own = section.tables
    assert whole.rows == (
        (OURS, "2", "2.00", "3.00", "4.00", "5.00", "6.00", "n/a", "n/a", "3", "ok"),
        (TORCHRUN, "2", "4.00", "5.00", "6.00", "7.00", "8.00", "0.50 [0.50, 0.50]", whole.rows[1][8], "3", "ok"),
        (BARE, "1", "4.00", "n/a", "n/a", "n/a", "8.00", whole.rows[2][7], "n/a", "3", "ok"),
    )
    assert whole.rows[1][8].startswith("0.71 [")  # the geometric mean of 4/5, 5/7 and 7/11
    assert whole.rows[2][7].startswith("0.79 [0.29,")
    assert own.rows == (("python", "1.00"),)
    assert section.facts[0].value == "5.00 s to the first step"
    assert "0.50 [0.50, 0.50] of torchrun" in section.facts[0].details


@pytest.mark.parametrize("options", [{"ranks": 0}, {"rounds": 1}])
def test_options_that_mean_nothing_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected --"):
        StartupOptions(**options)


TWO = """
import os, signal, subprocess, sys, time
sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
subprocess.Popen(sleeper, start_new_session=True)
signal.signal(signal.SIGTERM, signal.{action})
print("{said}", file=sys.stderr, flush=True)
{ending}
"""


def marked(mark: str) -> list[int]:
    """Processes that are there now and have that variable."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{mark}=".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_launcher_that_takes_too_long_ends_with_all_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "MARK", "RINGMARK_TEST_LATE")  # its own: other tests launch at the same time
    monkeypatch.setattr(startup, "GRACE_S", 0.2)  # it does not listen to a gentle end
    script = TWO.format(action="SIG_IGN", said="", ending="time.sleep(60)")
    with pytest.raises(ValueError, match=r"expected the ranks to be done within 1 s, got none by"):
        measure([sys.executable, "-S", "-c", script], 2, timeout_s=1.0)
    assert marked("RINGMARK_TEST_LATE") == []


def test_what_a_launcher_leaves_behind_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "MARK", "RINGMARK_TEST_LEFT")
    script = TWO.format(action="SIG_DFL", said="no port", ending="os._exit(3)").replace(
        "start_new_session=True", "start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"
    )
    with pytest.raises(ValueError, match=r"(?s)expected 2 ranks to start, got 0 by .*: no port$"):
        measure([sys.executable, "-S", "-c", script], 2)
    assert marked("RINGMARK_TEST_LEFT") == []


def test_a_launch_ends_with_the_one_who_measures(tmp_path: Path) -> None:
    told = tmp_path / "told"
    child = f"import time; open({str(told)!r}, 'w').close(); time.sleep(60)"
    work = (
        "import sys; from launch import startup; startup.MARK = 'RINGMARK_TEST_END'; "
        f"startup.measure([sys.executable, '-S', '-c', {child!r}], 1)"
    )
    measuring = subprocess.Popen([sys.executable, "-c", work], env={**os.environ, "TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 30
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert marked("RINGMARK_TEST_END") != []
    measuring.send_signal(signal.SIGKILL)
    measuring.wait()
    while marked("RINGMARK_TEST_END") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert marked("RINGMARK_TEST_END") == []


GOOD = """
import json, os
for rank in range(2):
    with open(f"rank-{rank}.json", "w") as file:
        json.dump({"first line": 1e9}, file)
"""
FAILS_LATER = """
import pathlib
count = pathlib.Path(COUNT)
count.write_text(count.read_text() + "x" if count.exists() else "x")
if len(count.read_text()) == 2:
    raise SystemExit("out of luck")
"""


def test_one_bad_launch_costs_only_its_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = FAILS_LATER.replace("COUNT", repr(str(tmp_path / "count")))
    kinds = {"good": ["-c", GOOD], "bad": ["-c", later + GOOD], "missing": None}
    argv = {name: [sys.executable, "-S", *words] if words else ["/nowhere"] for name, words in kinds.items()}
    monkeypatch.setattr(startup, "commands", lambda ranks: argv)
    options, told = StartupOptions(rounds=3, out=tmp_path / "out"), []
    found = {name: Launches() for name in argv}
    rounds(options, found, told.append)
    store(found, options)
    records = {each.cell["launcher"]: each for each in read(tmp_path / "out")[0]}
    assert {name: each.status for name, each in records.items()} == {"good": "ok", "bad": "failed", "missing": "failed"}
    assert [len(records[name].raw["starts"]) for name in ("good", "bad", "missing")] == [3, 1, 0]
    assert (records["bad"].error or "").startswith("launch 2 of 3: expected 2 ranks to start, got 0 by")
    assert "out of luck" in (records["bad"].error or "")
    assert "No such file" in (records["missing"].error or "")
    assert told[-1] == "round 3 of 3"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_measured_before_an_interrupt_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    good = [sys.executable, "-S", "-c", GOOD]
    monkeypatch.setattr(startup, "commands", lambda ranks: {OURS: good, TORCHRUN: good, BARE: good})

    def interrupted(command: list[str], ranks: int) -> startup.Start:
        if len(done) == 2:
            os.kill(os.getpid(), number)
        done.append(ranks)
        return startup.Start(ranks_s={"first line": 1.0}, end_s=2.0, launcher_s={})

    done: list[int] = []
    monkeypatch.setattr(startup, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        startup.startup(["--out", str(tmp_path), "--rounds", "2"])
    records, _ = read(tmp_path)
    assert [(each.cell["launcher"], each.status) for each in records] == [(OURS, "ok"), (TORCHRUN, "ok")]


def test_torchrun_meets_on_a_port_that_is_free() -> None:
    assert "--standalone" in commands(2)[TORCHRUN]  # newer versions do so by themselves on a single node


def test_accelerate_is_not_asked_to_launch_a_single_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup.importlib.util, "find_spec", lambda name: object())
    assert "accelerate launch" not in commands(1)
    assert "--multi_gpu" in commands(2)["accelerate launch"]


def test_of_a_launcher_that_failed_the_report_tells_no_times() -> None:
    failed = record(TORCHRUN, 2, 1, 2)
    failed = Record(**{**failed.__dict__, "status": "failed", "error": "launch 3 of 3: too slow"})
    (whole, _) = summarise([record(OURS, 2, 1, 2, 4), failed]).tables
    assert whole.rows[1] == (TORCHRUN, "2", *["n/a"] * 7, "2", "failed: launch 3 of 3: too slow")
