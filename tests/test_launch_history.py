"""`ringmark history`: the records of many folders as trends, in the terminal and as a page."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.record import append
from launch.argv import UsageError
from launch.history import history
from tests.bench_records import fit_record
from tests.test_bench_paired import timed


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
    assert "▃█|▁" in out
    assert "▃▃" not in out
    assert "commit aaa -> bbb" in out
    assert "line 2 was left out" in out
    page = (tmp_path / "history.html").read_text()
    assert "<svg" in page
    assert "commit aaa -&gt; bbb" in page
    assert "▃█|▁" in page
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
