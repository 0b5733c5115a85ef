"""The comparison of launchers: real launches, and the arithmetic on times that are given."""

import sys

import pytest

from launch import startup
from launch.startup import BARE, OURS, TORCHRUN, Start, StartupOptions, commands, measure, table


def test_our_launcher_is_timed_at_all_its_stages() -> None:
    start = measure(commands(2)[OURS], 2)
    assert list(start.stages_s) == ["python", "guardian", "import", "nursery", "born", "ranks ended"]
    times = [0.0, *start.stages_s.values(), start.end_s]
    assert times == sorted(times)
    assert start.stages_s["nursery"] < start.first_line_s < start.stages_s["ranks ended"]


def test_all_launchers_are_asked_for_the_same() -> None:
    for name, command in commands(3).items():
        assert command[-1] == startup.SCRIPT
        assert ("3" in command) == (name != BARE)


def test_a_launch_that_fails_is_not_counted() -> None:
    with pytest.raises(ValueError, match="expected 2 ranks to start, got 1 by"):
        measure([sys.executable, "-c", "open('rank-0.txt', 'w').write('0')"], 2)


def test_ratios_are_of_the_same_round() -> None:
    def starts(*first_lines_s: float) -> list[Start]:
        return [Start(first_line_s=each, end_s=each + 1, stages_s={"python": each / 2}) for each in first_lines_s]

    lines = table({OURS: starts(1, 2, 4), TORCHRUN: starts(2, 4, 8), BARE: starts(1, 4, 4)})
    assert lines[1].split() == ["ringmark", "run", "2.00", "s", "3.00", "s"]
    assert lines[2].split() == ["torchrun", "4.00", "s", "5.00", "s", "0.50", "[0.50,", "0.50]"]
    assert lines[3].split()[:8] == ["import", "torch", "4.00", "s", "5.00", "s", "0.79", "[0.29,"]
    assert lines[4] == "stages of ringmark run: python 1.00 s"


@pytest.mark.parametrize("options", [{"ranks": 0}, {"rounds": 1}])
def test_options_that_mean_nothing_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected --"):
        StartupOptions(**options)
