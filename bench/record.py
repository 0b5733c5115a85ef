"""Records: what was measured, raw, one JSON line each; numbers derived from them are never stored."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

SCHEMA_VERSION = 1
FILE_NAME = "records.jsonl"
UNUSABLE = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, ZeroDivisionError)
"""What reading a record that is not as it should be can raise."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement or one training run, or the reason why there is none."""

    case: str
    """What kind of measurement: `fit`, or a file of bench/cases by its name."""
    cell: dict[str, Any]
    """The whole configuration."""
    status: Literal["ok", "oom", "failed"]
    error: str | None = None
    """Why there is no measurement; None if there is one."""
    raw: dict[str, Any] = field(default_factory=dict)
    """What was read from clocks and counters; its keys carry their units."""
    environment: dict[str, Any] = field(default_factory=dict)
    time: str = field(default_factory=_now)
    """When the record was made, UTC, ISO 8601."""
    schema_version: int = SCHEMA_VERSION


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null, which is what they mean here."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def append(folder: Path, record: Record) -> None:
    """Add one line to the folder's records: one write of whole bytes, so that ranks and runs may share the file."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_finite(asdict(record)), allow_nan=False) + "\n"
    handle = os.open(folder / FILE_NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, (b"\n" if torn else b"") + line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def read(folder: Path) -> tuple[list[Record], list[str]]:
    """Read a folder's records -> (records, complaints about lines that could not be read).

    Raises ValueError if the folder holds no records at all.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise ValueError(f"expected a folder with {FILE_NAME}, got {folder}; name the --out folder of a run")
    records, complaints = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            if fields["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {fields['schema_version']}, this program reads {SCHEMA_VERSION}")
            records.append(Record(**fields))
        except (ValueError, KeyError, TypeError) as error:
            complaints.append(f"{path.name} line {number} was left out: {error}")
    return records, complaints
