"""The gate's decision: verdicts on records that are made by hand, and what it says of records that it cannot gate."""

import math
from dataclasses import replace
from typing import Any

import pytest

from bench import gate, intervals
from bench.cases.train_step import StepCell
from bench.record import Record
from tests.bench_records import ENVIRONMENT, collective_record, small_records, train_step_record


def timed(factor: float, *, spread: float = 0.01, rounds: int = 6, **environment: Any) -> Record:
    """A scaling record whose blocks take about `factor` seconds."""
    steps = [factor * (1 + spread * (number % 3 - 1)) for number in range(rounds)]
    found = [
        {"round": number, "samples": 16, "wall_s": [step], "step_s": [[step / 2] * 2]}
        for number, step in enumerate(steps)
    ]
    cell = {"model": "mlp", "ranks": 1, "batch_per_rank": 8, "strategy": "single"}
    known = {**ENVIRONMENT, "gpus": 0, **environment}
    return Record(case="scaling", cell=cell, status="ok", raw={"blocks": found}, environment=known)


@pytest.mark.parametrize(("factor", "word"), [(1.0, "ok"), (0.7, "ok"), (1.03, "ok"), (1.1, "slower")])
def test_the_gate_says_slower_beyond_its_margin_only(factor: float, word: str) -> None:
    assert gate.decide([timed(factor)], [timed(1.0)], 0.05).word == word


def test_the_gate_abstains_where_noise_reaches_over_the_margin() -> None:
    found = gate.decide([timed(1.05, spread=0.1)], [timed(1.0)], 0.05)
    assert found.word == "inconclusive"
    assert "too much noise" in found.cells[0].why
    assert gate.decide([timed(1.0, rounds=3)], [timed(1.0)], 0.05).word == "inconclusive"


@pytest.mark.parametrize(
    ("name", "value"), [("torch", "2.16"), ("cpu", "Xeon"), ("cores", 8), ("device", "H100"), ("gpus", 4)]
)
def test_another_machine_class_is_named_and_nothing_is_said(name: str, value: Any) -> None:
    found = gate.decide([timed(9.0, **{name: value})], [timed(1.0)], 0.05)
    assert found.word == "inconclusive"
    assert f"{name} is {value} now" in found.why_not


def test_an_unknown_machine_is_no_class() -> None:
    found = gate.decide([timed(1.0, cpu=None)], [timed(1.0, cpu=None)], 0.05)
    assert "cpu is not known" in found.why_not


def test_a_cell_that_failed_or_is_gone_does_not_pass_the_gate() -> None:
    stored = [timed(1.0), replace(timed(1.0), cell={**timed(1.0).cell, "model": "lenet5"})]
    failed = replace(stored[1], status="oom", error="too large", raw={})
    assert gate.decide([timed(1.0), failed], stored, 0.05).word == "inconclusive"
    assert gate.decide([timed(1.0)], stored, 0.05).word == "inconclusive"
    assert gate.decide(stored, stored, 0.05).word == "ok"
    assert gate.decide([failed], stored, 0.05).why_not.startswith("the new records")


def test_welch_agrees_with_the_textbook() -> None:
    # Means 3 and 6, variances 2.5 and 10, five each: error sqrt(2.5), 5.882 degrees of freedom, t(0.975) = 2.4587.
    found = intervals.welch([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 10.0], 0.05)
    assert found.mean == -3.0
    assert found.high + 3.0 == pytest.approx(2.4587 * math.sqrt(2.5), rel=1e-3)


def at(day: int, record: Record) -> Record:
    """The same record, made on a day."""
    return replace(record, time=f"2026-01-{day:02}T00:00:00+00:00")


def test_of_a_folder_that_is_used_again_the_newest_record_counts() -> None:
    reused = [at(day, timed(1.0)) for day in range(1, 9)]
    assert gate.decide([*reused, at(9, timed(1.2))], [timed(1.0)], 0.05).word == "slower"
    assert gate.decide([at(9, timed(1.2)), *reused], [timed(1.0)], 0.05).word == "slower"  # whatever their order
    found = gate.decide([timed(1.2)], [*reused, at(9, timed(1.2))], 0.05)
    assert found.word == "ok"
    assert found.remarks[0].startswith("stored records: 8 records of cells that have a better or newer one")


def test_a_failure_that_a_retry_made_good_does_not_count() -> None:
    failed = replace(timed(1.0), status="failed", error="lost", raw={})
    assert gate.decide([at(1, failed), at(2, timed(1.0))], [timed(1.0)], 0.05).word == "ok"
    assert gate.decide([timed(1.0)], [at(1, failed), at(2, timed(1.0))], 0.05).word == "ok"


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": None}, {"cell": [1]}, {"case": ["scaling"]}, {"raw": 5}, {"environment": None}, {"status": "fine"},
        {"raw": {"blocks": None}}, {"raw": {"blocks": [{"round": 0, "samples": "8", "wall_s": [1.0]}]}},
        {"raw": {"blocks": [5]}}, {"raw": {"blocks": [{"round": 0, "samples": 8, "wall_s": [float("nan")]}]}},
        {"raw": {"blocks": [{"round": 0, "samples": 8, "wall_s": [1.0, 1.0]}]}},
    ],
)  # fmt: skip
def test_a_record_that_is_none_ends_in_no_traceback(changes: dict[str, Any]) -> None:
    odd = replace(timed(1.0), **changes)
    other = replace(timed(1.0), cell={**timed(1.0).cell, "model": "lenet5"})
    assert gate.decide([odd, other], [timed(1.0), other], 0.05).word == "inconclusive"
    assert gate.decide([timed(1.0)], [odd, timed(1.0)], 0.05).word == "ok"
    assert gate.decide([odd], [odd], 0.05).why_not


def test_an_environment_of_odd_values_is_another_machine() -> None:
    assert "cpu is [1] now" in gate.decide([timed(1.0, cpu=[1])], [timed(1.0)], 0.05).why_not


def slower(record: Record, factor: float) -> Record:
    """The same record of a machine on which everything takes `factor` times as long."""
    blocks = [{**block, "wall_s": [factor * each for each in block["wall_s"]]} for block in record.raw["blocks"]]
    return known(replace(record, raw={**record.raw, "blocks": blocks}))


def known(record: Record) -> Record:
    """The same record of a machine whose class is known."""
    return replace(record, environment={**record.environment, "gpus": 0})


CELL = StepCell(model="lenet-5", ranks=2, batch_per_rank=8)
OTHERS = [train_step_record(CELL, 0.01), *(each for each in small_records() if each.case in ("inference", "loader"))]


@pytest.mark.parametrize("record", OTHERS, ids=lambda record: f"{record.case}")
def test_steps_taken_apart_inference_and_input_pipelines_are_gated_as_well(record: Record) -> None:
    stored = [timed(1.0), known(record)]
    found = gate.decide([timed(1.0), slower(record, 2.0)], stored, 0.05)
    assert {each.case: each.word for each in found.cells} == {"scaling": "ok", record.case: "slower"}
    assert found.word == "slower"
    assert gate.decide([timed(1.0), slower(record, 1.01)], stored, 0.05).word == "ok"


def test_of_steps_taken_apart_only_training_as_it_is_is_gated() -> None:
    record = known(train_step_record(CELL, 0.01))
    blocks = [{**each, "wall_s": [9.0, 9.0]} if each["arm"] != "train" else each for each in record.raw["blocks"]]
    found = gate.decide([replace(record, raw={**record.raw, "blocks": blocks})], [record], 0.05)
    assert found.word == "ok"
    assert found.cells[0].interval is not None
    assert found.cells[0].interval.count == 6


def test_what_is_not_gated_is_counted_by_case() -> None:
    collectives = [collective_record("all_reduce", size) for size in (64, 128)]
    checkpoint = next(each for each in small_records() if each.case == "checkpoint")
    new = replace(timed(1.0), cell={**timed(1.0).cell, "model": "lenet5"})
    failed = replace(new, cell={**new.cell, "model": "vgg"}, status="failed", error="lost", raw={})
    found = gate.decide([timed(1.0), *collectives, checkpoint, new, failed], [timed(1.0), *collectives], 0.05)
    assert found.word == "ok"
    assert found.ungated == {
        "collectives": 2, "checkpoint": 1, "scaling without a stored one": 1, "scaling that could not be measured": 1,
    }  # fmt: skip
    assert gate.decide(collectives, collectives, 0.05).word == "inconclusive"
