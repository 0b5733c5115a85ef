"""report.csv: one row per cell, one column per thing, numbers in full precision and base units.

That is what people plot, join and filter: `pandas.read_csv("report.csv")` needs no cleaning. The report's tables are to
be read (rounded, an interval or a unit in the same cell), so a table of their texts would have to be parsed again.
Columns: what the record is, what was measured (seconds, bytes, samples; shares of one), `cell.*` its configuration,
`environment.*` where it was measured. What is unknown, or has no meaning for a case, is empty.
"""

import csv
import importlib
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cell import key_of
from bench.record import UNUSABLE, Record
from bench.text import clean

FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
"""What a spreadsheet takes for the beginning of a formula, also in full width. Source: OWASP, CSV injection."""
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def csv_text(records: Sequence[Record]) -> str:
    """The table of these records, in their order."""
    rows: dict[int, dict[str, Any]] = {}
    cases = dict.fromkeys(record.case for record in records)
    for case in cases:
        members = [record for record in records if record.case == case]
        for record, found in zip(members, _numbers(case, members), strict=True):
            rows[id(record)] = _own(record) | _common(record.raw) | found
    groups: list[dict[str, dict[str, Any]]] = []
    for record in records:
        cell, environment = _flat("cell", record.cell), _flat("environment", record.environment)
        groups.append({"own": rows[id(record)], "cell": cell, "environment": environment})
    columns = [
        (kind, name) for kind in ("own", "cell", "environment") for name in _names([each[kind] for each in groups])
    ]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([harmless(name) for _, name in columns])
    for each in groups:
        writer.writerow([_text(each[kind].get(name)) for kind, name in columns])
    return buffer.getvalue()


def harmless(text: str) -> str:
    """Text that no spreadsheet runs: an apostrophe before what would begin a formula, unless it is a number."""
    text = clean(text)
    return f"'{text}" if text[:1] and text[0] in FORMULA and not NUMBER.fullmatch(text) else text


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _own(record: Record) -> dict[str, Any]:
    own = {"case": record.case, "cell_key": key_of(record.cell), "status": record.status, "error": record.error}
    return own | {"time": record.time}


def _common(raw: dict[str, Any]) -> dict[str, Any]:
    """What means the same in every case."""
    peaks = raw.get("peak_memory_bytes")
    known = isinstance(peaks, list) and peaks and all(isinstance(each, int | float) for each in peaks)
    parameters = raw.get("parameters")
    return {
        "parameters": parameters if isinstance(parameters, int) else None,
        "peak_memory_bytes": max(peaks) if known and peaks else None,
    }


def _numbers(case: str, records: list[Record]) -> list[dict[str, Any]]:
    """What bench/summaries/<case>.py's `numbers` makes of the records, where it can."""
    if case not in {path.stem for path in (Path(__file__).parent / "summaries").glob("[a-z]*.py")}:
        return [{} for _ in records]
    numbers = getattr(importlib.import_module(f"bench.summaries.{case}"), "numbers", None)
    if numbers is None:
        return [{} for _ in records]
    try:
        found: list[dict[str, Any]] = numbers(records)
    except UNUSABLE:  # one of them cannot be read: each by itself then
        found = [] if len(records) == 1 else [_numbers(case, [record])[0] for record in records]
    return found or [{} for _ in records]


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Nested objects as names with dots."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {name: item for key in value for name, item in _flat(f"{prefix}.{key}", value[key]).items()}


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return harmless(value if isinstance(value, str) else json.dumps(value, default=str))
