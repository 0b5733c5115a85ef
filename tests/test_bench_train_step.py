"""Steps taken apart for real: what ranks record, and that the report finds a sleep that was put into them."""

import gc
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from bench import plots_step, step_blocks
from bench.cases.train_step import Options, StepCell, cells
from bench.phases import LOCAL, NO_SYNC, TRAIN, WAIT, Breakdown, read_blocks
from bench.record import Record, read
from bench.step_blocks import Subject, measure_steps
from bench.step_cells import measured
from bench.summaries.train_step import summarise
from bench.train_blocks import Subject as WholeSubject
from ddp.context import DistContext
from ddp.loop import train_step
from ddp.mistake import Mistake
from ddp.syncbn import CpuSyncBatchNorm
from tests import injected
from tests.bench_records import train_step_record
from tests.injected import Injection, found, is_right
from tests.ranks import run_ranks

BN_MODEL = """
from torch import nn

def net(shape, classes):
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
    return nn.Sequential(nn.Conv2d(shape[0], 4, 3, stride=8), nn.BatchNorm2d(4), head)
"""


def options(folder: Path, **changes: Any) -> Options:
    """Writes the model's file: to be called before the ranks begin, or one reads what another is writing."""
    (folder / "mine.py").write_text(BN_MODEL)
    given = {"model": f"{folder / 'mine.py'}:net", "batch_size": (4,), "rounds": 2, "block_s": 0.02} | changes
    return Options(warmup_cap_steps=5, out=folder / "out", **given)


@pytest.mark.parametrize(
    ("phase", "rank", "model", "ranks"),
    [
        ("data", None, "linear", 2),
        ("backward", 1, "linear", 2),
        ("communication", 2, "convolution", 3),
        ("optimizer", 0, "linear", 2),
    ],
)
def test_the_report_names_phase_rank_and_amount_of_a_sleep(
    phase: str, rank: int | None, model: str, ranks: int, tmp_path: Path
) -> None:
    wanted = Injection(phase, rank, model, ranks)
    seen = []

    def is_found(attempt: int) -> bool:
        facts, slept_ms = injected.measured(wanted, tmp_path / str(attempt), rounds=2)
        seen.append((facts, slept_ms))
        return is_right(wanted, found(wanted, facts), slept_ms)

    # Other work on the machine may be mistaken for the sleep, but not for so long.
    deadline = time.monotonic() + 90
    while not is_found(len(seen)):
        assert time.monotonic() < deadline, seen


def test_every_kind_of_block_of_every_cell_is_recorded_and_adds_up(tmp_path: Path) -> None:
    wanted = options(tmp_path, sync_bn=True, data="synthetic", ranks=(2,))

    def work(ctx: DistContext) -> None:
        gc.freeze()
        measure_steps(wanted, cells(wanted), ctx, {"device": "cpu"})

    run_ranks(work, 2)
    records, complaints = read(tmp_path / "out")
    assert complaints == []
    assert [(record.cell["strategy"], record.cell["ranks"]) for record in records] == [("single", 1), ("ddp", 2)]
    for record, arms in zip(records, ([TRAIN], [TRAIN, NO_SYNC, LOCAL]), strict=True):
        blocks = read_blocks(record.raw, record.cell["ranks"])
        assert sorted((block.round, block.arm) for block in blocks) == sorted((n, arm) for n in (0, 1) for arm in arms)
        for block in blocks:
            assert block.samples == len(block.step_s[0]) * 4 * record.cell["ranks"]
            for wall_s, steps_s in zip(block.wall_s, block.step_s, strict=True):
                assert 0 < sum(steps_s) <= wall_s
            assert (WAIT in block.phase_s) == (block.arm == TRAIN and block.ranks == 2)
            assert sum(block.of("data", 0)) > 0
        assert record.raw["launch"] == records[0].raw["launch"]
        warmup = record.raw["warmup"]
        assert (warmup["steps"], warmup["capped"], len(warmup["step_s"])) == (5, True, 5)
        assert record.raw["training_flop_per_sample"] > 0
        assert record.raw["matmul_flop_per_s"] is None
    section = summarise(records)
    assert any("SyncBN" in row for table in section.tables for row in table.rows)
    assert {fact.label for fact in section.facts} == {"Step", "Straggler", "Where it went", "MFU"}


def test_marks_change_no_bit_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the hook averages otherwise than DDP does: to divide by 3 is not to multiply by 1 / 3."""

    monkeypatch.setattr(step_blocks, "LEARNING_RATE", 1e-3)  # as the bare one has
    cell = replace(cells(options(tmp_path, sync_bn=True))[1], ranks=3)

    def work(ctx: DistContext) -> bool:
        gc.freeze()
        marked, bare = Subject(cell, ctx), WholeSubject(cell, ctx, alone=False)
        batch = next(marked.batches)
        for subject in (marked, bare):
            for _ in range(3):
                train_step(subject.trainer, batch)
        pairs = zip(marked.trainer.module.parameters(), bare.trainer.module.parameters(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    assert run_ranks(work, 3) == [True] * 3


def test_blocks_leave_model_and_weights_as_they_were(tmp_path: Path) -> None:
    cell = cells(options(tmp_path, sync_bn=True))[1]

    def work(ctx: DistContext) -> tuple[bool, bool]:
        gc.freeze()
        subject = Subject(cell, ctx)
        before = [parameter.detach().clone() for parameter in subject.trainer.module.parameters()]
        for arm in (TRAIN, NO_SYNC, LOCAL):
            subject.run(arm, 3)
        still = all(
            torch.allclose(a, b, atol=1e-6) for a, b in zip(before, subject.trainer.module.parameters(), strict=True)
        )
        return still, any(isinstance(each, CpuSyncBatchNorm) for each in subject.trainer.module.modules())

    assert run_ranks(work, 2) == [(True, True)] * 2


def test_updates_that_fp16_skips_are_counted_and_told(tmp_path: Path) -> None:
    wanted = options(tmp_path, amp="fp16")

    def work(ctx: DistContext) -> list[Any]:
        gc.freeze()
        found: list[Any] = []
        for kind in (Subject, WholeSubject):
            cell = cells(wanted)[1]
            subject: Any = kind(cell, ctx) if kind is Subject else kind(cell, ctx, alone=True)  # type: ignore[arg-type]
            subject.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**80)
            if kind is Subject:
                subject.blocks = [{"round": 0, "arm": TRAIN, "samples": 24, **subject.run(TRAIN, 3)} for _ in range(2)]
            else:
                subject.warmup, subject.steps = {"steps": 0}, 3
                subject.measure()
                subject.measure()
            found.append(subject.raw())
        return found

    for raw in run_ranks(work, 2)[0]:
        assert [block["skipped_steps"] for block in raw["blocks"]] == [3, 3]
    records = [train_step_record(cell, 0.01) for cell in cells(wanted)]
    assert not any("fp16" in caveat for caveat in summarise(records).caveats)
    records[1].raw["blocks"][0]["skipped_steps"] = 2
    assert any("fp16 skipped 2 updates of the weights" in caveat for caveat in summarise(records).caveats)


def test_cells_are_a_base_and_numbers_of_ranks_for_each_batch(tmp_path: Path) -> None:
    wanted = cells(options(tmp_path, ranks=(2, 4), batch_size=(4, 8), sync_bn=True))
    assert [(cell.strategy, cell.ranks, cell.batch_per_rank, cell.sync_bn) for cell in wanted] == [
        ("single", 1, 4, False), ("ddp", 2, 4, True), ("ddp", 4, 4, True),
        ("single", 1, 8, False), ("ddp", 2, 8, True), ("ddp", 4, 8, True),
    ]  # fmt: skip
    assert len({cell.key for cell in wanted}) == 6


@pytest.mark.parametrize("wrong", [{"ranks": (0,)}, {"batch_size": ()}, {"data": "nowhere"}, {"batch_size": (9999,)}])
def test_options_that_cannot_be_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"expected .*, got "):
        options(tmp_path, **({"data": "synthetic"} | wrong))


def test_a_failed_and_an_unreadable_cell_are_rows_with_their_reason() -> None:
    cell = {"model": "m", "ranks": 2, "batch_per_rank": 4, "strategy": "ddp"}
    records = [
        Record(case="train_step", cell=cell, status="oom", error="rank 1 ran out of memory"),
        Record(case="train_step", cell=cell | {"batch_per_rank": 8}, status="ok", raw={"blocks": [{}]}),
    ]
    rows = summarise(records).tables[0].rows
    assert rows[0][-1] == "oom: rank 1 ran out of memory"
    assert rows[1][-1].startswith("unreadable: ")


def test_a_stack_and_a_heat_map_are_drawn_and_told_in_words() -> None:
    parts = {"data": 0.001, "h2d": 0.0, "forward": 0.002, "backward": 0.003, "optimizer": 0.001}
    stacked = plots_step.stack("m", [(1, Breakdown(step_s=0.007, parts_s=parts, exposed_s=None)),
                                     (2, Breakdown(step_s=0.011, parts_s=parts, exposed_s=0.004))])  # fmt: skip
    figure = Figure()
    axes = figure.add_subplot()
    assert plots_step.paint(figure, axes, stacked, ("#0072B2", "#D55E00"), "#010203")
    tops = [max(bar.get_y() + bar.get_height() for bar in bars) for bars in zip(*axes.containers, strict=True)]
    assert tops == pytest.approx([7.0, 11.0])
    assert "2: data wait 1.00, forward 2.00, backward 3.00, exposed communication 4.00" in str(
        plots_step.words(stacked)
    )
    block = read_blocks(
        {"blocks": [{"round": 0, "arm": TRAIN, "samples": 4, "wall_s": [1.0, 1.0],
                     "phase_s": {"forward": [[0.1, 0.2], [0.3, 0.4]], WAIT: [[0.2, 0.2], [0.0, 0.0]]}}]}, 2,
    )  # fmt: skip
    heat = plots_step.heat("m", block)
    assert plots_step.paint(figure, figure.add_subplot(), heat, (), "#010203")
    assert "rank 0: 100 to 200. rank 1: 300 to 400." in str(plots_step.words(heat))
    plain = plots_step.step_times("m", [("a", block)])
    assert not plots_step.paint(figure, figure.add_subplot(), plain, (), "#010203")
    assert plots_step.words(plain) is None


def test_memory_is_drawn_against_batches_if_there_are_several() -> None:
    assert plots_step.memory("m", [(1, 4, 2.0**20)]) is None
    plot = plots_step.memory("m", [(2, 8, 4.0 * 2**20), (1, 4, 2.0**20), (2, 4, 3.0 * 2**20)])
    assert plot is not None
    assert [(each.label, each.points) for each in plot.series] == [
        ("one process", ((4.0, 1.0),)), ("2 ranks", ((4.0, 3.0), (8.0, 4.0))),
    ]  # fmt: skip


def test_cells_that_differ_have_names_that_do_and_bases_of_their_own_data() -> None:
    cells = [
        StepCell(model="m", ranks=ranks, batch_per_rank=4, strategy=kind, sync_bn=sync_bn, data=data, data_dir=folder)
        for data, folder in (("resident", None), ("folder", "/a"), ("folder", "/b"))
        for ranks, kind, sync_bn in ((1, "single", False), (2, "ddp", False), (2, "ddp", True))
    ]
    found = [measured(train_step_record(cell, 0.01)) for cell in cells]
    assert len({(each.label, each.name) for each in found}) == len(found) == 9
    assert [each.name for each in found[:3]] == ["one process, batch 4", "2 ranks, batch 4", "2 ranks, batch 4, SyncBN"]
    section = summarise([each.record for each in found])
    titles = [table.title for table in section.tables]
    assert len(set(titles)) == len(titles)
    assert len({plot.title for plot in section.plots}) == len(section.plots)
    stacks = [plot for plot in section.plots if plot.title.startswith("Parts of a step")]
    assert [[x for x, _ in plot.series[0].points] for plot in stacks] == [[1.0, 2.0]] * 3


def test_a_base_of_another_launch_is_a_caveat() -> None:
    base = train_step_record(StepCell(model="m", ranks=1, batch_per_rank=4, strategy="single"), 0.01)
    two = train_step_record(StepCell(model="m", ranks=2, batch_per_rank=4), 0.01)
    words = "m, 2 ranks, batch 4: its base was measured in another launch"
    assert words not in str(summarise([base, two]).caveats)
    assert words in str(summarise([base, replace(two, raw=two.raw | {"launch": "another"})]).caveats)
    old = [replace(each, raw={**each.raw, "launch": None}) for each in (base, two)]
    assert words not in str(summarise(old).caveats)
