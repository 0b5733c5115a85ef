"""Which base a cell is compared with, whether their rounds pair, and what is said of doubtful ones."""

import gc
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats  # type: ignore[import-untyped]

from bench.cell import Cell
from bench.record import Record, read
from bench.scaling import Study, studies
from bench.summaries import scaling
from bench.summary import summarise
from bench.train_blocks import measure_in_turns
from bench.warmup import until_settled
from ddp.context import DistContext
from tests.bench_records import ENVIRONMENT, LAUNCH, cell, find, guard, rows, step_record, study
from tests.ranks import run_ranks

EFFICIENCY = "efficiency vs single process (95 % interval)"
SLOW, FAST = (0.10, 0.11, 0.09, 0.12), (0.05, 0.06, 0.05, 0.055)


def synced(record: Record) -> Record:
    return replace(record, cell=record.cell | {"sync_bn": True})


def launched(record: Record, launch: str | None, **environment: Any) -> Record:
    """The record as of another launch, or of a program that named none."""
    raw = {key: value for key, value in record.raw.items() if key != "launch"}
    raw |= {} if launch is None else {"launch": launch}
    return replace(record, raw=raw, environment=ENVIRONMENT | environment)


def rounds(of: Cell, steps_s: tuple[float, ...], launch: str | None) -> Record:
    """A record whose steps take as long as said, round by round."""
    blocks = [step_record(of, step_s, 1).raw["blocks"][0] | {"round": n} for n, step_s in enumerate(steps_s)]
    whole = step_record(of, 1.0)
    return launched(replace(whole, raw=whole.raw | {"blocks": blocks}), launch)


def only(records: list[Record]) -> Study:
    (found,), _ = studies(records)
    return found


# Bases


def test_one_process_is_the_base_of_cells_with_sync_bn_too() -> None:
    base, one, two, *_ = study()
    summary = summarise([base, synced(one), synced(two)])
    found = rows(summary, "Scaling of lenet-5, sync bn")
    assert [row[EFFICIENCY].split(" (")[0] for row in found] == ["base", "80.0 %", "80.0 %"]
    assert "No measured single process" not in str(summary)
    assert [table.title for table in summary.tables] == ["Scaling of lenet-5, sync bn"]


def test_a_folder_with_both_kinds_of_cells_has_two_studies_of_one_base() -> None:
    base, one, two, *_ = study()
    records = [synced(two), base, one, two]
    summary = summarise(records)
    for title in ("Scaling of lenet-5", "Scaling of lenet-5, sync bn"):
        (table,) = [table for table in summary.tables if table.title == title]
        assert table.rows[0][2] == "base"
        assert table.rows[-1][7].startswith("80.0 %")
    assert [each.get("efficiency") for each in scaling.numbers(records)] == pytest.approx([0.8, None, 0.8, 0.8])


def test_a_base_of_a_study_s_own_comes_before_one_that_is_lent_and_a_strange_batch_is_not_lent() -> None:
    base, _, two, *_ = study()
    own = synced(step_record(cell(1, 10, "single"), 0.2))
    found = {each.label: each for each in studies([base, two, own, synced(two)])[0]}
    held = found["lenet-5, sync bn"].base
    assert held is not None
    assert held.record is own
    assert len(found["lenet-5, sync bn"].cells) == 2
    other = step_record(cell(1, 7, "single"), 0.1)
    assert [len(each.cells) for each in studies([other, synced(two)])[0]] == [1, 1]


# Launches


def test_rounds_of_one_launch_pair_so_that_drift_cancels() -> None:
    one, two = cell(1, 10, "single"), cell(2, 10)
    drift = (1.0, 1.5, 0.7, 1.2)
    base = rounds(one, tuple(0.1 * each for each in drift), "a")
    found = only([base, rounds(two, tuple(0.125 * each for each in drift), "a")])
    interval = found.interval(found.cells[1])
    assert interval is not None
    assert (interval.low, interval.high) == (pytest.approx(0.8), pytest.approx(0.8))
    assert not found.unpaired


@pytest.mark.parametrize("launches", [("a", "b"), ("a", None), (None, "b")])
def test_rounds_of_two_launches_do_not_pair_and_both_sides_have_their_spread(
    launches: tuple[str | None, str | None],
) -> None:
    records = [rounds(cell(1, 10, "single"), SLOW, launches[0]), rounds(cell(2, 10), FAST, launches[1])]
    found = only(records)
    interval = found.interval(found.cells[1])
    rates = [[math.log(1 / each) for each in side] for side in (FAST, SLOW)]
    wanted = stats.ttest_ind(*rates, equal_var=False).confidence_interval(0.95)
    assert interval is not None
    assert (interval.low, interval.high) == (pytest.approx(math.exp(wanted.low)), pytest.approx(math.exp(wanted.high)))
    summary = summarise(records)
    assert "Not so ddp, 2 ranks, batch 10, measured apart from the base" in find(summary, "Scaling").note
    assert "Base measured in another launch than ddp, 2 ranks, batch 10: drift" in str(summary.facts)


def test_records_that_name_no_launch_pair_unless_they_are_far_apart_in_time() -> None:
    records = [rounds(cell(1, 10, "single"), SLOW, None), rounds(cell(2, 10), SLOW, None)]
    near, far = only(records), only([replace(records[0], time="2026-01-01T00:00:00+00:00"), records[1]])
    assert not near.unpaired
    assert [each.ranks for each in far.unpaired] == [2]
    paired, apart = near.interval(near.cells[1]), far.interval(far.cells[1])
    assert paired is not None
    assert apart is not None
    assert paired.high - paired.low < 1e-9 < apart.high - apart.low
    text = str(summarise([replace(records[0], time="2026-01-01T00:00:00+00:00"), records[1]]).facts)
    assert "1 cell recorded long before or after the base" in text
    assert "another launch" not in text


def test_many_cells_of_other_launches_are_said_in_one_sentence() -> None:
    records = [step_record(cell(1, 8, "single"), 0.1)]
    records += [launched(step_record(cell(ranks, 8), 0.1), f"launch {ranks}") for ranks in range(2, 8)]
    (caveat,) = [text for text in scaling.summarise(records).caveats if "another launch" in text]
    assert "ddp, 4 ranks, batch 8; and 3 more cells: drift" in caveat


def test_a_base_with_other_threads_is_a_caveat_with_both_numbers() -> None:
    records = [launched(step_record(cell(1, 8, "single"), 0.1), LAUNCH, threads_per_rank=4)]
    records.append(launched(step_record(cell(2, 8), 0.1), LAUNCH, threads_per_rank=2))
    caveats = scaling.summarise(records).caveats
    assert caveats == (
        "Threads per rank differ: 4 in the base, 2 in ddp, 2 ranks, batch 8; what threads do is in the efficiency.",
    )
    assert not scaling.summarise([records[1], replace(records[0], environment=records[1].environment)]).caveats


# Guards and warming up


def test_a_contended_block_is_marked_and_stays_in_the_numbers() -> None:
    records = study()[:4]
    busy = guard() | {"cpu_s": {"busy": 3.0, "steal": 0.0, "total": 4.0}}
    records[2].raw["blocks"][3] |= {"guards": [busy, busy]}
    summary = summarise(records)
    assert [row["contended blocks"] for row in rows(summary, "Scaling")] == ["0 of 6", "0 of 6", "1 of 6", "0 of 6"]
    assert [row["samples/s"] for row in rows(summary, "Scaling")] == ["100", "80.0", "160", "125"]
    assert "1 of 24 blocks contended (other processes used 25 % of the CPU, ...)." in str(summary.facts)
    assert [each["contended_blocks"] for each in scaling.numbers(records)] == [0, 0, 1, 0]


def test_records_without_guards_say_nothing_of_contention() -> None:
    records = study()[:4]
    for record in records:
        for block in record.raw["blocks"]:
            del block["guards"]
        del record.raw["warmup"]
    summary = summarise(records)
    assert "contended blocks" not in find(summary, "Scaling").columns
    assert "no caveats" in str(summary.facts)


def test_cells_that_had_not_settled_are_named() -> None:
    records = study()[:4]
    records[2].raw["warmup"]["capped"] = True
    assert scaling.summarise(records).caveats == (
        "Step times had not settled when warming up ended: ddp, 2 ranks, batch 10.",
    )


def test_cells_in_which_fp16_skipped_updates_are_named() -> None:
    records = study()[:4]
    records[1].raw["blocks"][2]["skipped_steps"] = 1
    records[2].raw["blocks"][2]["skipped_steps"] = 0
    (caveat,) = scaling.summarise(records).caveats
    assert caveat == "fp16 skipped updates of the weights, whose time the rates lack: ddp, 1 rank, batch 10."


class TwoRanks:
    """Stands for a context of two ranks, of which the other one takes twice as long."""

    def gather(self, value: Any) -> list[Any]:
        step_s, spent_s = value
        return [value, [[2 * each for each in step_s], spent_s]]


def warmed(times: list[float], **limits: Any) -> dict[str, Any]:
    left = list(times)
    given = {"least": 5, "cap_steps": 60, "cap_s": 1e9} | limits
    return until_settled(lambda steps: [left.pop(0) for _ in range(steps)], TwoRanks(), **given)  # type: ignore[arg-type]


def test_warming_up_ends_when_steps_settle_or_at_a_cap_which_is_said() -> None:
    quiet, falling = [0.1] * 99, [1 / (1 + place) for place in range(99)]
    assert warmed(quiet) == {"steps": 25, "capped": False, "step_s": [0.2] * 25}
    assert warmed([9.0] * 10 + quiet)["steps"] == 30
    assert warmed(quiet, least=40)["steps"] == 40
    found = warmed(falling)
    assert (found["steps"], found["capped"], len(found["step_s"])) == (60, True, 60)
    assert (warmed(falling, cap_s=0.0)["steps"], warmed(falling, cap_s=0.0, least=12)["steps"]) == (5, 15)
    assert warmed(falling, cap_steps=7)["steps"] == 7


def test_a_launch_records_its_name_its_guards_and_how_long_it_warmed_up(tmp_path: Path) -> None:
    from bench.cases.scaling import Options, cells

    options = Options(model="mlp", batch_size=4, scaling="weak", rounds=3, block_s=0.05, out=tmp_path)

    def work(ctx: DistContext) -> None:
        gc.freeze()  # every block begins with a collection
        for _ in range(2):
            measure_in_turns(options, cells(options), ctx, ENVIRONMENT, case="scaling")

    run_ranks(work, 2)
    records, _ = read(tmp_path)
    names = [record.raw["launch"] for record in records]
    assert len(names) == 6
    assert (len(set(names[:3])), len(set(names[3:])), len(set(names))) == (1, 1, 2)
    assert all(len(bytes.fromhex(name)) == 8 for name in names)
    for record in records:
        warmup = record.raw["warmup"]
        assert record.raw["warmup_steps"] == warmup["steps"] == len(warmup["step_s"]) >= 5
        for block in record.raw["blocks"]:
            assert len(block["guards"]) == record.cell["ranks"]
            assert {each["node"] for each in block["guards"]} == {0}
            assert all(each["own_cpu_s"] is None or each["own_cpu_s"] >= 0 for each in block["guards"])
    found = only(records[:3])
    assert not found.unpaired
    mixed = only([records[0], *records[4:]])
    assert len(mixed.unpaired) == 2
