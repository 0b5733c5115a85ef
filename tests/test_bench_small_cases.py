"""SyncBatchNorm's cost, checkpoints and inference: on real ranks, and their arithmetic by hand."""

import gc
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench.cases import checkpoint, inference, syncbn
from bench.cell import Cell
from bench.record import Record, read
from bench.summaries.checkpoint import size_bytes
from bench.summary import summarise
from ddp.context import DistContext
from ddp.mistake import MistakeOfAll
from tests.bench_records import ENVIRONMENT, rows, step_record
from tests.ranks import run_ranks

QUICK: dict[str, Any] = {"rounds": 2, "block_s": 0.01, "warmup_steps": 3}
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.bn, self.head = nn.BatchNorm2d(3), nn.Linear(3072, classes)

    def forward(self, x):
        assert self.training == torch.is_grad_enabled()
        return self.head(self.bn(x).flatten(1))

def net(shape, classes):
    return Net(classes)
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(NET)
    return f"{tmp_path / 'mine.py'}:net"


def _measure(ctx: DistContext, case: ModuleType, options: Any) -> str | None:
    gc.freeze()  # every block begins with a collection, here of all that the tests have imported
    try:
        case.measure(options, case.cells(options), ctx, {**ENVIRONMENT, "backend": ctx.backend})
    except MistakeOfAll as mistake:
        return str(mistake)
    return None


# SyncBatchNorm


def test_syncbn_measures_both_in_turns(model: str, tmp_path: Path) -> None:
    options = syncbn.Options(model=model, batch_size=4, out=tmp_path, **QUICK)
    run_ranks(partial(_measure, case=syncbn, options=options), 2)
    records, _ = read(tmp_path)
    assert [(record.case, record.status, record.cell["sync_bn"]) for record in records] == [
        ("syncbn", "ok", False), ("syncbn", "ok", True),
    ]  # fmt: skip
    (row,) = rows(summarise(records), "Cost of SyncBatchNorm")
    assert (row["rounds"], row["status"]) == ("2", "ok")
    assert float(row["time ratio (95 % interval)"].split()[0]) > 0


def test_syncbn_refuses_a_model_without_batchnorm(tmp_path: Path) -> None:
    options = syncbn.Options(model="mlp", batch_size=4, out=tmp_path, **QUICK)
    complaints = run_ranks(partial(_measure, case=syncbn, options=options), 2)
    assert set(complaints) == {"expected a --model with BatchNorm, got mlp, which has none; try resnet18-cifar"}
    with pytest.raises(ValueError, match="expected --ranks of at least 2, got 1"):
        syncbn.Options(ranks=1)


def _pair(plain_s: list[float], synced_s: list[float]) -> list[Record]:
    found = []
    for sync_bn, times_s in ((False, plain_s), (True, synced_s)):
        cell = Cell(model="net", ranks=2, batch_per_rank=8, sync_bn=sync_bn)
        blocks = [
            step_record(cell, step_s, rounds=1).raw["blocks"][0] | {"round": n} for n, step_s in enumerate(times_s)
        ]
        found.append(replace(step_record(cell, 1.0), case="syncbn", raw={"blocks": blocks}))
    return found


def test_syncbn_is_compared_round_by_round() -> None:
    # The machine gets twice as slow, but in every round SyncBatchNorm takes a quarter longer.
    (row,) = rows(summarise(_pair([0.1, 0.1, 0.2], [0.125, 0.125, 0.25])), "Cost of SyncBatchNorm")
    assert row["BatchNorm step ms"] == "100"
    assert row["SyncBatchNorm step ms"] == "125"
    assert row["cost ms"] == "25.0"
    assert row["time ratio (95 % interval)"] == "1.250 (1.250 to 1.250)"
    summary = summarise(_pair([0.1] * 6, [0.11, 0.12] * 3))
    (fact,) = [fact for fact in summary.facts if fact.label == "SyncBatchNorm"]
    assert fact.value.startswith("14.9 % of a step (")  # sqrt(1.1 * 1.2) = 1.1489
    assert not any("Few rounds" in str(fact) for fact in summary.facts)


def test_syncbn_of_two_launches_is_compared_as_a_whole_and_says_so() -> None:
    one, other = _pair([0.1, 0.1, 0.2], [0.125, 0.125, 0.25])
    apart = [replace(each, raw={**each.raw, "launch": name}) for each, name in ((one, "a"), (other, "b"))]
    (row,) = rows(summarise(apart), "Cost of SyncBatchNorm")
    assert row["time ratio (95 % interval)"].startswith("1.250 (0.")  # noise of both sides, which pairs would cancel
    assert row["cost ms"] == "25.0"
    assert "measured in two launches" in str(summarise(apart))
    together = [replace(each, raw={**each.raw, "launch": "a"}) for each in (one, other)]
    assert "two launches" not in str(summarise(together))


def test_syncbn_without_its_other_half_has_no_ratio() -> None:
    plain, synced = _pair([0.1, 0.1], [0.2, 0.2])
    failed = replace(synced, status="failed", error="ValueError: lost", raw={})
    (row,) = rows(summarise([plain, failed]), "Cost of SyncBatchNorm")
    assert (row["time ratio (95 % interval)"], row["status"]) == ("n/a", "failed: ValueError: lost")
    (row,) = rows(summarise([plain]), "Cost of SyncBatchNorm")
    assert row["status"] == "only one of the two was measured"


# Checkpoints


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 2), ("adam", 3)])
def test_a_checkpoint_holds_weights_and_optimizer_and_is_gone_afterwards(
    optimizer: Any, copies: int, tmp_path: Path
) -> None:
    options = checkpoint.Options(model="mlp", optimizer=optimizer, out=tmp_path, **QUICK)
    run_ranks(partial(_measure, case=checkpoint, options=options), 2)
    (record,) = read(tmp_path)[0]
    assert record.status == "ok"
    assert sorted(record.raw["file_bytes"]) == ["rank-0.pt", "rank-1.pt", "shared.pt"]
    weights_bytes = 4 * 203_530
    assert copies * weights_bytes <= record.raw["file_bytes"]["shared.pt"] <= copies * weights_bytes + 50_000
    assert [each["round"] for each in record.raw["repeats"]] == [0, 1]
    for each in record.raw["repeats"]:
        assert len(each["save_s"]) == len(each["load_s"]) == 2
        assert min(each["save_s"] + each["load_s"]) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_a_checkpoint_is_as_slow_as_its_slowest_rank() -> None:
    repeats = [{"round": n, "save_s": [1.0, 2.0 + n], "load_s": [0.5, 0.25]} for n in range(3)]
    raw = {"parameters": 1000, "file_bytes": {"shared.pt": 3 * 2**20, "rank-0.pt": 2**20}, "repeats": repeats}
    cell = {"model": "net", "ranks": 2, "optimizer": "sgd"}
    record = Record(case="checkpoint", cell=cell, status="ok", raw=raw, environment=ENVIRONMENT)
    assert size_bytes(record) == 2**22
    summary = summarise([record, replace(record, cell={**cell, "model": "b"}, status="failed", error="full", raw={})])
    row, failed = rows(summary, "Checkpoints")
    assert row["size MiB"] == "4.00"
    assert row["save s, median (lowest to highest)"] == "3.00 (2.00 to 4.00)"
    assert row["load s, median (lowest to highest)"] == "0.5 (0.5 to 0.5)"
    assert (row["save MB/s"], row["load MB/s"]) == ("1.40", "8.39")
    assert (failed["save MB/s"], failed["status"]) == ("n/a", "failed: full")


# Inference


def test_inference_runs_without_gradients_and_takes_every_batch_size(model: str, tmp_path: Path) -> None:
    options = inference.Options(model=model, ranks=2, batch_sizes=(4, 1), out=tmp_path, **QUICK)
    run_ranks(partial(_measure, case=inference, options=options), 2)
    records, _ = read(tmp_path)
    assert [(record.cell["batch_per_rank"], record.status) for record in records] == [(1, "ok"), (4, "ok")]
    for record in records:
        for block in record.raw["blocks"]:
            calls = {len(rank) for rank in block["call_s"]}
            assert len(block["call_s"]) == len(block["wall_s"]) == 2
            assert calls == {block["samples"] // (2 * record.cell["batch_per_rank"])}
            assert all(0 < sum(rank) <= wall for rank, wall in zip(block["call_s"], block["wall_s"], strict=True))


def test_inference_by_hand() -> None:
    def record(batch: int, call_s: float) -> Record:
        calls_s = [[call_s] * 99 + [10 * call_s], [call_s] * 100]
        block = {"samples": 2 * 100 * batch, "wall_s": [sum(each) for each in calls_s], "call_s": calls_s}
        raw = {"blocks": [block | {"round": 0}]}
        cell = {"model": "net", "ranks": 2, "batch_per_rank": batch, "amp": "off", "channels_last": True}
        return Record(case="inference", cell=cell, status="ok", raw=raw, environment=ENVIRONMENT)

    summary = summarise([record(8, 0.02), record(1, 0.01)])
    first, second = rows(summary, "Inference")
    assert [first[name] for name in ("batch per rank", "samples/s", "per rank")] == ["1", "183", "91.7"]  # 200 / 1.09 s
    assert [first[name] for name in ("latency p50 ms", "p99 ms", "calls n")] == ["10.0", "10.0", "200"]
    assert second["precision"] == "float32, channels last"
    (fact,) = [fact for fact in summary.facts if fact.label == "Inference"]
    assert fact.value == f"{second['samples/s']} samples/s"
    assert [plot.series[0].points[0][0] for plot in summary.plots] == [1.0]
