"""Where the efficiency went: shares that add up, and the one that is named; utilisation that is null, not wrong."""

import math
import random
from dataclasses import replace

import pytest

from bench.attribution import (
    COMMUNICATION,
    DATA_WAIT,
    KERNELS,
    STRAGGLERS,
    SYNC_BN,
    UNEXPLAINED,
    Attribution,
    Part,
    attribute,
)
from bench.attribution_rounds import agreement, interval_s, rounds_of
from bench.cases.train_step import StepCell
from bench.peaks import mfu, peak_flop_per_s
from bench.phases import BACKWARD, DATA, FORWARD, LOCAL, NO_SYNC, TRAIN, WAIT, StepBlock
from bench.record import Record
from bench.summaries.train_step import summarise
from tests.bench_records import cell, step_record, train_step_record
from tests.test_bench_phases import block

BASE = {DATA: [0.001] * 5, FORWARD: [0.004] * 5, BACKWARD: [0.005] * 5}


def slower(phase: str, seconds: float) -> dict[str, list[float]]:
    return {**BASE, phase: [each + seconds for each in BASE[phase]]}


def compared(own: list[dict[str, list[float]]], wait: list[float], bn: float = 0.0) -> Attribution:
    """Against the base: what ranks do by themselves, what they wait per step, what SyncBN adds to forward."""
    met = [{**rank, FORWARD: [each + bn for each in rank[FORWARD]]} for rank in own]
    train = block([{**rank, WAIT: [each] * 5} for rank, each in zip(met, wait, strict=True)])
    blocks: list[StepBlock] = [train, block(met, NO_SYNC)]
    blocks += [block(own, LOCAL)] if bn else []
    found = attribute([block([BASE])], blocks)
    assert found is not None
    return found


def parts(found: Attribution) -> dict[str, float]:
    return {part.name: part.seconds for part in found.parts}


@pytest.mark.parametrize(
    ("own", "wait", "bn", "name", "seconds"),
    [
        ([slower(DATA, 0.006)] * 2, [0.001] * 2, 0.0, DATA_WAIT, 0.006),
        ([slower(FORWARD, 0.006)] * 2, [0.001] * 2, 0.0, KERNELS, 0.006),
        ([BASE] * 2, [0.006] * 2, 0.0, COMMUNICATION, 0.006),
        ([BASE, slower(BACKWARD, 0.006)], [0.007, 0.001], 0.0, STRAGGLERS, 0.006),
        ([BASE] * 3, [0.001] * 3, 0.006, SYNC_BN, 0.006),
    ],
)
def test_each_kind_of_loss_is_named_with_its_amount(
    own: list[dict[str, list[float]]], wait: list[float], bn: float, name: str, seconds: float
) -> None:
    found = compared(own, wait, bn)
    assert parts(found)[name] == pytest.approx(seconds)
    assert found.largest.name == name
    assert f"the largest share is {name}: 6.00 ms" in found.sentence
    assert sum(parts(found).values()) == pytest.approx(found.loss_s)
    assert found.unexplained_s == pytest.approx(0.0)


def test_in_strong_scaling_a_rank_ought_to_need_its_share_of_the_bases_time() -> None:
    half = {name: [each / 2 for each in times] for name, times in BASE.items()}
    slow = {**half, FORWARD: [each + 0.003 for each in half[FORWARD]]}  # what a small batch cannot use
    train = block([{**slow, WAIT: [0.002] * 5}] * 2, batch=4)
    found = attribute([block([BASE])], [train, block([slow] * 2, NO_SYNC, batch=4)])
    assert found is not None
    assert (found.kind, found.share, found.base_step_s) == ("strong", 0.5, pytest.approx(0.005))
    assert parts(found)[KERNELS] == pytest.approx(0.003)
    assert parts(found)[COMMUNICATION] == pytest.approx(0.002)
    assert parts(found)[DATA_WAIT] == pytest.approx(0.0)
    assert sum(parts(found).values()) == pytest.approx(found.loss_s)
    assert found.efficiency == pytest.approx(0.5)
    assert "50.0 % efficiency of strong scaling" in found.sentence


def test_the_report_takes_weak_and_strong_scaling_apart_where_both_bases_were_measured() -> None:
    def record(ranks: int, batch: int, forward_s: float) -> Record:
        phases = {FORWARD: [[forward_s] * 5] * ranks}
        blocks = [
            {"round": 0, "arm": arm, "samples": 5 * ranks * batch, "wall_s": [5 * forward_s] * ranks, "phase_s": phases}
            for arm in ((TRAIN,) if ranks == 1 else (TRAIN, NO_SYNC))
        ]
        of = cell(ranks, batch, "single" if ranks == 1 else "ddp")
        return step_record(of, 1.0, case="train_step", raw={"blocks": blocks})

    section = summarise([record(1, 8, 0.010), record(1, 16, 0.016), record(2, 8, 0.010)])
    notes = {each.title.rpartition(", ")[2]: each.note for each in section.tables if "efficiency went" in each.title}
    assert set(notes) == {"weak scaling", "strong scaling"}
    assert "(100.0 % efficiency of weak scaling)" in notes["weak scaling"]
    assert "instead of 8.00 ms (80.0 % efficiency of strong scaling)" in notes["strong scaling"]
    (went,) = [fact for fact in section.facts if fact.label == "Where it went"]
    assert went.value == "100.0 %"


def test_ranks_that_are_late_by_turns_are_stragglers_and_no_communication() -> None:
    ranks = [{**BASE, FORWARD: [0.004 + 0.006 * (step % 2 == rank) for step in range(6)]} for rank in (0, 1)]
    ranks = [{**rank, DATA: [0.001] * 6, BACKWARD: [0.005] * 6} for rank in ranks]
    waits = [[0.001 + 0.006 * (step % 2 != rank) for step in range(6)] for rank in (0, 1)]
    train = block([{**rank, WAIT: wait} for rank, wait in zip(ranks, waits, strict=True)])
    found = attribute([block([BASE])], [train, block(ranks, NO_SYNC)])
    assert found is not None
    assert parts(found)[STRAGGLERS] > 2 * parts(found)[COMMUNICATION]


def test_what_spikes_cost_is_said_to_be_unexplained_and_the_sum_stays_the_loss() -> None:
    ranks = [{**BASE, FORWARD: [0.004] * 4 + [0.104], WAIT: [0.001] * 5}] * 2
    found = attribute([block([BASE])], [block(ranks), block([BASE] * 2, NO_SYNC)])
    assert found is not None
    assert found.loss_s == pytest.approx(0.021)
    assert found.unexplained_s == pytest.approx(0.020)
    assert sum(parts(found).values()) == pytest.approx(found.loss_s)
    assert "the largest share is unexplained" in found.sentence


def test_the_efficiency_is_of_weak_scaling_and_no_loss_is_no_loss() -> None:
    found = compared([BASE] * 4, [0.010] * 4)
    assert found.efficiency == pytest.approx(0.5)  # the same batch per rank: not a speed-up of 4 x 0.5 = 2
    assert "At 4 ranks a step takes 20.0 ms instead of 10.0 ms (50.0 % efficiency of weak scaling)" in found.sentence
    assert "no loss to speak of" in compared([BASE] * 2, [0.0001] * 2).sentence


def test_without_a_base_of_one_process_or_without_blocks_there_is_no_attribution() -> None:
    both = [block([BASE] * 2), block([BASE] * 2, NO_SYNC)]
    assert attribute([], both) is None
    assert attribute([block([BASE] * 2)], both) is None
    assert attribute([block([BASE])], both[:1]) is None
    assert attribute([block([BASE], TRAIN)], both) is not None


def test_utilisation_is_known_for_exact_names_only() -> None:
    peak = peak_flop_per_s("NVIDIA A100-SXM4-80GB", "bf16")
    assert mfu(24.3e9, 2470.0, 1, peak) == pytest.approx(0.192, abs=0.001)  # NVIDIA's published ResNet-50 figure
    assert mfu(24.3e9, 4 * 2470.0, 4, peak) == pytest.approx(0.192, abs=0.001)
    for name in ("NVIDIA A100", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "AMD Instinct MI350X", "cpu", None):
        assert peak_flop_per_s(name, "bf16") is None, name
    assert peak_flop_per_s("Tesla T4", "bf16") is None
    assert mfu(24.3e9, 2470.0, 1, None) is None
    assert mfu(None, 2470.0, 1, peak) is None


@pytest.mark.parametrize(
    ("loss_s", "unexplained_s", "doubt"),
    [
        (0.010, 0.0030, "3.0 % of a step, 30.0 % of the loss, stays unexplained, spikes or drift"),
        (0.010, -0.0015, "1.5 % of a step, 15.0 % of the loss, stays unexplained, spikes or drift"),
        (0.010, 0.0005, ""),  # a twentieth of the loss
        (0.001, 0.0005, ""),  # half of a loss that is none
        (0.001, 0.0030, "3.0 % of a step stays unexplained, spikes or drift"),
        (0.050, 0.0030, "3.0 % of a step, 6.0 % of the loss, stays unexplained, spikes or drift"),
        (-0.010, 0.0015, "1.5 % of a step, 15.0 % of the loss, stays unexplained, spikes or drift"),
    ],
)
def test_an_unexplained_part_is_a_doubt_if_it_is_much_of_the_step_or_of_the_loss(
    loss_s: float, unexplained_s: float, doubt: str
) -> None:
    parts = (
        Part(name=COMMUNICATION, seconds=loss_s - unexplained_s),
        Part(name=UNEXPLAINED, seconds=unexplained_s),
    )
    found = Attribution(ranks=2, share=1.0, base_step_s=0.1 - loss_s, step_s=0.1, parts=parts)
    assert found.doubt == doubt


# How sure the parts are


def rounds(waits: list[float]) -> list[Attribution]:
    """What each of some rounds says, of two ranks that wait so many seconds per step for their communication."""
    base, blocks = [], []
    for number, wait in enumerate(waits):
        train = block([{**BASE, WAIT: [wait] * 5}] * 2)
        base.append(replace(block([BASE]), round=number))
        blocks += [replace(one, round=number) for one in (train, block([BASE] * 2, NO_SYNC))]
    return rounds_of(base, blocks)


def test_an_interval_reaches_over_as_many_rounds_as_it_takes() -> None:
    waits = [0.001 * number for number in (5, 1, 9, 2, 8, 3, 7, 4, 6, 50)]
    ends = {count: interval_s(rounds(waits[:count]), COMMUNICATION) for count in (5, 6, 8, 9, 10)}
    assert ends[5] is None
    assert ends[6] == pytest.approx((0.001, 0.009))
    assert ends[8] == pytest.approx((0.001, 0.009))  # two left out would cover 93 %
    assert ends[9] == pytest.approx((0.002, 0.008))
    assert ends[10] == pytest.approx((0.002, 0.009))  # one bad round moves it by one place


def test_the_interval_of_a_median_covers_it_in_95_percent_of_cases() -> None:
    generator = random.Random(7)
    missed = 0
    for _ in range(400):
        ends = interval_s(rounds([generator.lognormvariate(-6, 1) for _ in range(9)]), COMMUNICATION)
        assert ends is not None
        missed += not ends[0] <= math.exp(-6) <= ends[1]
    assert 5 <= missed <= 29  # 3.9 % expected: 16


def test_how_many_rounds_agree_on_the_largest_share_is_told() -> None:
    found = rounds([0.006, 0.0, 0.006, 0.006])
    assert agreement(found[0], found) == "the largest in 3 of 4 rounds"
    assert rounds_of([], []) == []


def test_a_base_of_another_launch_has_no_rounds_to_pair() -> None:
    studied = StepCell(model="linear", ranks=2, batch_per_rank=4, strategy="ddp", data="resident")
    records = [train_step_record(each, 0.01) for each in (replace(studied, ranks=1, strategy="single"), studied)]
    columns = ("part", "ms per step", "95 % interval", "of the step", "of the loss", "how it is measured")
    (together,) = (table for table in summarise(records).tables if table.columns == columns)
    assert all((" to " in row[2]) == (row[0] not in (UNEXPLAINED, "sum")) for row in together.rows)
    records[0].raw["launch"], records[1].raw["launch"] = "one", "other"
    (apart,) = (table for table in summarise(records).tables if table.columns == columns)
    assert {row[2] for row in apart.rows[:-2]} == {"n/a"}
