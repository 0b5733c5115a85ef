"""Collective operations: formulas by hand, the numbers that are sent, and what the report says."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from bench.cases.collectives import CollectiveCell, Options, cells
from bench.collective_bandwidth import (
    DTYPES,
    OPS,
    algbw_bytes_per_s,
    bus_factor,
    busbw_bytes_per_s,
    by_node_factor,
    calls_in_block,
    largest_value,
    size_in_bytes,
    sizes,
)
from bench.collective_check import values
from bench.plots_collectives import marks
from bench.record import Record
from bench.summary import summarise
from tests.bench_records import ENVIRONMENT, rows

# Formulas


@pytest.mark.parametrize(
    ("op", "factors"),
    [
        ("all_reduce", (1.0, 4 / 3, 1.5)),
        ("all_gather", (1 / 2, 2 / 3, 3 / 4)),
        ("reduce_scatter", (1 / 2, 2 / 3, 3 / 4)),
        ("all_to_all", (1 / 2, 2 / 3, 3 / 4)),
        ("broadcast", (1.0, 1.0, 1.0)),
        ("send_recv", (1.0, 1.0, 1.0)),
        ("send", (1.0, 1.0, 1.0)),
    ],
)
def test_bus_factors_are_those_of_rings(op: str, factors: tuple[float, ...]) -> None:
    assert [bus_factor(op, n) for n in (2, 3, 4)] == pytest.approx(factors)


def test_bandwidths_as_computed_by_hand() -> None:
    assert algbw_bytes_per_s(1_000_000, calls=20, slowest_s=0.5) == 40e6
    assert busbw_bytes_per_s("all_reduce", 4, 40e6) == 60e6
    with pytest.raises(ValueError, match="at least 2 ranks"):
        bus_factor("all_reduce", 1)


PARTS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}
"""How often a rank sends each part of S on, in a ring or combined by node."""


@pytest.mark.parametrize("op", PARTS)
@pytest.mark.parametrize(("nodes", "ranks"), [(2, 2), (2, 8), (3, 9), (4, 32)])
def test_what_leaves_a_node_is_counted_by_hand(op: str, nodes: int, ranks: int) -> None:
    # A ring of n ranks passes n - 1 parts of S / n on at each of its edges, one of which leaves the node.
    ring = PARTS[op] * (ranks - 1) / ranks
    assert busbw_bytes_per_s(op, ranks, 1.0) == pytest.approx(ring)
    # Combined by node it is a ring of k nodes, in which the ranks of a node send S between them.
    by_node = PARTS[op] * (nodes - 1) / nodes
    assert by_node_factor(nodes, ranks) == pytest.approx(by_node / ring)


@pytest.mark.parametrize(
    ("text", "size"), [("8", 8), ("64K", 65536), ("64KiB", 65536), ("2m", 2**21), ("1G", 2**30), ("12 B", 12)]
)
def test_sizes_in_words(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "1.5M", "-8", "8KK", "1T"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size in bytes such as 8"):
        size_in_bytes(text)


def test_sizes_double_and_are_whole_elements_of_every_rank() -> None:
    assert sizes("all_reduce", "float32", 3, 8, 64) == [8, 16, 32, 64]
    assert sizes("all_gather", "float32", 3, 8, 100) == [12, 24, 60]
    assert sizes("all_to_all", "bfloat16", 4, 2, 16) == [8, 16]


def test_calls_fill_a_block_within_bounds() -> None:
    assert calls_in_block(0.002, 0.2) == 100
    assert calls_in_block(0.05, 0.2) == 20  # at least 20
    assert calls_in_block(1e-6, 0.2) == 500  # at most 500
    assert calls_in_block(0.5, 0.2) == 10  # 25 times 0.2 s is enough
    assert calls_in_block(60.0, 0.2) == 3


def test_cells_are_checked_and_told_apart() -> None:
    found = cells(Options(ops=("all_reduce", "broadcast"), dtypes=("int32",), min_bytes="8", max_bytes="32", ranks=3))
    assert [(cell.op, cell.size_bytes) for cell in found] == [(op, n) for op in OPS[::3][:2] for n in (8, 16, 32)]
    assert len({cell.key for cell in found}) == 6
    with pytest.raises(ValueError, match=r"expected --ops among all_reduce, .* got all_sum; choose of them"):
        Options(ops=("all_sum",))
    with pytest.raises(ValueError, match="expected --ranks of at least 2, got 1"):
        Options(ranks=1)
    with pytest.raises(ValueError, match="exact sums, got 200 with"):
        Options(ranks=200, dtypes=("bfloat16",))
    with pytest.raises(ValueError, match="such as 8 and 64M"):
        Options(max_bytes="2G")


# The numbers that are sent


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_sum_is_exact_in_the_data_type(dtype: str) -> None:
    for op, world_size in (("all_reduce", 2), ("reduce_scatter", 64), ("all_gather", 64)):
        largest = largest_value(op, dtype, world_size)
        top = largest * (world_size if op != "all_gather" else 1)
        numbers = torch.tensor([1, largest, top - 1, top], dtype=torch.int64)
        assert numbers.to(getattr(torch, dtype)).to(torch.int64).tolist() == numbers.tolist()


def test_values_are_in_range_and_differ_by_place_rank_and_seed() -> None:
    places = torch.arange(4096)
    first = values(places, 0, 1, 100)
    assert (int(first.min()), int(first.max())) == (1, 100)
    for other in (values(places, 1, 1, 100), values(places, 0, 2, 100), values(places + 1024, 0, 1, 100)):
        assert float((first == other).float().mean()) < 0.03


# The report


def _record(op: str, size_bytes: int, call_s: float, **changes: Any) -> Record:
    """Two rounds of 20 calls on two ranks, of which the first takes half as long."""
    block = {"wall_s": [10 * call_s, 20 * call_s], "call_s": [[call_s / 2] * 20, [call_s] * 20]}
    raw = {"calls_per_block": 20, "wrong_elements": 0, "checked_elements": size_bytes // 2}
    raw |= {"blocks": [block | {"round": number} for number in range(2)]}
    cell = asdict(CollectiveCell(op=op, dtype="float32", ranks=2, size_bytes=size_bytes))
    environment = {**ENVIRONMENT, "backend": "gloo", "nodes": 2}
    return replace(Record(case="collectives", cell=cell, status="ok", raw=raw, environment=environment), **changes)


def test_the_report_says_what_the_slowest_rank_saw() -> None:
    records = [_record("all_reduce", 4096, 1e-3), _record("all_gather", 1_000_000, 0.01)]
    records.append(_record("all_to_all", 8, 1.0, status="failed", error="unsupported by gloo", raw={}))
    summary = summarise(records)
    first, second, third = rows(summary, "Collective operations")
    assert (first["operation"], first["algbw GB/s"], first["call p50 us"]) == ("all_reduce", "0.0041", "1,000")
    assert (second["algbw GB/s"], second["busbw GB/s"], second["calls n"]) == ("0.1", "0.05", "40")
    assert (second["wrong elements"], second["status"]) == ("0", "ok")
    assert (third["busbw GB/s"], third["status"]) == ("n/a", "failed: unsupported by gloo")
    (fact,) = [fact for fact in summary.facts if fact.label == "Collectives"]
    assert fact.value == "all_reduce 0.0041 GB/s busbw"
    assert any("only where the operation runs as a ring" in detail for detail in fact.details)
    (table,) = [table for table in summary.tables if table.title == "Collective operations"]
    assert "all of it in a flat ring" in table.note
    assert table.note.endswith("combine first: 1.00 with 2 ranks on 2 nodes.")


def test_one_node_and_operations_without_a_ring_say_nothing_of_links_between_nodes() -> None:
    alone = replace(_record("all_reduce", 64, 1.0), environment={**ENVIRONMENT, "nodes": 1})
    for record in (alone, _record("broadcast", 64, 1.0)):
        (table,) = [each for each in summarise([record]).tables if each.title == "Collective operations"]
        assert "flat ring" not in table.note


def test_the_picture_marks_what_ddp_sends() -> None:
    large = [_record("all_reduce", size, 1e-3) for size in (2**10, 2**20, 2**25)]
    (plot,) = summarise(large).plots
    assert plot.series[0].points[1] == (1024.0, pytest.approx(2**20 / 1e-3 / 1e9))
    assert [(each.label, each.points[0][0]) for each in plot.series[1:]] == [
        ("DDP's first bucket, at most 1 MiB", 1024.0), ("DDP's other buckets, at most 25 MiB", 25600.0),
    ]  # fmt: skip
    buckets = {"ddp_model": "net", "ddp_bucket_bytes": [2**20, 2**22]}
    (plot,) = summarise([replace(each, raw=each.raw | buckets) for each in large]).plots
    assert [each.label for each in plot.series[1:]] == [
        "net: bucket of 1.00 MiB",
        "net: bucket of 4.00 MiB",
    ]
    assert marks(range(1, 101)) == [1, 34, 67, 100]


def test_gloos_reduce_scatter_is_named_for_what_it_is() -> None:
    confidence = [str(fact) for fact in summarise([_record("reduce_scatter", 64, 1.0)]).facts]
    assert any("its links carry twice what its busbw says" in text for text in confidence)


@pytest.mark.parametrize(("ranks", "said"), [(2, False), (3, True)])
def test_the_copies_of_gloos_broadcast_are_named_where_there_are_several(ranks: int, said: bool) -> None:
    record = _record("broadcast", 64, 1.0)
    cell = {**record.cell, "ranks": ranks}
    assert ("along a tree" in str(summarise([replace(record, cell=cell)]).facts)) == said


@pytest.mark.parametrize(
    ("op", "ranks", "said"),
    [("all_to_all", 2, True), ("all_to_all", 3, True), ("all_gather", 2, True), ("all_gather", 3, False),
     ("send_recv", 2, False)],
)  # fmt: skip
def test_what_gloo_sends_one_way_at_a_time_is_named(op: str, ranks: int, said: bool) -> None:
    record = _record(op, 64, 1.0)
    caveats = summarise([replace(record, cell={**record.cell, "ranks": ranks})]).facts
    assert any("one way at a time" in str(fact) for fact in caveats) == said
