"""Records -> Summary: everything a report says, as text and plot data; each rendering only lays it out."""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bench import summary_environment
from bench.record import UNUSABLE, Record
from bench.section import Fact, Plot, Section, Table
from bench.text import clean, plural, value_text

STATUSES = ("ok", "oom", "failed")
VERDICT_LINES = 5
"""Lines of the verdict, the one on confidence among them."""
SLOTS = (("Throughput",), ("Efficiency",), ("MFU",), ("Straggler", "Where it went", "Step"))
"""What the verdict says if the records tell it: a line of each, the first label that is there."""
ORDER = (
    *("Throughput", "Efficiency", "Step", "MFU", "Where it went", "Straggler", "B against A", "Accuracy", "Score"),
    *("Models", "Collectives", "Inference", "SyncBatchNorm", "Input path", "Checkpoint", "Loop cost", "Start"),
)
"""Order of the verdict's lines, and of those that fill up the room that is left."""
MOST_CAVEATS = 4
"""Caveats that the verdict spells out; the others have a list of their own."""
MOST_LEADS = 20
"""Lines above one table."""
DRAWN_FIRST = {"scaling": 0, "train_step": 1, "collectives": 2}
"""Cases whose plots come first: those that the verdict speaks of."""
MOST_PLOTS = 8
"""Plots of one case; the numbers of the others are in the tables."""
Data = TypeVar("Data")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What all three renderings say; no string in it can steer a terminal."""

    facts: tuple[Fact, ...]
    """The verdict, at most five lines, and the environment."""
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...]
    failures: Table
    """Cells without a measurement; no rows if there are none."""
    environment: Table
    remarks: tuple[str, ...]
    """Lines that could not be read, records that newer ones replace, plots that were left out."""
    caveats: tuple[str, ...] = ()
    """Reasons to trust the numbers less for which the verdict has no room."""

    @property
    def headline(self) -> tuple[str, ...]:
        """The verdict as plain lines."""
        return tuple(str(fact) for fact in self.facts)


def summarise(records: Sequence[Record], complaints: Sequence[str] = ()) -> Summary:
    """Sum up a folder's records, case by case. Raises ValueError if none of them is a record."""
    remarks = list(complaints)
    chosen = usable(records, remarks)
    cases = list(dict.fromkeys(record.case for record in chosen))
    sections = [_section(case, [record for record in chosen if record.case == case]) for case in cases]
    verdict, sections = _shared_out(sections)
    failures = _failures(chosen)
    caveats = _caveats(chosen, sections, failures)
    for case, section in zip(cases, sections, strict=True):
        if (left := len(section.plots) - MOST_PLOTS) > 0:
            remarks.append(f"{plural(left, 'plot')} of {case} left out, {MOST_PLOTS} are drawn; the tables say it all.")
    summary = Summary(
        facts=(*verdict, _confidence(caveats), summary_environment.fact(chosen)),
        tables=tuple(table for section in sections for table in section.tables),
        plots=tuple(plot for section in _as_drawn(cases, sections) for plot in section.plots[:MOST_PLOTS]),
        failures=failures,
        environment=summary_environment.table(chosen),
        remarks=tuple(remarks),
        caveats=tuple(caveats[MOST_CAVEATS:]),
    )
    return cleaned(summary)


def usable(records: Sequence[Record], remarks: list[str]) -> list[Record]:
    """The records that a report speaks of, one per cell; what is left out is added to `remarks`.

    Raises ValueError if none of them is a record.
    """
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
    return chosen


def newest(records: Iterable[Record]) -> list[Record]:
    """One record per case and cell: the newest that is ok, else the newest; in the order of first records."""
    cells: dict[str, Record] = {}
    for record in records:
        key = value_text([record.case, record.cell])
        held = cells.get(key)
        if held is None or (record.status == "ok", str(record.time)) >= (held.status == "ok", str(held.time)):
            cells[key] = record
    return list(cells.values())


def _place(fact: Fact) -> int:
    return ORDER.index(fact.label) if fact.label in ORDER else len(ORDER)


def _shared_out(sections: list[Section]) -> tuple[list[Fact], list[Section]]:
    """Facts for the verdict, and the sections with the others above their first tables.

    What asks for doubt and finds no room in the verdict becomes a caveat as well.
    """
    waiting = [fact for section in sections for fact in section.facts]
    chosen: list[Fact] = []
    for labels in SLOTS:
        fitting = [fact for label in labels for fact in waiting if fact.label == label]
        late = [fact for fact in fitting if fact.label != "Straggler" or fact.warning]  # that nobody is late can wait
        chosen += (late or fitting)[:1]
    taken = {id(fact) for fact in chosen}
    rest = sorted((fact for fact in waiting if id(fact) not in taken), key=_place)
    seen = {fact.label for fact in chosen}
    first: list[Fact] = []
    spare: list[Fact] = []
    for fact in rest:  # one line of each label before a second one of any
        (spare if fact.label in seen else first).append(fact)
        seen.add(fact.label)
    chosen = sorted([*chosen, *first, *spare][: VERDICT_LINES - 1], key=_place)
    taken = {id(fact) for fact in chosen}
    return chosen, [
        _with_lead(section, [fact for fact in section.facts if id(fact) not in taken]) for section in sections
    ]


def _as_drawn(cases: Sequence[str], sections: Sequence[Section]) -> list[Section]:
    """The sections in the order of their plots."""
    pairs = sorted(zip(cases, sections, strict=True), key=lambda pair: DRAWN_FIRST.get(pair[0], len(DRAWN_FIRST)))
    return [section for _, section in pairs]


def _with_lead(section: Section, facts: list[Fact]) -> Section:
    if not facts:
        return section
    left = len(facts) - MOST_LEADS
    more = (
        [Fact(label="More", value=f"{plural(left, 'line')} like these", details=("see the rows",))] if left > 0 else []
    )
    first, *others = section.tables or (Table(title=facts[0].label, columns=(), rows=()),)
    head = replace(first, lead=(*facts[:MOST_LEADS], *more))
    doubts = [str(fact) for fact in facts if fact.warning]
    return replace(section, tables=(head, *others), caveats=(*doubts, *section.caveats))


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
        try:
            return summarise_case(records)
        except UNUSABLE:
            return _what_can_be_read(case, summarise_case, records)
    rows = tuple((case, value_text(record.cell), record.status, value_text(record.error)) for record in records)
    note = "What was measured is in records.jsonl; this program has no table for this kind of record."
    return Section(
        tables=(Table(title=f"Case {case}", columns=("case", "cell", "status", "error"), rows=rows, note=note),)
    )


def _what_can_be_read(
    case: str, summarise_case: Callable[[Sequence[Record]], Section], records: list[Record]
) -> Section:
    """The case without the records whose numbers cannot be used, and a caveat that says so."""
    good, why = [], ""
    for record in records:
        try:
            summarise_case([record])
            good.append(record)
        except UNUSABLE as error:
            why = why or repr(error)
    section = summarise_case(good) if good else Section()
    left = plural(len(records) - len(good), "record")
    return replace(
        section, caveats=(*section.caveats, f"{left} of {case} left out, whose numbers cannot be used: {why}.")
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
        return Fact(label="Confidence", value="no caveats", details=("all cells measured, one environment",))
    left = len(caveats) - MOST_CAVEATS
    more = (f"{left} more below, under More caveats",) if left > 0 else ()
    details = (*caveats[:MOST_CAVEATS], *more)
    return Fact(label="Confidence", value=plural(len(caveats), "caveat"), details=details, warning=True)


def cleaned(value: Data) -> Data:
    """The same data with every string made harmless, so that no case and no rendering can forget to."""
    if isinstance(value, str):
        return clean(value)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(cleaned(item) for item in value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: cleaned(getattr(value, each.name)) for each in fields(value)})
    return value
