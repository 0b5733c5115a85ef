"""Faults that were found in other benchmarks, each as a test with a clock that is told what time it is."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import clock
from bench.clock import timed_block
from bench.collective_bandwidth import algbw_bytes_per_s
from bench.collective_check import values
from bench.peaks import mfu, peak_flop_per_s
from bench.scaling import studies
from bench.stats import Block, efficiency, ratio_interval, throughput_per_s
from bench.step_cells import measured, rate_per_s, utilisation
from bench.summaries import scaling
from tests.bench_records import cell, step_record

WARM_UP_S = [9.0, 9.0, 9.0]
BATCH = 8


class FakeClock:
    """Stands for the module `time`: passes only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    found = FakeClock()
    monkeypatch.setattr(clock, "time", found)
    return found


def blocks(fake: FakeClock, ranks_s: list[list[float]], number: int = 0) -> Block:
    """Steps of these lengths on each rank, as the benchmark's own clock saw them."""
    alone: Any = SimpleNamespace(device=torch.device("cpu"), barrier=lambda: None, synchronize=lambda: None)
    walls, steps = [], []
    for times in ranks_s:
        with timed_block(alone) as (block, mark):
            for step_s in times:
                fake.now_s += step_s
                mark()
        walls.append(block.wall_s)
        steps.append(tuple(block.step_s))
    samples = BATCH * len(ranks_s) * len(ranks_s[0])
    return Block(round=number, samples=samples, wall_s=tuple(walls), step_s=tuple(steps))


def test_throughput_does_not_grow_with_the_number_of_steps(fake: FakeClock) -> None:
    """optimum-benchmark divides the samples of all steps by the time of one: 100 times too fast at its defaults."""
    assert throughput_per_s([blocks(fake, [[0.5]])]) == pytest.approx(16)
    assert throughput_per_s([blocks(fake, [[0.5] * 100])]) == pytest.approx(16)
    assert throughput_per_s([blocks(fake, [[0.5] * 50]) for _ in range(2)]) == pytest.approx(16)


def test_throughput_is_the_sum_over_ranks(fake: FakeClock) -> None:
    """optimum-benchmark gives the mean over ranks, and calls it the throughput."""
    assert throughput_per_s([blocks(fake, [[0.5] * 10] * 4)]) == pytest.approx(4 * 16)


def test_a_rate_is_no_mean_of_rates(fake: FakeClock) -> None:
    """DeepLearningExamples and MLPerf's unet3d: steps of 100 and 200 ms would make 7.5 a second instead of 6.67."""
    block = blocks(fake, [[0.1, 0.2]])
    assert throughput_per_s([block]) / BATCH == pytest.approx(2 / 0.3)
    assert sum(1 / each for each in block.step_s[0]) / 2 == pytest.approx(7.5)


def test_bandwidth_is_that_of_the_slowest_rank_over_all_calls() -> None:
    """ml-engineering's all_reduce_bench averages bandwidths over ranks and calls."""
    assert algbw_bytes_per_s(100, calls=2, slowest_s=0.1 + 0.2) == pytest.approx(200 / 0.3)


def test_no_step_of_the_warm_up_is_in_any_number(fake: FakeClock) -> None:
    """DeepLearningExamples' mean latency is above its 95th percentile: warm-up is in the one and not in the other."""
    blocks(fake, [WARM_UP_S])  # which nobody keeps
    kept = blocks(fake, [[0.1] * 100])
    assert max(kept.step_s[0]) == pytest.approx(0.1)
    assert kept.wall_s[0] / 100 == pytest.approx(0.1)


def test_rate_and_step_time_agree(fake: FakeClock) -> None:
    """timm's samples per second and step time are of different regions of a step."""
    block = blocks(fake, [[0.1, 0.3, 0.2], [0.2, 0.1, 0.2]])
    assert block.wall_s == pytest.approx([math.fsum(steps) for steps in block.step_s])
    assert throughput_per_s([block]) * max(block.wall_s) == pytest.approx(block.samples)


def test_low_is_below_high() -> None:
    """DeepLearningExamples' MinMeter takes the maximum."""
    found = ratio_interval([0.9, 1.0, 1.2])
    assert found is not None
    assert found.low < found.mean < found.high


@pytest.mark.parametrize(
    "device", ["AMD Instinct MI350X", "NVIDIA B300", "A100", "cpu", None, "NVIDIA A100-SXM4-80GB "]
)
def test_an_unknown_device_has_no_peak_and_no_utilisation(device: str | None) -> None:
    """torchtitan takes an A100's for all that it does not know, and found 152 % on another."""
    assert peak_flop_per_s(device, "bf16") is None
    assert mfu(1e9, 1000, 1, peak_flop_per_s(device, "bf16")) is None


def test_each_precision_has_its_own_peak() -> None:
    """torchtitan took TF32's peak for bfloat16."""
    peaks = [peak_flop_per_s("NVIDIA H100 80GB HBM3", amp) for amp in ("off", "bf16", "fp8")]
    assert peaks == [pytest.approx(66.9e12), pytest.approx(989.4e12), None]
    assert peak_flop_per_s("Tesla V100-SXM2-16GB", "bf16") is None  # it has none


def test_a_batch_per_rank_that_stays_is_weak_scaling() -> None:
    """DeepLearningExamples' "strong scaling" keeps 256 images per GPU."""
    records = [step_record(cell(1, 8, "single"), 0.1), step_record(cell(2, 8), 0.1), step_record(cell(2, 4), 0.1)]
    (study,), _ = studies(records)
    assert [study.kinds(each) for each in study.cells] == [(), ("weak",), ("strong",)]
    table = scaling.summarise(records).tables[0]
    kinds = [row[table.columns.index("scaling")] for row in table.rows]
    assert kinds[-2:] == ["weak", "strong"]


def test_efficiency_of_weak_scaling_is_not_a_speed_up() -> None:
    assert efficiency(300.0, 4, 100.0) == 0.75


def test_a_chunk_of_the_wrong_rank_and_one_in_the_wrong_place_are_wrong() -> None:
    """param's check sends the constant 1, so that a chunk may come from anywhere."""
    places = torch.arange(1000)
    sent = [values(places, rank, 7, 1000) for rank in range(2)]
    assert (sent[0] != sent[1]).float().mean() > 0.9
    assert (sent[0] != sent[0].roll(1)).float().mean() > 0.9


def test_a_step_taken_apart_has_the_rate_of_its_whole_blocks_and_null_where_the_peak_is_unknown() -> None:
    phases = {"forward": [[0.1, 0.2]], "optimizer": [[0.0, 0.0]]}
    raw = {"blocks": [{"round": 0, "arm": "train", "samples": 16, "wall_s": [0.3], "phase_s": phases}]}
    raw["training_flop_per_sample"] = 1e9  # type: ignore[assignment]
    record = step_record(cell(1, 8, "single"), 0.1, case="train_step", raw=raw)
    found = measured(record)
    assert rate_per_s(found) == pytest.approx(16 / 0.3)
    assert utilisation(found) is None
