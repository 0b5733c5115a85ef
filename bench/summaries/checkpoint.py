"""What a checkpoint costs: its size, and the time until the slowest rank had written or loaded it."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.record import Record
from bench.section import Fact, Section, Table
from bench.text import NA, count, number, value_text

COLUMNS = (
    "model",
    "ranks",
    "optimizer",
    "parameters",
    "size MiB",
    "save s, median (lowest to highest)",
    "save MB/s",
    "load s, median (lowest to highest)",
    "load MB/s",
    "repeats",
    "status",
)
NOTE = (
    "Size: files of all ranks. Save: until every byte is synced to the disk (fsync) and the checkpoint has its name. "
    "Load: checksums verified, read, and put into model and optimizer, by every rank. Before each load the system was "
    "asked to forget the files, so it reads the disk where the file system obeys. MB/s: size over the median, 1 MB = "
    "1e6 bytes."
)


def summarise(records: Sequence[Record]) -> Section:
    """One row per model."""
    table = Table(title="Checkpoints", columns=COLUMNS, rows=tuple(row(record) for record in records), note=NOTE)
    return Section(facts=tuple(_fact(record) for record in records if record.status == "ok"), tables=(table,))


def row(record: Record) -> tuple[str, ...]:
    """A record's row, in the order of COLUMNS."""
    names = tuple(value_text(record.cell.get(name)) for name in ("model", "ranks", "optimizer"))
    if record.status != "ok":
        return (*names, *(NA,) * (len(COLUMNS) - len(names) - 1), f"{record.status}: {value_text(record.error)}")
    size = size_bytes(record)
    cells: list[str] = []
    for what in ("save_s", "load_s"):
        times_s = slowest_s(record, what)
        cells += [
            f"{number(median(times_s))} ({number(min(times_s))} to {number(max(times_s))})",
            number(size / median(times_s) / 1e6),
        ]
    repeats = str(len(record.raw["repeats"]))
    return (*names, count(record.raw.get("parameters")), number(size / 2**20), *cells, repeats, "ok")


def size_bytes(record: Record) -> int:
    """Bytes of all files of the checkpoint but its manifest."""
    return sum(record.raw["file_bytes"].values())


def slowest_s(record: Record, what: str) -> list[float]:
    """Seconds of each repeat, of its slowest rank; `what` is save_s or load_s."""
    return [max(each[what]) for each in record.raw["repeats"]]


def _fact(record: Record) -> Fact:
    save_s, load_s = (number(median(slowest_s(record, what))) for what in ("save_s", "load_s"))
    size = f"{number(size_bytes(record) / 2**20)} MiB"
    return Fact(label="Checkpoint", value=f"saved in {save_s} s, loaded in {load_s} s", details=(row(record)[0], size))


def numbers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each record: bytes, and seconds of the median repeat."""
    return [_numbers(record) if record.status == "ok" else {} for record in records]


def _numbers(record: Record) -> dict[str, Any]:
    times = {what: median(slowest_s(record, what)) for what in ("save_s", "load_s")}
    return {"size_bytes": size_bytes(record), **times, "repeats": len(record.raw["repeats"])}
