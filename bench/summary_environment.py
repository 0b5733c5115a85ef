"""Where the numbers come from: one table of the records' environments, and what in them gives reason for doubt."""

from collections.abc import Iterable, Sequence
from typing import Any

from bench.record import Record
from bench.section import Fact, Table
from bench.text import NA, number, plural, value_text

LABELS = {
    "host": "host",
    "device": "device",
    "gpus": "GPUs",
    "cpu": "CPU",
    "cores": "usable cores",
    "nodes": "nodes",
    "threads_per_rank": "threads per rank",
    "python": "Python",
    "torch": "torch",
    "cuda": "CUDA",
    "driver": "GPU driver",
    "nccl": "NCCL",
    "backend": "backend",
    "commit": "commit",
    "dirty": "uncommitted changes",
    "load_1m": "load, 1 minute",
}
SAME = ("host", "device", "gpus", "cpu", "cores", "python", "torch", "cuda", "driver", "nccl", "commit")
"""What should not differ between records that are compared."""


def values(records: Iterable[Record], key: str) -> list[Any]:
    """The known values of one key of the environments, each once, in the order of the records."""
    found: list[Any] = []
    for record in records:
        value = record.environment.get(key)
        if value is not None and value not in found:
            found.append(value)
    return found


def table(records: Sequence[Record]) -> Table:
    """Every known item of the environments; several values stand side by side, unknown is n/a."""
    extra = [key for record in records for key in record.environment if key not in LABELS]
    rows = [(LABELS.get(key, key), _shown(values(records, key))) for key in (*LABELS, *dict.fromkeys(extra))]
    times = sorted(str(record.time) for record in records)
    span = times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"
    rows += [("records", f"{len(records):,}"), ("recorded (UTC)", span)]
    return Table(title="Environment", columns=("item", "value"), rows=tuple(rows))


def fact(records: Sequence[Record]) -> Fact:
    """The environment in one line."""
    device, host = _shown(values(records, "device")), _shown(values(records, "host"))
    torch, commit = _shown(values(records, "torch")), _shown(values(records, "commit"))
    gpus = values(records, "gpus")
    count = f"{gpus[0]} x " if len(gpus) == 1 and isinstance(gpus[0], int) and gpus[0] > 1 else ""
    cpu = f"CPU ({_shown(values(records, 'cpu'))}), {_shown(values(records, 'cores'))} usable cores"
    name = cpu if device == "cpu" else f"{count}{device}"
    return Fact(label="Environment", value=name, details=(f"host {host}", f"torch {torch}", f"commit {commit}"))


def _shown(found: list[Any]) -> str:
    if len(found) > 2 and all(isinstance(value, int | float) for value in found):
        return f"{number(min(found))} to {number(max(found))}"
    return " / ".join(value_text(value) for value in found) or NA


def caveats(records: Sequence[Record]) -> list[str]:
    """What in the environments gives reason to trust the numbers less."""
    measured = [record for record in records if record.status == "ok"]
    found = [sentence for sentence in (_crowded_cores(measured), _crowded_gpus(measured)) if sentence]
    differing = [f"{LABELS[key]} ({_shown(values(records, key))})" for key in SAME if len(values(records, key)) > 1]
    if differing:
        found.append(f"Records come from differing environments: {', '.join(differing)}.")
    busy = [
        record
        for record in records
        if (load := _number(record, "load_1m")) and load > (_number(record, "cores") or load)
    ]
    if busy:
        load = max(_number(record, "load_1m") or 0.0 for record in busy)
        found.append(f"The machine was busy: a load of {number(load)} on {_number(busy[0], 'cores'):g} cores.")
    if True in values(records, "dirty"):
        found.append("Some records come from a checkout with uncommitted changes, so the commit does not say it all.")
    return found


def _number(record: Record, key: str) -> float | None:
    value = record.environment.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _ranks_per_node(record: Record) -> float | None:
    ranks = record.cell.get("ranks")
    nodes = _number(record, "nodes") or 1
    return ranks / nodes if isinstance(ranks, int) and not isinstance(ranks, bool) and nodes >= 1 else None


def _crowded_cores(records: Sequence[Record]) -> str | None:
    """More threads than cores on a CPU: efficiency then measures the machine's size."""
    worst, text = 1.0, None
    for record in records:
        ranks, cores, threads = _ranks_per_node(record), _number(record, "cores"), _number(record, "threads_per_rank")
        if record.environment.get("device") != "cpu" or ranks is None or not cores:
            continue
        share = ranks * (threads or 1) / cores
        if share > worst:
            worst = share
            sizes = f"{ranks:g} ranks of {plural(round(threads or 1), 'thread')} on {plural(round(cores), 'core')}"
            text = (
                f"More threads than cores ({sizes}): ranks compete, so efficiency says more about the machine than DDP."
            )
    return text


def _crowded_gpus(records: Sequence[Record]) -> str | None:
    for record in records:
        ranks, gpus = _ranks_per_node(record), _number(record, "gpus")
        if record.environment.get("device") not in (None, "cpu") and ranks is not None and gpus and ranks > gpus:
            return f"More ranks than GPUs ({ranks:g} ranks per node on {gpus:g}): ranks share a GPU."
    return None
