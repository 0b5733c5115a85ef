"""When steps have settled, and what else the machine did meanwhile."""

import random
import time
from typing import Any

import pytest
import torch

from bench.guards import Watch, between, contention, others_share, share_of
from bench.steady import settled, trend


def noisy(count: int, seed: int = 0) -> list[float]:
    return [1 + random.Random(f"{seed}.{place}").uniform(-0.01, 0.01) for place in range(count)]


def test_even_steps_have_settled_as_soon_as_two_windows_are_full() -> None:
    assert not settled([1.0] * 24)
    assert settled([1.0] * 25)
    assert sum(settled(noisy(25, seed)) for seed in range(100)) >= 85


def test_steps_that_still_get_shorter_have_not_settled() -> None:
    falling = [1 - 0.0008 * place for place in range(40)]  # medians of windows differ by 0.8 %, but always down
    assert abs(trend(falling)) > 4
    assert not settled(falling)


def test_windows_apart_by_more_than_2_percent_have_not_settled() -> None:
    assert not settled([1.0] * 30 + [1.03] * 10)
    assert settled([9.0] * 5 + [1.0] * 30 + [1.03] * 20)  # what lies before the two windows does not matter


def test_a_trend_is_counted_in_standard_deviations() -> None:
    assert trend([1.0] * 20) == 0
    assert trend([float(value) for value in range(20)]) == pytest.approx(189 / (20 * 19 * 45 / 18) ** 0.5)
    assert trend([float(-value) for value in range(20)]) == -trend([float(value) for value in range(20)])


def guard(**changes: Any) -> dict[str, Any]:
    cpu = {"busy": 4.0, "steal": 0.0, "total": 8.0}
    return {"node": 0, "cpu_s": cpu, "own_cpu_s": 2.0, "gpu_throttle": None, "gpu_other_processes": None} | changes


def test_a_block_is_contended_if_others_use_the_machine() -> None:
    assert contention([guard(), guard()]) == []
    assert others_share([guard(), guard()]) == 0.0
    assert contention([guard()]) == ["other processes used 25 % of the CPU"]  # 2 of 4 busy seconds were its own
    assert contention([guard(), guard(node=1, own_cpu_s=4.0)]) == ["other processes used 25 % of the CPU"]
    stolen = guard(cpu_s={"busy": 2.0, "steal": 0.4, "total": 8.0})
    assert share_of(stolen, "steal") == pytest.approx(0.05)
    assert contention([stolen]) == ["5 % of the CPU was stolen"]


def test_a_gpu_that_is_throttled_or_shared_is_told_and_an_unknown_one_is_not() -> None:
    alone = guard(own_cpu_s=4.0)
    assert contention([alone | {"gpu_throttle": 0x1 | 0x2}]) == []  # idle, or clocks that a person chose
    assert contention([alone | {"gpu_throttle": 0x8}]) == ["a GPU lowered its clock"]
    assert contention([alone | {"gpu_other_processes": 1}]) == ["other processes used a GPU"]
    assert contention([alone | {"cpu_s": None}]) == []


def test_the_watch_sees_this_process_work() -> None:
    watch = Watch(torch.device("cpu"))
    before = watch.read()
    deadline = time.process_time() + 0.1
    while time.process_time() < deadline:
        pass
    found = between(before, watch.read())
    assert found["own_cpu_s"] >= 0.1
    assert found["cpu_s"]["busy"] >= 0.05
    assert found["cpu_s"]["total"] >= found["cpu_s"]["busy"] + found["cpu_s"]["steal"] - 1e-6
    assert found["load_1m"] >= 0
    assert found["energy_j"] is None
    assert found["gpu_throttle"] is None
