"""Records for the tests of the report, with numbers that are easy to check by hand."""

from dataclasses import asdict, replace
from typing import Any

from bench import report
from bench.cell import Cell
from bench.record import Record
from bench.section import Table
from bench.summary import Summary

ENVIRONMENT = {"host": "node17", "device": "cpu", "cpu": "EPYC", "cores": 4, "threads_per_rank": 1, "torch": "2.15"}


def step_record(cell: Cell, step_s: float, rounds: int = 6, **changes: Any) -> Record:
    """A scaling record: 20 steps per round, `step_s` each on the last rank and half that elsewhere."""
    ranks = [[step_s * (0.5 if rank + 1 < cell.ranks else 1.0)] * 20 for rank in range(cell.ranks)]
    blocks = [
        {"round": number, "samples": 20 * cell.global_batch, "wall_s": [sum(times) for times in ranks], "step_s": ranks}
        for number in range(rounds)
    ]
    raw = {"warmup_steps": 5, "parameters": 1234567, "blocks": blocks, "peak_memory_bytes": None}
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


def find(summary: Summary, title: str) -> Table:
    """The table whose title begins like this."""
    return next(table for table in report.all_tables(summary) if table.title.startswith(title))


def rows(summary: Summary, title: str) -> list[dict[str, str]]:
    """A table's rows by column."""
    table = find(summary, title)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]
