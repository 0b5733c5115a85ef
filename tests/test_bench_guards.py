"""Guards of blocks: windows too short for a share, and child processes, which are no others."""

import multiprocessing
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from bench import guards
from bench.guards import Watch, between, children_cpu_s, contention, is_known, others_share, share_of
from bench.summary import summarise
from tests.bench_records import all_cases


def guard(**changes: Any) -> dict[str, Any]:
    """A block of a second on two cores: half of the time busy, a tenth stolen, of which the rank used nothing."""
    cpu = {"busy": 1.0, "steal": 0.2, "total": 2.0}
    return {"node": 0, "window_s": 1.0, "cpu_s": cpu, "own_cpu_s": 0.0} | changes


def test_shares_of_a_block_that_is_long_enough() -> None:
    assert share_of(guard(), "steal") == pytest.approx(0.1)
    assert others_share([guard()]) == pytest.approx(0.5)
    assert contention([guard()]) == ["10 % of the CPU was stolen", "other processes used 50 % of the CPU"]
    assert is_known([guard()])


@pytest.mark.parametrize(
    "short",
    [
        guard(window_s=0.004, cpu_s={"busy": 0.01, "steal": 0.01, "total": 0.02}),
        guard(window_s=0.19, cpu_s={"busy": 2.0, "steal": 2.0, "total": 12.0}),  # 64 cores
        {"node": 0, "cpu_s": {"busy": 0.01, "steal": 0.01, "total": 0.02}, "own_cpu_s": 0.0},  # of an older day
        guard(cpu_s=None),
    ],
)
def test_one_tick_of_a_short_block_is_no_share(short: dict[str, Any]) -> None:
    assert share_of(short, "steal") is None
    assert others_share([short]) is None
    assert contention([short]) == []
    assert not is_known([short])
    assert contention([short | {"gpu_throttle": 0x8}]) == ["a GPU lowered its clock"]


def test_the_share_of_others_is_unknown_where_the_own_is() -> None:
    assert others_share([guard(), guard(own_cpu_s=None)]) is None
    assert contention([guard(own_cpu_s=None)]) == ["10 % of the CPU was stolen"]


def burn(seconds: float, done: Connection) -> None:
    """Use the CPU for that long, tell, and wait for an answer."""
    while time.process_time() < seconds:
        pass
    done.send(None)
    done.recv()


def test_time_of_a_child_that_lives_and_of_one_that_has_ended_is_the_ranks_own() -> None:
    watch, context = Watch(torch.device("cpu")), multiprocessing.get_context("fork")
    before, (here, there) = watch.read(), context.Pipe()
    child = context.Process(target=burn, args=(0.3, there))
    child.start()
    here.recv()
    living = between(before, watch.read())
    here.send(None)
    child.join()
    ended = between(before, watch.read())
    assert living["own_cpu_s"] >= 0.28
    assert ended["own_cpu_s"] >= living["own_cpu_s"] - 0.02
    assert living["window_s"] >= 0.28


def test_where_children_are_not_listed_the_own_time_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    assert children_cpu_s() is not None
    monkeypatch.setattr(guards, "CHILDREN", tmp_path / "children")
    watch = Watch(torch.device("cpu"))
    assert between(watch.read(), watch.read())["own_cpu_s"] is None


@pytest.mark.parametrize("case", ["scaling", "train_step", "compare"])
def test_blocks_too_short_to_tell_are_not_called_quiet(case: str) -> None:
    (good, *_) = [each for each in all_cases() if each.case == case and each.status == "ok" and each.raw.get("blocks")]

    def column(of: dict[str, Any]) -> str:
        guards = of if case == "compare" else [of]
        blocks = [block | {"guards": guards} for block in good.raw["blocks"]]
        tables = summarise([replace(good, raw={**good.raw, "blocks": blocks})]).tables
        shown = [
            row[table.columns.index("contended blocks")]
            for table in tables if "contended blocks" in table.columns
            for row in table.rows
        ]  # fmt: skip
        return str(shown[0]).split(" of ")[0] if shown else "n/a"

    assert column(guard(cpu_s={"busy": 0.0, "steal": 0.0, "total": 2.0})) == "0"
    assert column(guard(window_s=0.004)) == "n/a"
