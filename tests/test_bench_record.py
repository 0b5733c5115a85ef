"""That docs/records.md names every key of a record, and that records of an older day stay readable."""

import importlib
import inspect
import re
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from bench.record import FILE_NAME, SCHEMA_VERSION, Record, read
from bench.summary import summarise
from ddp.config import TrainConfig
from tests.bench_records import all_cases

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "records-v1.jsonl"


def keys(value: Any) -> Iterator[str]:
    """The keys of nested objects; those of maps whose keys are names of things are left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            if key not in ("file_bytes", "environments", "steps"):
                yield from keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from keys(item)


def documented(page: str, case: str) -> set[str]:
    """Words in code style in the part of the page that every case shares, and in the case's own."""
    shared, *parts = page.split("### Case ")
    (own,) = [part for part in parts if part.startswith(f"`{case}`")]
    referred = {"syncbn": "`scaling`", "compare": "`train_step`"}.get(case)  # "as scaling", "guards as above"
    own += next(part for part in parts if part.startswith(referred)) if referred else ""
    return set(re.findall(r"`([a-z_0-9]+)`", shared + own))


def test_every_key_of_a_record_is_documented() -> None:
    page = (ROOT / "docs" / "records.md").read_text()
    for record in all_cases():
        found = {*keys(record.cell), *keys(record.raw), *keys(record.environment)}
        missing = found - documented(page, record.case)
        assert not missing - {"data" if record.case == "fit" else ""}, (record.case, missing)
    assert {each.name for each in fields(Record)} <= documented(page, "fit")
    assert f"schema version {SCHEMA_VERSION}" in page


def test_every_field_of_a_cell_is_documented() -> None:
    page = (ROOT / "docs" / "records.md").read_text()
    names = [path.stem for path in (ROOT / "bench" / "cases").glob("[a-z]*.py")]
    assert len(names) >= 9
    for name in names:
        module = importlib.import_module(f"bench.cases.{name}")
        kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if is_dataclass(kind)]
        cells = [kind for kind in kinds if isinstance(inspect.getattr_static(kind, "key", None), property)]
        assert cells, name
        for kind in cells:
            assert {each.name for each in fields(kind)} <= documented(page, name), kind
    assert {each.name for each in fields(TrainConfig)} <= documented(page, "fit")


def test_records_of_every_case_of_schema_1_stay_readable_and_a_torn_line_is_counted(tmp_path: Path) -> None:
    shutil.copy(GOLDEN, tmp_path / FILE_NAME)
    records, complaints = read(tmp_path)
    summary = summarise(records, complaints)
    assert {record.case for record in records} == {
        *("checkpoint", "collectives", "compare", "fit", "inference", "loader", "loop_cost", "models", "scaling"),
        *("syncbn", "train_step"),
    }
    assert [remark[:30] for remark in summary.remarks] == [f"{FILE_NAME} line {len(records) + 1} was left"[:30]]
    assert not summary.failures.rows
    assert not [table.title for table in summary.tables if table.title.startswith("Case ")]
    assert "unreadable" not in str(summary)
    values = {fact.label: fact.value for fact in (*summary.facts, *(f for t in summary.tables for f in t.lead))}
    assert values["Throughput"] == "100 samples/s"
    assert values["Accuracy"] == "80.0 % of test samples"
    assert values["Straggler"] == "rank 1 is late by 3.00 ms per step"
    assert values["B against A"] == "slower"
    assert values["Checkpoint"] == "saved in 0.12 s, loaded in 0.05 s"
