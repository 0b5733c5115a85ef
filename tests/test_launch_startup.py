"""The comparison of launchers: real launches, and the arithmetic on times that are given."""

import sys

import pytest

from bench.record import Record
from bench.summaries.launch import summarise
from launch import startup
from launch.startup import BARE, OURS, TORCHRUN, StartupOptions, commands, measure


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
