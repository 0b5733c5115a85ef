"""`ringmark gate`: its exit codes and sentences, from folders of records."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.record import append
from launch.argv import UsageError
from launch.gate import gate
from tests.bench_records import collective_record, small_records
from tests.test_bench_gate import timed


@pytest.mark.parametrize(("factor", "code", "word"), [(1.0, 0, "ok"), (1.2, 1, "slower"), (1.05, 3, "inconclusive")])
def test_the_exit_code_is_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float, code: int, word: str
) -> None:
    append(tmp_path / "old", timed(1.0))
    append(tmp_path / "new", timed(factor))
    assert gate([str(tmp_path / "new"), "--against", str(tmp_path / "old")]) == code
    out = capsys.readouterr().out
    assert out.startswith(f"gate: {word} (margin 5 %")
    assert f"\n{word}: scaling: model mlp, ranks 1" in out


def test_another_machine_is_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(tmp_path / "old", timed(1.0))
    append(tmp_path / "new", timed(9.0, cpu="another"))
    assert gate([str(tmp_path / "new"), "--against", str(tmp_path / "old")]) == 3
    assert "abstained, the machines are not of one class: cpu is another now and was EPYC" in capsys.readouterr().out


def test_a_wider_margin_forgives_more(tmp_path: Path) -> None:
    append(tmp_path / "old", timed(1.0))
    append(tmp_path / "new", timed(1.2))
    assert gate([str(tmp_path / "new"), "--against", str(tmp_path / "old"), "--margin-percent", "30"]) == 0


def test_hostile_names_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side in ("old", "new"):
        append(tmp_path / side, replace(timed(1.0), cell={**timed(1.0).cell, "model": "\x1b[2J"}))
    assert gate([str(tmp_path / "new"), "--against", str(tmp_path / "old")]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["--against", "x"], ["/nowhere", "--against", "/nowhere"]])
def test_a_mistake_is_a_sentence(argv: list[str]) -> None:
    with pytest.raises((UsageError, ValueError), match="expected a folder"):
        gate(argv)


def test_what_is_not_gated_is_named_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side in ("old", "new"):
        append(tmp_path / side, timed(1.0))
        for size in (64, 128):
            append(tmp_path / side, collective_record("all_reduce", size))
        append(tmp_path / side, small_records()[0])
    assert gate([str(tmp_path / "new"), "--against", str(tmp_path / "old")]) == 0
    assert "\nnot gated: 2 records of collectives, 1 record of checkpoint\n" in capsys.readouterr().out


def test_a_line_that_is_no_record_is_said_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side in ("old", "new"):
        append(tmp_path / side, timed(1.0))
    with (tmp_path / "new" / "records.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "case": "scaling", "cell": null, "status": "ok"}\n')
    assert gate([str(tmp_path / "new"), "--against", str(tmp_path / "old")]) == 0
    assert "\nnew records: A record was left out: expected text, objects" in capsys.readouterr().out
