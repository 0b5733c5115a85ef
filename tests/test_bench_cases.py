"""Benchmarks, run for real: what is measured, that nothing is lost when a cell fails, and what the command shows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.cases import loader, scaling
from bench.cell import Cell, key_of
from bench.record import Record, append, read
from ddp import discover
from tests.image_folders import image_folder

ROOT = Path(__file__).resolve().parent.parent
FAST = ["--rounds", "2", "--block-s", "0.05", "--warmup-steps", "3"]


def bench(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch", "bench", *argv],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def test_cells_are_the_base_and_each_number_of_ranks_weak_and_strong() -> None:
    cells = scaling.cells(scaling.Options(ranks=(1, 2, 4), batch_size=8, sync_bn=True))
    assert [(cell.strategy, cell.ranks, cell.batch_per_rank) for cell in cells] == [
        ("single", 1, 8), ("ddp", 1, 8), ("ddp", 2, 8), ("ddp", 2, 4), ("ddp", 4, 8), ("ddp", 4, 2),
    ]  # fmt: skip
    assert [cell.sync_bn for cell in cells] == [False, True, True, True, True, True]
    weak = scaling.cells(scaling.Options(ranks=(3,), batch_size=8, scaling="weak"))
    assert [(cell.ranks, cell.batch_per_rank) for cell in weak] == [(1, 8), (3, 8)]


def test_keys_tell_cells_apart_and_survive_a_record() -> None:
    cells = scaling.cells(scaling.Options(ranks=(1, 2, 4), batch_size=8))
    assert len({cell.key for cell in cells}) == len(cells)
    assert key_of(json.loads(json.dumps(cells[0].__dict__))) == cells[0].key


def test_every_case_offers_what_the_command_needs() -> None:
    for name in discover.names("bench.cases"):
        case = discover.find("bench.cases", name, kind="benchmark")
        assert all(hasattr(case, part) for part in ("Options", "world_size", "cells", "measure")), name


def test_scaling_measures_every_cell_in_every_round(tmp_path: Path) -> None:
    done = bench("scaling", "--model", "mlp", "--ranks", "1,2,3", "--batch-size", "12", *FAST, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    records, complaints = read(tmp_path)
    assert complaints == []
    assert [record.status for record in records] == ["ok"] * 6
    for record in records:
        cell = Cell(**record.cell)
        blocks = record.raw["blocks"]
        assert [block["round"] for block in blocks] == [0, 1]
        for block in blocks:
            assert len(block["wall_s"]) == len(block["step_s"]) == cell.ranks
            steps = len(block["step_s"][0])
            assert block["samples"] == steps * cell.global_batch
            for wall_s, step_s in zip(block["wall_s"], block["step_s"], strict=True):
                assert 0 < sum(step_s) <= wall_s
        assert record.environment["threads_per_rank"] == 1
        assert record.raw["parameters"] == 203_530
    assert (tmp_path / "report.html").is_file()
    assert "report:" in done.stdout


FAILS_AT_2 = """
import torch.distributed as dist
from torch import nn

class Net(nn.Linear):
    def forward(self, x):
        if self.training and dist.get_rank() == 1:
            raise RuntimeError("broken-on-rank-1")
        return super().forward(x.flatten(1))

def net(shape, classes):
    return Net(shape[0] * shape[1] * shape[2], classes)
"""


def test_a_cell_that_fails_is_recorded_with_its_reason_and_the_others_are_measured(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FAILS_AT_2)
    done = bench(
        "scaling", "--model", f"{tmp_path / 'mine.py'}:net", "--ranks", "2", "--batch-size", "6",
        "--scaling", "weak", *FAST, "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 1
    records = {(record.cell["strategy"], record.cell["ranks"]): record for record in read(tmp_path / "out")[0]}
    assert records[("single", 1)].status == "ok"
    assert records[("ddp", 2)].status == "failed"
    assert records[("ddp", 2)].error == "RuntimeError: broken-on-rank-1"
    assert "broken-on-rank-1" in done.stdout
    assert "broken-on-rank-1" in (tmp_path / "out" / "report.html").read_text()


def test_a_cell_whose_ranks_are_killed_is_recorded_too(tmp_path: Path) -> None:
    killed = FAILS_AT_2.replace('raise RuntimeError("broken-on-rank-1")', "import os; os.kill(os.getpid(), 9)")
    (tmp_path / "mine.py").write_text(killed)
    done = bench(
        "scaling", "--model", f"{tmp_path / 'mine.py'}:net", "--ranks", "2", "--batch-size", "6", "--scaling", "weak",
        *FAST, "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 137
    failed = [record for record in read(tmp_path / "out")[0] if record.status != "ok"]
    assert [record.error for record in failed] == ["the ranks ended with exit code 137 before the cell was measured"]


def test_loop_cost_measures_three_arms_in_turns(tmp_path: Path) -> None:
    done = bench("loop-cost", "--model", "mlp", "--batch-size", "8", *FAST, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (record,) = read(tmp_path)[0]
    arms = [block["arm"] for block in record.raw["blocks"]]
    assert sorted(arms) == ["bare"] * 2 + ["bare again"] * 2 + ["ringmark"] * 2
    assert all(len(block["wall_s"]) == 2 for block in record.raw["blocks"])


def test_loader_measures_every_pipeline(tmp_path: Path) -> None:
    image_folder(tmp_path / "data", count=20, size=32)
    done = bench(
        "loader", "--data-dir", str(tmp_path / "data"), "--batch-size", "8", *FAST, "--out", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    records = read(tmp_path / "out")[0]
    assert [record.cell["pipeline"] for record in records] == list(loader.PIPELINES)
    assert all(block["samples"] >= 8 for record in records for block in record.raw["blocks"])


def test_a_torn_last_line_is_reported_and_the_next_record_starts_on_its_own(tmp_path: Path) -> None:
    append(tmp_path, Record(case="fit", cell={}, status="ok"))
    whole = (tmp_path / "records.jsonl").read_bytes()
    for cut in range(1, len(whole) - 1, 7):
        (tmp_path / "records.jsonl").write_bytes(whole + whole[:cut])
        append(tmp_path, Record(case="fit", cell={"n": cut}, status="ok"))
        records, complaints = read(tmp_path)
        assert [record.cell for record in records] == [{}, {"n": cut}]
        assert len(complaints) == 1
        assert "line 2 was left out" in complaints[0]


def test_numbers_that_json_has_not_become_null(tmp_path: Path) -> None:
    raw: dict[str, Any] = {"loss": float("nan"), "list": [float("inf"), 1.5], "path": Path("a")}
    append(tmp_path, Record(case="fit", cell={}, status="ok", raw=raw))
    assert read(tmp_path)[0][0].raw == {"loss": None, "list": [None, 1.5], "path": "a"}


def test_a_record_of_another_schema_is_left_out_with_a_complaint(tmp_path: Path) -> None:
    append(tmp_path, Record(case="fit", cell={}, status="ok", schema_version=99))
    assert read(tmp_path)[0] == []
    assert "schema version 99" in read(tmp_path)[1][0]


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder with records\.jsonl, got"):
        read(tmp_path)
