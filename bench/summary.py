"""Records -> Summary: everything a report says, as text and plot data; each rendering only lays it out."""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bench import summary_environment
from bench.record import Record
from bench.section import Fact, Plot, Section, Table
from bench.text import clean, plural, value_text

STATUSES = ("ok", "oom", "failed")
Data = TypeVar("Data")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What all three renderings say; no string in it can steer a terminal."""

    facts: tuple[Fact, ...]
    """The verdict, about five lines."""
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...]
    failures: Table
    """Cells without a measurement; no rows if there are none."""
    environment: Table
    remarks: tuple[str, ...]
    """Lines that could not be read, records that newer ones replace."""

    @property
    def headline(self) -> tuple[str, ...]:
        """The verdict as plain lines."""
        return tuple(str(fact) for fact in self.facts)


def summarise(records: Sequence[Record], complaints: Sequence[str] = ()) -> Summary:
    """Sum up a folder's records, case by case. Raises ValueError if none of them is a record."""
    remarks = list(complaints)
    known = [record for record in records if _is_sound(record, remarks)]
    if not known:
        why = f" ({clean(remarks[0])})" if remarks else ""
        raise ValueError(
            f"expected at least one record that can be read, got none{why}; measure again into a new folder"
        )
    chosen = newest(known)
    if len(known) > len(chosen):
        lost = sum(record.status != "ok" for record in known) - sum(record.status != "ok" for record in chosen)
        left = plural(len(known) - len(chosen), "record")
        remarks.append(f"{left} of cells that have a better or newer one left out, {max(lost, 0)} of them not ok.")
    cases = list(dict.fromkeys(record.case for record in chosen))
    sections = [_section(case, [record for record in chosen if record.case == case]) for case in cases]
    failures = _failures(chosen)
    facts = [fact for section in sections for fact in section.facts]
    caveats = _caveats(chosen, sections, failures)
    summary = Summary(
        facts=(*facts, _confidence(caveats), summary_environment.fact(chosen)),
        tables=tuple(table for section in sections for table in section.tables),
        plots=tuple(plot for section in sections for plot in section.plots),
        failures=failures,
        environment=summary_environment.table(chosen),
        remarks=tuple(remarks),
    )
    return _cleaned(summary)


def newest(records: Iterable[Record]) -> list[Record]:
    """One record per case and cell: the newest that is ok, else the newest; in the order of first records."""
    cells: dict[str, Record] = {}
    for record in records:
        key = value_text([record.case, record.cell])
        held = cells.get(key)
        if held is None or (record.status == "ok", str(record.time)) >= (held.status == "ok", str(held.time)):
            cells[key] = record
    return list(cells.values())


def _is_sound(record: Record, remarks: list[str]) -> bool:
    """True if the record's fields have the types that they should have; otherwise a remark is added."""
    shapes = (("case", str), ("cell", dict), ("raw", dict), ("environment", dict))
    wrong = [
        f"{name} {value_text(getattr(record, name))}"
        for name, kind in shapes
        if not isinstance(getattr(record, name), kind)
    ]
    if record.status not in STATUSES:
        wrong.append(f"status {value_text(record.status)}")
    if wrong:
        remarks.append(
            f"A record was left out: expected text, objects and a status of {STATUSES}, got {'; '.join(wrong)}."
        )
    return not wrong


def _section(case: str, records: list[Record]) -> Section:
    """bench/summaries/<case>.py says what the records mean; a case without such a file becomes a plain table."""
    if case in {path.stem for path in (Path(__file__).parent / "summaries").glob("[a-z]*.py")}:
        module = importlib.import_module(f"bench.summaries.{case}")
        summarise_case: Callable[[Sequence[Record]], Section] = module.summarise
        return summarise_case(records)
    rows = tuple((case, value_text(record.cell), record.status, value_text(record.error)) for record in records)
    note = "What was measured is in records.jsonl; this program has no table for this kind of record."
    return Section(
        tables=(Table(title=f"Case {case}", columns=("case", "cell", "status", "error"), rows=rows, note=note),)
    )


def _failures(records: list[Record]) -> Table:
    rows = tuple(
        (record.case, _settings(record.cell), record.status, value_text(record.error))
        for record in records
        if record.status != "ok"
    )
    return Table(title="Cells without a measurement", columns=("case", "cell", "status", "reason"), rows=rows)


def _settings(cell: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value_text(value)}" for key, value in cell.items() if not isinstance(value, dict | list))


def _caveats(records: list[Record], sections: list[Section], failures: Table) -> list[str]:
    found = [caveat for section in sections for caveat in section.caveats] + summary_environment.caveats(records)
    if failures.rows:
        found.insert(0, f"{len(failures.rows)} of {plural(len(records), 'cell')} could not be measured, see below.")
    return found


def _confidence(caveats: list[str]) -> Fact:
    if not caveats:
        return Fact(
            label="Confidence", value="no caveats", details=("all cells measured, enough rounds, one environment",)
        )
    return Fact(label="Confidence", value=plural(len(caveats), "caveat"), details=tuple(caveats), warning=True)


def _cleaned(value: Data) -> Data:
    """The same data with every string made harmless, so that no case and no rendering can forget to."""
    if isinstance(value, str):
        return clean(value)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(_cleaned(item) for item in value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _cleaned(getattr(value, each.name)) for each in fields(value)})
    return value
