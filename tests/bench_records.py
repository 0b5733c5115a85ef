"""Records for the tests of the report, with numbers that are easy to check by hand."""

from dataclasses import asdict, replace
from typing import Any

from bench import report
from bench.cases.checkpoint import CheckpointCell
from bench.cases.collectives import CollectiveCell
from bench.cases.inference import InferenceCell
from bench.cases.loader import LoaderCell
from bench.cases.models import ModelCell
from bench.cases.train_step import StepCell
from bench.cell import Cell
from bench.collective_bandwidth import OPS
from bench.record import Record
from bench.section import Table
from bench.summary import Summary

LAUNCH = "9f86d081884c7d65"
ENVIRONMENT = {"host": "node17", "device": "cpu", "cpu": "EPYC", "cores": 4, "threads_per_rank": 1, "torch": "2.15"}


def step_record(cell: Cell, step_s: float, rounds: int = 6, **changes: Any) -> Record:
    """A scaling record: 20 steps per round, `step_s` each on the last rank and half that elsewhere."""
    ranks = [[step_s * (0.5 if rank + 1 < cell.ranks else 1.0)] * 20 for rank in range(cell.ranks)]
    block: dict[str, Any] = {"samples": 20 * cell.global_batch, "wall_s": [sum(times) for times in ranks]}
    block |= {"step_s": ranks, "guards": [guard() for _ in ranks]}
    raw: dict[str, Any] = {"launch": LAUNCH, "warmup_steps": 5, "parameters": 1234567, "peak_memory_bytes": None}
    raw |= {"warmup": {"steps": 5, "capped": False, "step_s": [step_s] * 5}}
    raw |= {"blocks": [{"round": number} | block for number in range(rounds)]}
    record = Record(case="scaling", cell=asdict(cell), status="ok", raw=raw, environment=ENVIRONMENT)
    return replace(record, **changes)


def cell(ranks: int, batch: int, strategy: str = "ddp", model: str = "lenet-5") -> Cell:
    """A cell of the study."""
    return Cell(model=model, ranks=ranks, batch_per_rank=batch, strategy=strategy)


def fit_record(**changes: Any) -> Record:
    """A training run of two epochs that ends at 80 % after 90 %."""
    epoch = {"train_loss": 0.5, "train_samples": 600, "train_s": 2.0, "test_loss": 0.4, "test_samples": 100}
    epochs = [
        {**epoch, "epoch": 1, "test_correct": 90, "test_s": 1.0, "lr": 0.1},
        {**epoch, "epoch": 2, "test_correct": 80, "test_s": 1.0, "lr": 0.0},
    ]
    config = {"model": "lenet-5", "ranks": 2, "input": {"data": "digits"}, "epochs": 2, "global_batch_size": 64}
    config |= {"sync_bn": False, "amp": "off", "seed": 7}
    raw = {"parameters": 61706, "epochs": epochs}
    return replace(Record(case="fit", cell=config, status="ok", raw=raw, environment=ENVIRONMENT), **changes)


def study() -> list[Record]:
    """A base of 100 samples/s; DDP with 80 on one rank, 160 on two (weak), 125 on two (strong), and a failed cell."""
    return [
        step_record(cell(1, 10, "single"), 0.1),
        step_record(cell(1, 10), 0.125),
        step_record(cell(2, 10), 0.125),
        step_record(cell(2, 5), 0.08),
        step_record(cell(4, 10), 1.0, status="oom", error="rank 3 ran out of memory; halve the batch", raw={}),
        fit_record(),
    ]


def many(count: int) -> list[Record]:
    """Cells of a large sweep, all different: scaling, runs, collectives, steps, checkpoints."""
    tenth, found = count // 10, []
    for place in range(4 * tenth):
        ranks = 1 + place % 20
        strategy = "single" if ranks == 1 else "ddp"
        found.append(step_record(cell(ranks, 8, strategy, f"net-{place // 20}"), 0.1 + ranks / 1000, rounds=1))
    found += [fit_record(cell=fit_record().cell | {"seed": seed}) for seed in range(2 * tenth)]
    found += [collective_record(OPS[place % 5], 64 * (1 + place)) for place in range(2 * tenth)]
    for place in range(tenth):
        kind = ("single", 1) if place % 2 == 0 else ("ddp", 2)
        step = StepCell(model="net", ranks=kind[1], batch_per_rank=1 + place // 2, strategy=kind[0])
        found.append(train_step_record(step, 0.01, rounds=1))
    saved = small_records()[0]
    found += [replace(saved, cell=saved.cell | {"model": f"net-{place}"}) for place in range(count - len(found))]
    return found


def find(summary: Summary, title: str) -> Table:
    """The table whose title begins like this."""
    return next(table for table in report.all_tables(summary) if table.title.startswith(title))


def rows(summary: Summary, title: str) -> list[dict[str, str]]:
    """A table's rows by column."""
    table = find(summary, title)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


# Other cases


def record_of(case: str, cell: Any, raw: dict[str, Any], **changes: Any) -> Record:
    """A record that went well; the cell as a dataclass or as a record holds it."""
    fields = cell if isinstance(cell, dict) else asdict(cell)
    record = Record(case=case, cell=fields, status="ok", raw=raw, environment={**ENVIRONMENT, "backend": "gloo"})
    return replace(record, **changes)


def guard(node: int = 0) -> dict[str, Any]:
    """What one rank saw of a quiet machine during a block of a second."""
    gpu = dict.fromkeys(("gpu_sm_mhz", "gpu_throttle", "gpu_temperature_c", "gpu_other_processes", "energy_j"))
    cpu = {"busy": 0.1, "steal": 0.0, "total": 4.0}
    return {"cpu_s": cpu, "own_cpu_s": 1.0, "load_1m": 1.5, "cpu_mhz": 2400.0, **gpu, "node": node}


def train_step_record(cell: StepCell, forward_s: float, late_s: float = 0.0, rounds: int = 6) -> Record:
    """Rounds of 20 steps whose forward pass takes that long; the last rank is late in it."""
    blocks = []
    for number in range(rounds):
        for arm in ("train", "no_sync") if cell.ranks > 1 else ("train",):
            last = [forward_s + late_s * (rank == cell.ranks - 1) for rank in range(cell.ranks)]
            phases = {"data": [0.001] * cell.ranks, "h2d": [0.0005] * cell.ranks, "forward": last}
            phases |= {"backward": [2 * forward_s] * cell.ranks, "optimizer": [0.002] * cell.ranks}
            if arm == "train" and cell.ranks > 1:
                phases |= {"issue": [0.0005] * cell.ranks, "wait": [0.004 + max(last) - each for each in last]}
            wall_s = [20 * sum(times[rank] for times in phases.values()) for rank in range(cell.ranks)]
            phase_s = {name: [[each] * 20 for each in times] for name, times in phases.items()}
            samples = 20 * cell.global_batch
            block = {"round": number, "arm": arm, "samples": samples, "wall_s": wall_s, "phase_s": phase_s}
            blocks.append(block | {"guards": [guard() for _ in range(cell.ranks)]})
    raw = {
        "launch": LAUNCH,
        "warmup": {"steps": 10, "capped": False, "step_s": [4 * forward_s] * 10},
        "parameters": 1234567,
        "training_flop_per_sample": 2e9,
        "matmul_flop_per_s": None,
        "peak_memory_bytes": [cell.batch_per_rank * 2**24 + rank * 2**20 for rank in range(cell.ranks)],
        "blocks": blocks,
    }
    return record_of("train_step", cell, raw)


def collective_record(op: str, size_bytes: int, ranks: int = 2, **changes: Any) -> Record:
    """Three rounds of 20 calls that need 50 us and a second for each 2 GB."""
    call_s = 50e-6 + size_bytes / 2e9
    block = {"wall_s": [20 * call_s] * ranks, "call_s": [[call_s] * 20] * ranks}
    raw = {"calls_per_block": 20, "wrong_elements": 0, "checked_elements": ranks * size_bytes // 4}
    raw |= {"blocks": [block | {"round": number} for number in range(3)]}
    raw |= {"ddp_model": "lenet-5", "ddp_bucket_bytes": [2**18, 2**20, 2**22]}
    cell = CollectiveCell(op=op, dtype="float32", ranks=ranks, size_bytes=size_bytes)
    return record_of("collectives", cell, raw, **changes)


def compare_record() -> Record:
    """Six pairs of blocks in which B takes 4 % longer than A."""
    guards = {name: value for name, value in guard().items() if name != "node"}
    blocks = []
    for arm in "ABBABAABABBA":
        steps = [0.0104 if arm == "B" else 0.01] * 20
        block = {"arm": arm, "samples": 8, "wall_s": [sum(steps)], "step_s": [steps], "cpu_s": [sum(steps)]}
        blocks.append(block | {"guards": guards})
    cell = {"a": "--amp off", "b": "--amp bf16", "commits": False, "common": "--model lenet-5", "ranks": 1}
    cell |= {"pairs": 6, "max_pairs": 64, "turns": 1, "block_s": 2.0, "margin_percent": 2.0, "warmup_steps": 10}
    cell |= {"seed": 0, "timeout_s": 300.0}
    raw = {"parameters": [61706, 61706], "steps": {"A": 20, "B": 20}, "environments": [ENVIRONMENT] * 2}
    return record_of("compare", cell, raw | {"blocks": blocks})


def small_records() -> list[Record]:
    """Checkpoints, inference, input pipelines, the loop's cost, models, SyncBatchNorm."""
    checkpoint = {"parameters": 61706, "file_bytes": {"shared.pt": 500_000, "rank0.pt": 2000, "rank1.pt": 2000}}
    checkpoint["repeats"] = [{"round": n, "save_s": [0.1, 0.12], "load_s": [0.05, 0.04]} for n in range(3)]
    rounds = range(6)
    bare = {"ringmark": 2.02, "bare": 2.0, "bare again": 2.01}
    loop = [
        {"round": n, "arm": arm, "samples": 2560, "wall_s": [s, s - 0.01]} for n in rounds for arm, s in bare.items()
    ]
    shape = {"task": "classification", "shape": [1, 32, 32], "classes": 10}
    step = {"samples": 40, "wall_s": [1.0, 2.0], "step_s": [[1.0], [2.0]]}
    model = {**shape, "parameters": 61706, "warmup_steps": 5, "loss": 2.3, "identical_ranks": 2}
    model |= {"peak_memory_bytes": [3 * 2**20, 4 * 2**20], "blocks": [step | {"round": n} for n in rounds]}
    model["training_flop_per_sample"] = 5e6
    found = [
        record_of("checkpoint", CheckpointCell(model="lenet-5", ranks=2, optimizer="sgd"), checkpoint),
        record_of("loop_cost", cell(2, 64), {"warmup_steps": 5, "steps": 20, "blocks": loop}),
        record_of("models", ModelCell(model="lenet-5", task="classification", ranks=2, batch_per_rank=4), model),
    ]
    for batch, call_s in ((1, 0.001), (8, 0.004), (32, 0.012)):
        block = {"samples": 200 * batch, "wall_s": [100 * call_s] * 2, "call_s": [[call_s] * 100] * 2}
        raw = {"warmup_calls": 5, "blocks": [block | {"round": n} for n in rounds]}
        found.append(record_of("inference", InferenceCell(model="lenet-5", ranks=2, batch_per_rank=batch), raw))
    for pipeline, rate in (("ringmark", 5000), ("imagefolder, 0 workers", 800), ("imagefolder, 2 workers", 1200)):
        raw = {
            "first_batch_s": 1.5,
            "blocks": [{"round": n, "samples": rate + 10 * n, "wall_s": [1.0]} for n in rounds],
        }
        found.append(record_of("loader", LoaderCell(pipeline=pipeline, batch_size=128, image_size=32), raw))
    for sync_bn, step_s in ((False, 0.1), (True, 0.11)):
        kind = replace(cell(2, 16), sync_bn=sync_bn)
        found.append(replace(step_record(kind, step_s), case="syncbn"))
    return found


def all_cases() -> list[Record]:
    """At least one record of every case, as a folder that everything was measured into would hold."""
    steps = [
        train_step_record(StepCell(model="lenet-5", ranks=ranks, batch_per_rank=batch, strategy=strategy), *times)
        for batch in (8, 16)
        for ranks, strategy, times in ((1, "single", (0.01,)), (2, "ddp", (0.0105, 0.003)), (4, "ddp", (0.011, 0.004)))
    ]
    sizes = [2**power for power in range(3, 26, 2)]
    calls = [collective_record(op, size) for op in ("all_reduce", "all_gather", "broadcast") for size in sizes]
    return [*study(), *steps, *calls, compare_record(), *small_records()]
