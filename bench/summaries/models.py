"""Models side by side: that each trains on all ranks alike, its size, its arithmetic, its speed and its memory."""

from collections.abc import Sequence
from typing import Any

from bench.record import Record
from bench.section import Fact, Section, Table
from bench.stats import Block, throughput_per_s
from bench.text import NA, count, number, value_text

NAMED = 5
"""Failed models that the verdict names."""
COLUMNS = (
    "model",
    "task",
    "input",
    "parameters",
    "GFLOP per sample",
    "ranks",
    "batch per rank",
    "samples/s",
    "peak memory per rank",
    "settings",
    "status",
)
NOTE = (
    "Each model took its steps alone on random samples that stay on the device, after the others were freed; then its "
    "weights were compared bit by bit between the ranks, and its loss was finite. GFLOP: matrix products, convolutions "
    "and attention of one sample in a training step, forward and backward, 2 FLOP for a multiply-add. Peak memory: of "
    "the rank that needs most, beyond what it needs without a model; on a CPU of the whole process."
)


def summarise(records: Sequence[Record]) -> Section:
    """One row per model, failed ones with their reason."""
    ordered = sorted(records, key=lambda record: (_setting(record, "task"), _setting(record, "model")))
    failed = [_setting(record, "model") for record in ordered if record.status != "ok"]
    table = Table(title="Models", columns=COLUMNS, rows=tuple(row(record) for record in ordered), note=NOTE)
    details = ["trained for a few steps, the same weights on every rank, a finite loss"]
    if failed:
        more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        details.append(f"failed: {', '.join(failed[:NAMED])}{more}")
    fact = Fact(
        label="Models",
        value=f"{len(ordered) - len(failed)} of {len(ordered)} measured",
        details=tuple(details),
        warning=bool(failed),
    )
    return Section(facts=(fact,), tables=(table,))


def row(record: Record) -> tuple[str, ...]:
    """A model's cells, in the order of COLUMNS."""
    ok = record.status == "ok"
    return (
        _setting(record, "model"),
        _setting(record, "task"),
        input_text(record.raw.get("shape")),
        count(record.raw.get("parameters")),
        number(gflop(record)),
        _setting(record, "ranks"),
        _setting(record, "batch_per_rank"),
        number(samples_per_s(record)),
        memory_text(record),
        _settings(record),
        "ok" if ok else f"{record.status}: {value_text(record.error)}",
    )


def gflop(record: Record) -> float | None:
    """1e9 floating-point operations of one sample in a training step; None: not known."""
    flop = record.raw.get("training_flop_per_sample")
    return None if flop is None else float(flop) / 1e9


def samples_per_s(record: Record) -> float | None:
    """Samples of all ranks together per second; None without blocks."""
    blocks = [
        Block(round=block["round"], samples=block["samples"], wall_s=tuple(block["wall_s"]), step_s=())
        for block in record.raw.get("blocks") or ()
    ]
    return throughput_per_s(blocks) if blocks else None


def memory_text(record: Record) -> str:
    """Peak memory of the rank that needs most, in MiB or GiB."""
    peaks = record.raw.get("peak_memory_bytes")
    if not peaks:
        return NA
    size_mib = max(peaks) / 2**20
    return f"{number(size_mib / 1024)} GiB" if size_mib >= 1024 else f"{number(size_mib)} MiB"


def input_text(shape: Any) -> str:
    """A sample's shape, such as 3x32x32."""
    return "x".join(map(str, shape)) if shape else NA


def _setting(record: Record, name: str) -> str:
    return value_text(record.cell.get(name))


def _settings(record: Record) -> str:
    """What differs from the plainest training, in words."""
    cell = record.cell
    words = [
        *(["SyncBN"] if cell.get("sync_bn") else ["BatchNorm per rank"]),
        *([str(cell.get("amp"))] if cell.get("amp") not in (None, "off") else []),
        *(["channels last"] if cell.get("channels_last") else []),
        *([f"compiled {cell.get('compile')}"] if cell.get("compile") not in (None, "off") else []),
        *([f"images of at most {cell.get('image_size')}"] if cell.get("image_size") else []),
    ]
    return ", ".join(words)


def numbers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each record: samples of all ranks per second, and FLOP of a sample in a training step."""
    return [
        {
            "samples_per_s": samples_per_s(record),
            "training_flop_per_sample": record.raw.get("training_flop_per_sample"),
        }
        for record in records
    ]
