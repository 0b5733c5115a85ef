"""Collective operations on real ranks: every element is checked, and what fails is a record that says so."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import collective_check, collectives
from bench.cases.collectives import CollectiveCell, Options, cells
from bench.collective_bandwidth import (
    DTYPES,
    OPS,
    sizes,
)
from bench.collective_check import wrong_elements
from bench.collective_ops import CALLS, Buffers
from bench.collectives import bucket_bytes, measure_collectives
from bench.record import read
from bench.summary import summarise
from ddp.context import DistContext
from tests.bench_records import ENVIRONMENT
from tests.ranks import run_ranks

# Real ranks


def _check_all(ctx: DistContext, size_bytes: int) -> list[list[Any]]:
    found = []
    for op in OPS:
        for seed, dtype in enumerate(DTYPES):
            (size,) = sizes(op, dtype, ctx.world_size, size_bytes, size_bytes)
            found.append([op, dtype, *wrong_elements(op, dtype, size, ctx, seed)])
    return found


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_gloo_delivers_every_operation_and_type_without_a_wrong_element(world_size: int) -> None:
    found = run_ranks(partial(_check_all, size_bytes=40_000), world_size)[0]
    assert [(op, dtype, wrong) for op, dtype, wrong, _ in found] == [(op, dtype, 0) for op in OPS for dtype in DTYPES]
    for op, dtype, _, checked in found:
        share = sizes(op, dtype, world_size, 40_000, 40_000)[0] // (2 if dtype.endswith("16") else 4)
        receivers = {"reduce_scatter": 1, "send": world_size // 2}
        assert checked == share * receivers.get(op, world_size)


def test_a_check_goes_through_large_buffers_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective_check, "CHUNK", 1000)
    found = run_ranks(partial(_check_all, size_bytes=24_000), 2)[0]
    assert {wrong for _, _, wrong, _ in found} == {0}


def _corrupt(call: Callable[[Buffers, DistContext], None], buffers: Buffers, ctx: DistContext) -> None:
    """The operation, and then one bit of one byte flipped on the last rank."""
    call(buffers, ctx)
    if ctx.rank == ctx.world_size - 1:
        buffers.receive.view(torch.uint8)[len(buffers.receive) // 2] ^= 1


def _shuffle(call: Callable[[Buffers, DistContext], None], buffers: Buffers, ctx: DistContext) -> None:
    """The operation, and then the received parts in another order: every number is right, but in the wrong place."""
    call(buffers, ctx)
    buffers.receive.copy_(buffers.receive.roll(len(buffers.receive) // ctx.world_size))


def _nothing(call: Callable[[Buffers, DistContext], None], buffers: Buffers, ctx: DistContext) -> None:
    """No operation at all."""


def _check_broken(ctx: DistContext, op: str, dtype: str, broken: Callable[..., None]) -> tuple[int, int]:
    CALLS[op] = partial(broken, CALLS[op])  # in a process of its own
    (size,) = sizes(op, dtype, ctx.world_size, 16_384, 16_384)
    return wrong_elements(op, dtype, size, ctx, seed=3)


@pytest.mark.parametrize(
    ("op", "dtype"), [("all_reduce", "bfloat16"), ("all_gather", "float32"), ("send_recv", "int32")]
)
def test_one_corrupted_byte_is_found(op: str, dtype: str) -> None:
    work = partial(_check_broken, op=op, dtype=dtype, broken=_corrupt)
    assert [wrong for wrong, _ in run_ranks(work, 2)] == [1, 1]


@pytest.mark.parametrize("broken", [_shuffle, _nothing])
def test_data_in_the_wrong_place_and_no_data_are_found(broken: Callable[..., None]) -> None:
    wrong, checked = run_ranks(partial(_check_broken, op="all_to_all", dtype="bfloat16", broken=broken), 2)[0]
    assert wrong > 0.95 * checked


QUICK: dict[str, Any] = {"block_s": 0.002, "rounds": 2, "timeout_s": 20.0}


def _measure(ctx: DistContext, options: Options) -> None:
    measure_collectives(options, cells(options), ctx, {**ENVIRONMENT, "nodes": 1, "backend": ctx.backend})


def test_every_cell_becomes_a_record_with_the_times_of_all_ranks(tmp_path: Path) -> None:
    ops = ("all_gather", "send_recv")
    options = Options(ops=ops, ranks=3, min_bytes="12", max_bytes="24", model="mlp", out=tmp_path, **QUICK)
    run_ranks(partial(_measure, options=options), 3)
    records, complaints = read(tmp_path)
    assert complaints == []
    assert {record.status for record in records} == {"ok"}
    assert sorted(CollectiveCell(**record.cell).key for record in records) == sorted(
        cell.key for cell in cells(options)
    )
    for record in records:
        assert len(record.raw["blocks"]) == 2
        for block in record.raw["blocks"]:
            assert {len(calls) for calls in block["call_s"]} == {record.raw["calls_per_block"]}
            for wall_s, calls_s in zip(block["wall_s"], block["call_s"], strict=True):
                assert 0 < sum(calls_s) <= wall_s + 1e-6
        assert record.raw["wrong_elements"] == 0
        assert sum(record.raw["ddp_bucket_bytes"]) == 4 * 203_530
        assert record.raw["ddp_model"] == "mlp"


def _measure_broken(ctx: DistContext, options: Options) -> None:
    CALLS["broadcast"] = partial(_corrupt, CALLS["broadcast"])
    _measure(ctx, options)


def test_wrong_data_is_a_failed_record_with_the_count(tmp_path: Path) -> None:
    options = Options(ops=("broadcast", "all_reduce"), min_bytes="64", max_bytes="64", out=tmp_path, **QUICK)
    run_ranks(partial(_measure_broken, options=options), 2)
    found = {record.cell["op"]: (record.status, record.error) for record in read(tmp_path)[0]}
    assert found == {"all_reduce": ("ok", None), "broadcast": ("failed", "1 of 32 elements arrived wrong")}
    (fact,) = [fact for fact in summarise(read(tmp_path)[0]).facts if fact.label == "Collectives"]
    assert fact.warning
    assert "data arrived wrong in 1 cell" in fact.details


def test_what_the_library_does_not_offer_is_recorded_with_its_reason(tmp_path: Path) -> None:
    wanted = [CollectiveCell(op="all_reduce", dtype=dtype, ranks=2, size_bytes=64) for dtype in ("int16", "int32")]

    def work(ctx: DistContext) -> None:
        collectives.ITEM_BYTES["int16"] = 2  # in a process of its own; gloo of this torch has no sum of int16
        measure_collectives(Options(out=tmp_path, **QUICK), wanted, ctx, {})

    run_ranks(work, 2)
    found = {record.cell["dtype"]: record for record in read(tmp_path)[0]}
    assert found["int32"].status == "ok"
    assert found["int16"].status == "failed"
    assert found["int16"].raw == {}
    assert (found["int16"].error or "").startswith(f"unsupported by gloo of torch {torch.__version__}: RuntimeError: ")


NET = """
from torch import nn

def net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 200), nn.Linear(200, 3000), nn.Linear(3000, classes))
"""


def test_buckets_are_those_of_the_reducer_once_it_has_arranged_them(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NET)
    work = partial(_buckets, model=f"{tmp_path / 'mine.py'}:net")
    # The last two layers, since gradients come from the end and the first bucket closes beyond 1 MiB; then the first.
    assert run_ranks(work, 2) == [[4 * (10 * 3001 + 3000 * 201), 4 * 200 * 3073]] * 2


def _buckets(ctx: DistContext, model: str) -> list[int]:
    return bucket_bytes(model, ctx)
