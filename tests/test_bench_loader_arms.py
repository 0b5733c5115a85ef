"""Input pipelines side by side: equal arms, and blocks that neither gain nor take from one another."""

import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import loader_arms
from bench.cases.loader import Options, cells
from bench.loader_arms import _Arm, _imagefolder, _rest, block, measure_pipelines
from bench.record import Record, read
from bench.summary import summarise
from ddp.context import pick_device, process_group
from ddp.env import ALONE
from tests.bench_records import small_records
from tests.image_folders import image_folder


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "data", count=4, size=8)


def test_batches_made_ahead_of_a_block_are_not_timed() -> None:
    taken: list[int] = []

    def stream() -> Iterator[torch.Tensor]:
        for number in range(10**9):
            taken.append(number)
            yield torch.zeros(number)

    images, _ = block(_Arm(stream(), ahead=6), 0.01)
    assert images == sum(taken[6:])
    taken.clear()
    images, _ = block(_Arm(stream()), 0.01)
    assert images == sum(taken)


def test_as_many_are_thrown_away_as_loader_processes_make_ahead_and_work_on(data_dir: Path) -> None:
    options = Options(data_dir=data_dir, batch_size=4, image_size=8)
    assert _imagefolder(options, workers=0).ahead == 0
    assert _imagefolder(options, workers=2).ahead == 2 * 2 + 2


def burn(told: Connection) -> None:
    """Use the CPU for a while, and be idle."""
    told.send("begun")
    ended = time.process_time() + 0.4
    while time.process_time() < ended:
        pass
    told.send("idle")
    time.sleep(60)


def test_a_block_begins_when_loader_processes_rest() -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=burn, args=(there,))
    child.start()
    try:
        assert here.recv() == "begun"
        _rest()
        assert here.poll()
    finally:
        child.kill()
        child.join()


def test_all_pipelines_make_their_batches_on_the_cpu(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(data_dir=data_dir, batch_size=4, image_size=8, rounds=1, out=tmp_path / "out")
    devices: list[str] = []

    def looked_at(arm: _Arm, seconds: float) -> tuple[int, float]:
        devices.append(next(arm.stream).device.type)
        return 4, seconds

    monkeypatch.setattr(loader_arms, "block", looked_at)
    threads = torch.get_num_threads()
    try:
        with process_group(ALONE, device=pick_device("cpu", ALONE), timeout_s=60.0) as ctx:
            elsewhere = replace(ctx, device=torch.device("meta"))  # as a GPU would be another device
            measure_pipelines(options, cells(options)[:2], elsewhere, {"device": "NVIDIA H100"})
    finally:
        torch.set_num_threads(threads)
    assert devices == ["cpu"] * 4
    assert [each.environment["device"] for each in read(tmp_path / "out")[0]] == ["cpu", "cpu"]


def test_a_gpu_is_refused_by_name(data_dir: Path) -> None:
    with pytest.raises(ValueError, match="expected --device auto or cpu, where all pipelines make their batches"):
        Options(data_dir=data_dir, batch_size=4, image_size=8, device="cuda")


@pytest.mark.parametrize(("device", "said"), [("cpu", True), ("NVIDIA H100", False)])
def test_the_report_says_where_batches_were_made(device: str, said: bool) -> None:
    def on(record: Record) -> Record:
        environment: dict[str, Any] = {**record.environment, "device": device}
        return replace(record, environment=environment)

    summary = summarise([on(each) for each in small_records() if each.case == "loader"])
    assert ("All of them make their batches on the CPU." in summary.tables[0].note) == said
