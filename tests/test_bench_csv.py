"""That report.csv has exact numbers of every cell, and nothing in it that a spreadsheet runs."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from bench import report
from bench.csv_export import csv_text, harmless
from bench.record import append
from tests.bench_records import all_cases, cell, fit_record, step_record


def csv_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of report.csv by column."""
    with (folder / report.CSV).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_file_has_a_row_for_every_cell_with_exact_numbers(tmp_path: Path) -> None:
    records = all_cases()
    for record in records:
        append(tmp_path, record)
    report.write_report(tmp_path)
    found = csv_rows(tmp_path)
    assert [row["case"] for row in found] == [record.case for record in records]
    weak = found[2]
    assert float(weak["samples_per_s"]) == pytest.approx(160.0)
    assert [float(weak[name]) for name in ("efficiency", "efficiency_low")] == pytest.approx([0.8, 0.8])
    assert (weak["scaling"], weak["steps"], weak["cell.model"], weak["cell.sync_bn"]) == (
        "weak", "120", "lenet-5", "false",
    )  # fmt: skip
    failed = next(row for row in found if row["status"] == "oom")
    assert (failed["samples_per_s"], failed["error"]) == ("", "rank 3 ran out of memory; halve the batch")
    by_case = {row["case"]: row for row in found}
    for case, column, value in (
        ("fit", "test_score", 0.8), ("train_step", "forward_s", 0.015), ("train_step", "late_s", 0.004),
        ("collectives", "algbw_bytes_per_s", 2**25 / (50e-6 + 2**25 / 2e9)), ("checkpoint", "save_s", 0.12),
        ("loop_cost", "speed_of_bare", 2.0 / 2.02), ("models", "samples_per_s", 20.0),
        ("inference", "call_p99_s", 0.012), ("loader", "samples_per_s", 1225.0), ("syncbn", "step_p50_s", 0.11),
    ):  # fmt: skip
        assert float(by_case[case][column]) == pytest.approx(value), (case, column)
    assert by_case["fit"]["cell.input.data"] == "digits"
    assert by_case["train_step"]["environment.cores"] == "4"


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\n=1", "\uff1d1"])
def test_what_a_spreadsheet_would_run_is_text(text: str, tmp_path: Path) -> None:
    append(tmp_path, fit_record(cell={"model": text, text: "x"}, error=text, environment={"host": text}))
    report.write_report(tmp_path)
    (row,) = csv_rows(tmp_path)
    values = [value for pair in row.items() for value in pair]
    assert row["cell.model"][0] == "'"
    assert not [value for value in values if value[:1] in "=+@\t\r\uff1d" and value]
    assert harmless("-1.5e-3") == "-1.5e-3"
    assert harmless("-1.5e-3x") == "'-1.5e-3x"


def test_a_record_that_cannot_be_read_has_a_row_and_costs_the_others_nothing() -> None:
    good, bad = step_record(cell(1, 10, "single"), 0.1), all_cases()[-1]
    broken = [replace(each, raw={"blocks": [{"round": None}]}) for each in (good, bad)]
    lines = csv_text([good, bad, *broken]).splitlines()
    found = list(csv.DictReader(lines))
    assert len(found) == 4
    assert float(found[0]["samples_per_s"]) == pytest.approx(100.0)
    assert float(found[1]["step_p50_s"]) == pytest.approx(0.11)
    assert [row["step_p50_s"] for row in found[2:]] == ["", ""]
