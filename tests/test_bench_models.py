"""Every model in turn: what is measured, and that a failed model is recorded while the next one goes on."""

import gc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.cases import models
from bench.cases.models import ModelCell, Options
from bench.memory import PeakMemory
from bench.model_cells import RanksFailedError, Subject, agreed, measure_one_by_one
from bench.record import Record, append, read
from bench.summaries.models import samples_per_s, summarise
from bench.summary import summarise as summarise_all
from ddp.context import DistContext
from ddp.mistake import Mistake
from models import zoo
from models.spec import ModelMistake
from tests.bench_records import find
from tests.ranks import run_ranks

CPU = torch.device("cpu")
MIB = 2**20
BROKEN = """
import torch.distributed as dist
from torch import nn

class Net(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode, self.norm, self.fc = mode, nn.BatchNorm1d(12), nn.Linear(12, 3)
    def forward(self, x):
        x = self.norm(x.flatten(1))
        rank = dist.get_rank()
        if self.training and self.mode == "all":
            raise RuntimeError("broken on every rank")
        if self.training and self.mode == "one" and rank == 1:
            raise RuntimeError("broken on rank 1")
        if self.training and self.mode == "nan":
            x = x / 0
        if self.training and self.mode == "apart" and rank == 1:
            self.fc.bias.data.add_(1.0)
        return self.fc(x)

def build(shape, classes):
    raise RuntimeError("cannot be built")
"""
for mode in ("all", "one", "nan", "apart", "fine"):
    BROKEN += f"""
from models.spec import ModelSpec
{mode} = ModelSpec(
    name="{mode}", build=lambda shape, classes: Net("{mode}"), shape=(3, 2, 2), classes=3, parameters=None, source=""
)
"""


def cells_of(tmp_path: Path, *names: str, ranks: int = 2) -> list[ModelCell]:
    (tmp_path / "mine.py").write_text(BROKEN)
    return [
        ModelCell(
            model=name if name in zoo.own_names() else f"{tmp_path / 'mine.py'}:{name}",
            task="classification", ranks=ranks, batch_per_rank=3,
        )
        for name in names
    ]  # fmt: skip


def options(tmp_path: Path) -> Options:
    return Options(out=tmp_path / "out", rounds=2, block_s=0.001)


def measured(tmp_path: Path, *names: str, ranks: int = 2, timeout_s: float = 60) -> dict[str, Record]:
    """Records by the models' last words."""
    cells = cells_of(tmp_path, *names, ranks=ranks)

    def work(ctx: DistContext) -> str | None:
        gc.freeze()  # or each collection looks at all that was imported before the fork
        try:
            measure_one_by_one(options(tmp_path), cells, ctx, {})
        except RanksFailedError as error:
            return str(error)
        return None

    ended = run_ranks(work, ranks, group_timeout_s=timeout_s)
    assert len(set(ended)) == 1
    records, complaints = read(tmp_path / "out")
    assert not complaints
    found = {record.cell["model"].rpartition(":")[2]: record for record in records}
    return found | ({"ended": records[-1]} if ended[0] else {})


def test_a_model_that_fails_is_recorded_and_the_next_goes_on(tmp_path: Path) -> None:
    ranks = 3
    records = measured(tmp_path, "all", "build", "nan", "apart", "lenet5", ranks=ranks)
    assert "ended" not in records
    errors = {name: record.error for name, record in records.items() if record.status == "failed"}
    assert errors.pop("all") == "RuntimeError: broken on every rank"
    assert errors.pop("build") == "RuntimeError: cannot be built"
    assert "finite" in str(errors.pop("nan"))
    assert errors == {"apart": "ValueError: expected the same bits on every rank, got a different fc.bias on rank 1"}
    record = records["lenet5"]
    assert (record.status, record.raw["parameters"], record.raw["identical_ranks"]) == ("ok", 62_006, ranks)
    assert record.raw["training_flop_per_sample"] == 3_204_720
    assert len(record.raw["peak_memory_bytes"]) == ranks
    assert [block["round"] for block in record.raw["blocks"]] == [0, 1]
    for block in record.raw["blocks"]:
        assert len(block["wall_s"]) == len(block["step_s"]) == ranks
        assert block["samples"] == len(block["step_s"][0]) * 3 * ranks


def test_ranks_that_fail_differently_end_the_launch_with_a_record(tmp_path: Path) -> None:
    records = measured(tmp_path, "fine", "one", "lenet5", timeout_s=10)
    assert records["fine"].status == "ok"
    assert records["one"].status == "failed"
    assert records["one"].error == "RuntimeError: broken on rank 1"  # not that rank 0 waited for it
    assert records["ended"] == records["one"]
    assert "lenet5" not in records  # it gets a launch of its own


def test_a_last_loss_that_is_not_finite_is_a_failure(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, "lenet5")

    def work(ctx: DistContext) -> Any:
        subject = Subject(cell, ctx)
        subject.loss_sum = torch.tensor(6.0)
        loss = subject.check()
        subject.loss_sum = torch.tensor(float("nan") if ctx.rank == 1 else 0.0)
        return loss, agreed(ctx, subject.check)[1]

    assert run_ranks(work, 2) == [(2.0, ("failed", "ValueError: expected a finite loss, got nan"))] * 2


def test_failures_are_agreed_on() -> None:
    def tried(ctx: DistContext, errors: list[Exception | None]) -> Any:
        def fail() -> int:
            error = errors[ctx.rank]
            if error is not None:
                raise error
            return 7

        return agreed(ctx, fail)

    plain, cuda = RuntimeError("no"), RuntimeError("CUDA error: illegal address")
    late = RuntimeError("Timed out waiting 2000ms for recv operation to complete")
    full = [torch.OutOfMemoryError(f"tried to allocate {size}") for size in (1, 2, 3)]
    cases: list[tuple[list[Any], Any]] = [
        ([None] * 3, (7, None, True)),
        ([plain] * 3, (None, ("failed", "RuntimeError: no"), True)),
        ([None, None, plain], (None, ("failed", "RuntimeError: no"), False)),
        ([late, late, plain], (None, ("failed", "RuntimeError: no"), False)),
        ([cuda] * 3, (None, ("failed", f"RuntimeError: {cuda}"), False)),
        (full, (None, ("oom", "OutOfMemoryError: tried to allocate 1"), True)),
    ]
    told = run_ranks(lambda ctx: [tried(ctx, errors) for errors, _ in cases], 3)
    assert told == [[expected for _, expected in cases]] * 3


def test_peak_memory_is_that_of_the_work_alone() -> None:
    before = torch.ones(40 * MIB, dtype=torch.uint8)
    peak = PeakMemory(CPU)
    held = torch.ones(30 * MIB, dtype=torch.uint8)
    passing = torch.ones(50 * MIB, dtype=torch.uint8)
    del passing
    assert 79 * MIB < (peak.bytes() or 0) < 90 * MIB
    peak.restart()
    assert 29 * MIB < (peak.bytes() or 0) < 40 * MIB
    assert PeakMemory(CPU).bytes() is not None
    assert len(before) + len(held) == 70 * MIB


def test_cells_are_all_models_by_task_and_name() -> None:
    cells = models.cells(Options())
    assert {cell.model for cell in cells} == {*zoo.own_names(), *models.FAMILIES}
    assert [(cell.task, cell.model) for cell in cells] == sorted((cell.task, cell.model) for cell in cells)
    assert all(cell.task == zoo.find(cell.model).task for cell in cells)
    assert len({cell.key for cell in cells}) == len(cells)
    only = models.cells(Options(task="reconstruction"))
    assert only
    assert all(cell.task == "reconstruction" for cell in only)
    named = models.cells(Options(models=("vae", "lenet5", "lenet5"), ranks=3, batch_size=4))
    assert [(cell.model, cell.global_batch) for cell in named] == [("lenet5", 12), ("vae", 12)]
    assert set(models.FAMILIES) <= set(zoo.torchvision_names())


def test_mistakes_are_refused() -> None:
    with pytest.raises(ModelMistake, match="got 'lenet6'; did you mean lenet5"):
        Options(models=("lenet6",))
    with pytest.raises(Mistake, match=r"expected a task \(.*, got 'segmentaton'; did you mean segmentation"):
        Options(task="segmentaton")
    with pytest.raises(Mistake, match="expected at least 2 samples for each BatchNorm"):
        Options(batch_size=1, sync_bn=False)
    with pytest.raises(Mistake, match="expected --image-size of at least 1"):
        Options(image_size=0)
    assert Options(batch_size=1).batch_size == 1


def record(model: str, task: str, **changes: Any) -> Record:
    blocks = [{"round": n, "samples": 40, "wall_s": [1.0, 2.0], "step_s": [[1.0], [2.0]]} for n in range(2)]
    raw = {"parameters": 1234, "shape": [3, 32, 32], "blocks": blocks, "training_flop_per_sample": 5e9}
    raw["peak_memory_bytes"] = [3 * MIB, 3 * 1024 * MIB]
    cell = asdict(ModelCell(model=model, task=task, ranks=2, batch_per_rank=4, amp="bf16", image_size=32))
    return Record(**({"case": "models", "cell": cell, "status": "ok", "raw": raw} | changes))


def test_the_table_has_a_row_for_every_model_and_the_reason_of_those_that_failed(tmp_path: Path) -> None:
    broken = record("b-net", "segmentation", status="failed", error="RuntimeError: no", raw={})
    records = [record("z-net", "classification"), broken, record("a-net", "classification")]
    (table,) = summarise(records).tables
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["model"] for row in rows] == ["a-net", "z-net", "b-net"]
    assert samples_per_s(records[0]) == 80 / 4
    assert rows[0] == {
        "model": "a-net", "task": "classification", "input": "3x32x32", "parameters": "1,234", "ranks": "2",
        "GFLOP per sample": "5.00", "batch per rank": "4", "samples/s": "20.0", "peak memory per rank": "3.00 GiB",
        "settings": "SyncBN, bf16, images of at most 32", "status": "ok",
    }  # fmt: skip
    assert rows[2]["status"] == "failed: RuntimeError: no"
    assert {rows[2][name] for name in ("parameters", "GFLOP per sample", "samples/s", "input")} == {"n/a"}
    for each in records:
        append(tmp_path, each)
    summary = summarise_all(*read(tmp_path))
    assert str(summary.facts[0]).startswith("Models: 2 of 3 measured")
    assert "failed: b-net" in summary.facts[0].details
    assert summary.facts[0].warning
    assert find(summary, "Models").columns == table.columns


def test_images_are_made_smaller_only_where_they_are_larger() -> None:
    from bench.model_cells import shape_of

    large, small, row = (zoo.find(name) for name in ("resnet18", "lenet5", "linear-regression"))
    assert shape_of(large, 64) == (3, 64, 64)
    assert shape_of(large, None) == (3, 224, 224)
    assert shape_of(small, 64) == (3, 32, 32)
    assert shape_of(row, 4) == (13,)
    assert isinstance(small.build(shape_of(small, 64), 10), nn.Module)
