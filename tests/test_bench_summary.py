"""What the report says of a folder of records, and that what cannot be used is said rather than dropped."""

from dataclasses import replace
from typing import Any

import pytest

from bench.cases.train_step import StepCell
from bench.cell import Cell
from bench.record import Record
from bench.section import Fact, Section
from bench.summary import MOST_CAVEATS, VERDICT_LINES, _shared_out, summarise
from bench.text import clean
from tests.bench_records import (
    ENVIRONMENT,
    all_cases,
    cell,
    find,
    fit_record,
    rows,
    step_record,
    study,
    train_step_record,
)


def test_a_study_is_compared_to_the_single_process_as_computed_by_hand() -> None:
    found = rows(summarise(study()), "Scaling of lenet-5")
    seen = [
        (row["ranks"], row["scaling"], row["samples/s"], row["per rank"], row["step p50 / p95 ms"]) for row in found
    ]
    assert seen == [
        ("1", "base", "100", "100", "100 / 100"),
        ("1", "weak+strong", "80.0", "80.0", "125 / 125"),
        ("2", "weak", "160", "80.0", "125 / 125"),
        ("4", "weak", "n/a", "n/a", "n/a"),
        ("2", "strong", "125", "62.5", "80.0 / 80.0"),
    ]
    efficiencies = [row["efficiency vs single process (95 % interval)"] for row in found]
    assert efficiencies[:3] == ["base", "80.0 % (80.0 to 80.0 %)", "80.0 % (80.0 to 80.0 %)"]
    assert efficiencies[3:] == ["n/a", "62.5 % (62.5 to 62.5 %)"]
    assert [row["vs 1-rank DDP"] for row in found] == ["-", "base", "100.0 %", "n/a", "78.1 %"]


def test_the_note_names_the_base_the_rounds_and_the_steps() -> None:
    note = find(summarise(study()), "Scaling").note
    assert "Base: one process without DDP, 100 samples/s with a batch of 10." in note
    assert "6 rounds with 120 steps in total, after 5 steps of warm-up" in note


def test_the_verdict_is_five_lines_and_speaks_of_the_cell_with_the_most_ranks() -> None:
    facts = {fact.label: fact for fact in summarise(study()).facts}
    assert list(facts) == ["Throughput", "Efficiency", "Accuracy", "Confidence", "Environment"]
    assert facts["Throughput"].value == "160 samples/s"
    assert facts["Efficiency"].value == "80.0 % (80.0 to 80.0 %)"
    assert "strong scaling to 2 ranks: 62.5 % (62.5 to 62.5 %)" in facts["Efficiency"].details
    assert facts["Accuracy"].value == "80.0 % of test samples"
    assert "best 90.0 % in epoch 1" in facts["Accuracy"].details


def test_a_training_run_reports_its_last_epoch_and_names_the_best_one() -> None:
    (row,) = rows(summarise([fit_record()]), "Training runs")
    assert (row["test score, last epoch"], row["best epoch"]) == ("80.0 %", "90.0 % (epoch 1)")
    assert (row["training time"], row["samples/s in training"]) == ("4.00 s", "300")
    assert (row["data"], row["global batch"], row["epochs"]) == ("digits", "64", "2")
    assert find(summarise([fit_record()]), "Training runs").note.endswith("Parameters: lenet-5 61,706.")


def test_a_run_that_lost_its_last_numbers_says_so_instead_of_showing_older_ones() -> None:
    record = fit_record()
    record.raw["epochs"][-1] |= {"test_correct": None, "train_loss": None, "train_s": None}
    summary = summarise([record])
    (row,) = rows(summary, "Training runs")
    assert (row["test score, last epoch"], row["train loss"], row["training time"]) == ("n/a", "n/a", "n/a")
    assert "1 training run ended without a finite training loss." in str(summary.facts)


def test_a_failed_cell_stays_in_the_report_with_its_reason() -> None:
    summary = summarise(study())
    statuses = [row["status"] for row in rows(summary, "Scaling")]
    assert statuses.count("oom: rank 3 ran out of memory; halve the batch") == 1
    assert [row[2:] for row in summary.failures.rows] == [("oom", "rank 3 ran out of memory; halve the batch")]
    assert "1 of 6 cells could not be measured" in str(summary.facts)


def test_the_newest_measurement_of_a_cell_wins_and_a_later_failure_does_not_hide_it() -> None:
    base = cell(1, 10, "single")
    old = step_record(base, 0.1, time="2026-01-01T00:00:00+00:00")
    new = step_record(base, 0.2, time="2026-01-02T00:00:00+00:00")
    late = step_record(base, 0.1, status="failed", error="crash", raw={}, time="2026-01-03T00:00:00+00:00")
    summary = summarise([new, late, old])
    assert [row["samples/s"] for row in rows(summary, "Scaling")] == ["50.0"]
    assert summary.remarks == ("2 records of cells that have a better or newer one left out, 1 of them not ok.",)


def test_without_a_measurement_the_newest_failure_is_shown() -> None:
    failures = [fit_record(status="failed", error=text, raw={}, time=text) for text in ("2026-01-02", "2026-01-01")]
    assert [row["status"] for row in rows(summarise(failures), "Training runs")] == ["failed: 2026-01-02"]


def test_without_a_base_there_is_no_efficiency_but_a_caveat() -> None:
    summary = summarise(study()[1:4])
    assert {row["efficiency vs single process (95 % interval)"] for row in rows(summary, "Scaling")} == {"n/a"}
    assert [row["scaling"] for row in rows(summary, "Scaling")] == ["weak+strong", "weak", "strong"]
    assert "No measured single process without DDP" in str(summary.facts)


def test_with_two_bases_each_cell_is_compared_to_the_base_whose_batch_it_has() -> None:
    more = [step_record(cell(1, 20, "single"), 0.4), step_record(cell(2, 20), 0.4)]
    summary = summarise([*study()[:4], *more])
    assert [row["samples/s"] for row in rows(summary, "Scaling of lenet-5, base batch 10")] == [
        "100",
        "80.0",
        "160",
        "125",
    ]
    assert [row["scaling"] for row in rows(summary, "Scaling of lenet-5, base batch 20")] == ["base", "weak", "strong"]


def test_cells_that_differ_in_more_than_ranks_are_not_compared() -> None:
    other = step_record(Cell(model="lenet-5", ranks=2, batch_per_rank=10, amp="bf16"), 0.1)
    summary = summarise([*study(), other])
    (row,) = rows(summary, "Scaling of lenet-5, amp bf16")
    assert (row["samples/s"], row["efficiency vs single process (95 % interval)"]) == ("200", "n/a")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({}, "KeyError('blocks')"),
        ({"blocks": []}, "expected at least one block"),
        ({"blocks": [{"round": 0, "samples": 8, "wall_s": [1.0], "step_s": [[1.0]]}]}, "expected times of 2 ranks"),
        ({"blocks": [{"round": 0, "samples": 8, "wall_s": [1], "step_s": [[1], [1]]}]}, "expected times of 2 ranks"),
        ({"blocks": [{"round": 0, "samples": 8, "wall_s": [1, None], "step_s": [[1], [1]]}]}, "NoneType"),
        ({"blocks": [{"round": 0, "samples": 8, "wall_s": [1, 0], "step_s": [[1], [1]]}]}, "positive, finite seconds"),
        ({"blocks": [{"round": 0, "samples": 8, "wall_s": [1, 10**400], "step_s": [[1], [1]]}]}, "too large"),
    ],
)
def test_numbers_that_cannot_be_used_become_a_row_that_says_so(damage: dict[str, Any], reason: str) -> None:
    summary = summarise([*study()[:2], step_record(cell(2, 10), 0.1, raw=damage)])
    row = rows(summary, "Scaling")[-1]
    assert row["samples/s"] == "n/a"
    assert row["status"].startswith("unreadable")
    assert reason in row["status"]
    assert "1 cell with numbers that cannot be used" in str(summary.facts)


def test_a_cell_without_ranks_is_shown_apart() -> None:
    summary = summarise([Record(case="scaling", cell={"model": "x"}, status="failed", error="no start")])
    assert find(summary, "Cells that cannot be compared").rows == (('{"model": "x"}', "failed", "no start"),)


@pytest.mark.parametrize("case", ["warp_drive", "../fit", "bench.cell", "__init__", "", "x" * 300, "a\0b"])
def test_an_unknown_case_is_a_plain_table_rather_than_dropped(case: str) -> None:
    summary = summarise([Record(case=case, cell={"a": 1}, status="failed", error="no fuel")])
    assert find(summary, clean(f"Case {case}")).rows == ((clean(case), '{"a": 1}', "failed", "no fuel"),)


def test_more_threads_than_cores_and_few_rounds_are_caveats() -> None:
    crowded = {**ENVIRONMENT, "cores": 2, "threads_per_rank": 2, "dirty": True}
    records = [replace(record, environment=crowded) for record in study()[:4]]
    records[0] = step_record(cell(1, 10, "single"), 0.1, rounds=1, environment=crowded)
    caveats = str(summarise(records).facts)
    assert "More threads than cores (2 ranks of 2 threads on 2 cores)" in caveats
    assert "Few rounds (1, better 6 or more)" in caveats
    assert "uncommitted changes" in caveats


def test_a_sound_study_has_no_caveats() -> None:
    (fact,) = [fact for fact in summarise(study()[:4]).facts if fact.label == "Confidence"]
    assert (fact.value, fact.warning) == ("no caveats", False)
    assert fact.details == ("all cells measured, one environment",)  # of rounds only those cases know that check them


def test_few_rounds_of_steps_taken_apart_are_a_caveat() -> None:
    steps = StepCell(model="lenet-5", ranks=2, batch_per_rank=8)
    assert "few rounds (1, better 6 or more)" in str(summarise([train_step_record(steps, 0.01, rounds=1)]).facts)
    assert "few rounds" not in str(summarise([train_step_record(steps, 0.01)]).facts)


def test_rounds_of_records_made_days_apart_do_not_pair() -> None:
    records = [replace(record, time="2026-01-01T00:00:00+00:00") for record in study()[:4]]
    records[2] = replace(records[2], time="2026-01-05T00:00:00+00:00")
    for record in records:
        del record.raw["launch"]  # as of an older program
    assert "1 cell recorded long before or after the base" in str(summarise(records).facts)


def test_differing_environments_are_a_caveat_and_stand_side_by_side() -> None:
    records = study()[:4]
    records[1] = replace(records[1], environment={**ENVIRONMENT, "torch": "2.16"})
    summary = summarise(records)
    assert "differing environments: torch (2.15 / 2.16)" in str(summary.facts)
    assert {"item": "torch", "value": "2.15 / 2.16"} in rows(summary, "Environment")
    assert {"item": "NCCL", "value": "n/a"} in rows(summary, "Environment")


def test_a_caveat_of_several_studies_is_said_once_and_names_them() -> None:
    short = [step_record(cell(1, 10, "single", model), 0.2, rounds=2) for model in ("a", "b")]
    (fact,) = [fact for fact in summarise([*short, study()[0]]).facts if fact.label == "Confidence"]
    expected = "Few rounds (2, better 6 or more), so intervals are wide or missing. This is so for a; b."
    assert fact.details == (expected,)


@pytest.mark.parametrize(("nodes", "crowded"), [(1, True), (2, False)])
def test_ranks_that_share_a_gpu_are_a_caveat(nodes: int, crowded: bool) -> None:
    record = fit_record(cell={"ranks": 4}, environment={"device": "NVIDIA T4", "gpus": 2, "nodes": nodes})
    assert ("More ranks than GPUs (4 ranks per node on 2)" in str(summarise([record]).facts)) == crowded


# The first screen


def test_a_folder_with_every_case_has_a_verdict_of_five_lines_and_loses_nothing() -> None:
    summary = summarise(all_cases())
    labels = [fact.label for fact in summary.facts]
    assert labels == ["Throughput", "Efficiency", "MFU", "Straggler", "Confidence", "Environment"]
    assert len(labels) == VERDICT_LINES + 1
    left = {fact.label: table.title for table in summary.tables for fact in table.lead}
    assert {label: left[label] for label in ("Accuracy", "Step", "Collectives", "B against A")} == {
        "Accuracy": "Training runs",
        "Step": "Steps of lenet-5",
        "Collectives": "Collective operations",
        "B against A": "Comparisons",
    }
    expected = {"Where it went", "Checkpoint", "Loop cost", "Models", "Inference", "Input path", "SyncBatchNorm"}
    assert expected <= set(left)


def section(*facts: tuple[str, str], warning: bool = False) -> Section:
    found = tuple(Fact(label=label, value=value, warning=warning) for label, value in facts)
    return Section(facts=found, tables=summarise(study()).tables[:1])


def test_every_fact_is_in_the_verdict_or_above_a_table_and_never_in_both() -> None:
    sections = [
        section(*((label, str(place)) for place in range(3))) for label in ("Throughput", "Checkpoint", "New", "Step")
    ]
    verdict, left = _shared_out(sections)
    assert [(fact.label, fact.value) for fact in verdict] == [
        ("Throughput", "0"), ("Step", "0"), ("Checkpoint", "0"), ("New", "0"),
    ]  # fmt: skip
    shown = [*verdict, *(fact for each in left for fact in each.tables[0].lead)]
    assert sorted(map(str, shown)) == sorted(str(fact) for each in sections for fact in each.facts)


def test_what_asks_for_doubt_and_has_no_room_is_a_caveat() -> None:
    core = section(("Throughput", "1"), ("Efficiency", "1"), ("MFU", "n/a"), ("Where it went", "80 %"))
    verdict, left = _shared_out([core, section(("Collectives", "data arrived wrong"), warning=True)])
    assert "Collectives" not in [fact.label for fact in verdict]
    assert left[1].caveats == ("Collectives: data arrived wrong",)
    assert left[0] is core


def test_that_no_rank_is_late_gives_way_to_where_the_efficiency_went() -> None:
    verdict, _ = _shared_out([section(("Straggler", "none"), ("Where it went", "80 %"), *((x, x) for x in "abc"))])
    assert [fact.label for fact in verdict] == ["Where it went", "Straggler", "a", "b"]
    full = section(("Throughput", "1"), ("Efficiency", "1"), ("MFU", "1"), ("Straggler", "none"), ("Step", "1 ms"))
    assert [fact.label for fact in _shared_out([full])[0]] == ["Throughput", "Efficiency", "Step", "MFU"]


def test_the_verdict_spells_out_a_few_caveats_and_the_report_lists_the_others() -> None:
    bad = {**ENVIRONMENT, "cores": 1, "threads_per_rank": 2, "dirty": True, "load_1m": 9.0}
    records = [step_record(cell(1, 10, "single"), 0.1, rounds=1, environment=bad), *study()[1:]]
    summary = summarise(records)
    (confidence,) = [fact for fact in summary.facts if fact.label == "Confidence"]
    total = MOST_CAVEATS + len(summary.caveats)
    assert summary.caveats
    assert confidence.value == f"{total} caveats"
    assert confidence.details[MOST_CAVEATS:] == (f"{len(summary.caveats)} more below, under More caveats",)
    assert not set(summary.caveats) & set(confidence.details)
    assert any("uncommitted changes" in caveat for caveat in summary.caveats)


def test_plots_of_what_the_verdict_speaks_of_come_first() -> None:
    titles = [plot.title for plot in summarise([fit_record(), *study()[:3]]).plots]
    assert titles[:2] == ["Throughput of lenet-5", "Efficiency of lenet-5"]
    assert titles[-1] == "Loss"


@pytest.mark.parametrize("case", sorted({record.case for record in all_cases()}))
def test_one_record_with_unusable_numbers_does_not_take_the_report_with_it(case: str) -> None:
    good = [record for record in all_cases() if record.case == case and record.status == "ok"]
    broken = replace(good[0], raw={"blocks": 7}, cell={**good[0].cell, "model": "another"})
    whole, damaged = summarise(good), summarise([*good, broken])
    assert {table.title for table in whole.tables} <= {table.title for table in damaged.tables}
    summarise([broken])
