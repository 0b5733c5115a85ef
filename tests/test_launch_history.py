"""`ringmark history`: the records of many folders as trends, in the terminal and as a page."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.history import BARS
from bench.record import append
from launch.argv import UsageError
from launch.grid_run import LOCK, RUNNING
from launch.history import gather, history
from tests.bench_records import fit_record
from tests.test_bench_gate import timed


def test_runs_below_a_folder_become_one_trend_and_changes_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for day, (factor, commit) in enumerate([(1.0, "aaa"), (0.5, "aaa"), (2.0, "bbb")], start=1):
        record = replace(timed(factor, commit=commit), time=f"2026-01-0{day}T00:00:00+00:00")
        append(tmp_path / f"run-{day}", record)
    append(tmp_path / "run-1", fit_record())
    with (tmp_path / "run-2" / "records.jsonl").open("a") as file:
        file.write('{"torn')
    assert history([str(tmp_path), str(tmp_path / "run-1")]) == 0  # what is named twice counts once
    out = capsys.readouterr().out
    assert "▃█│▁" in out
    assert "▃▃" not in out
    assert "commit aaa -> bbb" in out
    assert "line 2 was left out" in out
    page = (tmp_path / "history.html").read_text()
    assert "<svg" in page
    assert "commit aaa -&gt; bbb" in page
    assert "▃█│▁" in page
    assert "▃█" in (tmp_path / "history.md").read_text()


def test_hostile_names_stay_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(tmp_path, replace(timed(1.0), cell={**timed(1.0).cell, "model": "\x1b[2J<script>alert(1)</script>"}))
    assert history([str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert "<script>alert" not in (tmp_path / "history.html").read_text()


@pytest.mark.parametrize("argv", [[], ["--all"], ["/nowhere"]])
def test_a_mistake_is_a_sentence(argv: list[str]) -> None:
    with pytest.raises(UsageError, match="expected"):
        history(argv)


def test_folders_without_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected records\.jsonl with records"):
        history([str(tmp_path)])


def points(out: str) -> int:
    """Bars of the only trend."""
    return sum(out.count(bar) for bar in BARS)


def test_what_a_sweep_took_up_from_the_tasks_of_an_array_counts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in (1, 2):
        record = replace(timed(1.0 + day / 10), time=f"2026-01-0{day}T00:00:00+00:00")
        append(tmp_path / f"sweep-{day}" / "0123456789ab", record)
        append(tmp_path / f"sweep-{day}", replace(record, raw={**record.raw, "sweep": "0123456789ab"}))
    records, _ = gather([tmp_path])
    assert len(records) == 2
    assert history([str(tmp_path)]) == 0
    assert points(capsys.readouterr().out) == 2


def test_records_of_the_same_second_on_two_machines_are_two(tmp_path: Path) -> None:
    for host in ("a", "b"):
        append(tmp_path / host, timed(1.0, host=host))
    assert len(gather([tmp_path])[0]) == 2


def test_what_a_sweep_is_still_measuring_is_left_out(tmp_path: Path) -> None:
    append(tmp_path / "sweep", timed(1.0))
    (tmp_path / "sweep" / LOCK).touch()
    append(tmp_path / "sweep" / RUNNING / "0123456789ab", timed(9.0, host="yet another"))
    append(tmp_path / RUNNING, timed(2.0, host="another"))  # a folder that a person called so
    records, _ = gather([tmp_path])
    assert sorted(each.raw["blocks"][1]["wall_s"][0] for each in records) == [1.0, 2.0]


def test_lines_that_are_no_records_are_counted(tmp_path: Path) -> None:
    append(tmp_path, timed(1.0))
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "case": "scaling", "cell": null, "status": "ok"}\n')
    records, complaints = gather([tmp_path])
    assert len(records) == 1
    assert complaints == [f"{tmp_path}: 1 line left out, no record"]
