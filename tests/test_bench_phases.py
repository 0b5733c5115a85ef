"""Phases of a step from marks and fake clocks: what adds up, who is late, what a spike was."""

from typing import Any

import pytest

from bench.phases import (
    BACKWARD,
    DATA,
    FORWARD,
    ISSUE,
    LOCAL,
    NO_SYNC,
    OPTIMIZER,
    STEP,
    TRAIN,
    WAIT,
    StepBlock,
    breakdown,
    by_step,
    critical_ranks,
    lateness_s,
    mean_step_s,
    percentiles_s,
    read_blocks,
    spikes,
    straggler,
)

Steps = dict[str, list[float]]


def block(ranks: list[Steps], arm: str = TRAIN, number: int = 0, batch: int = 8) -> StepBlock:
    """A block of what each rank did; phases that are left out took no time."""
    names = {name for rank in ranks for name in rank}
    steps = len(next(iter(ranks[0].values())))
    phases = {name: tuple(tuple(rank.get(name, [0.0] * steps)) for rank in ranks) for name in names}
    wall = tuple(sum(sum(times) for times in rank.values()) for rank in ranks)
    return StepBlock(round=number, arm=arm, samples=steps * batch * len(ranks), wall_s=wall, phase_s=phases)


def late_rank(phase: str, seconds: float = 0.03) -> list[StepBlock]:
    """Two ranks of 10 ms a step, on one of which a phase takes longer, so that the other one waits for it."""
    early: Steps = {DATA: [0.001] * 5, FORWARD: [0.003] * 5, BACKWARD: [0.004] * 5, ISSUE: [0.0] * 5}
    early[OPTIMIZER] = [0.001] * 5
    late = {**early, phase: [each + seconds for each in early[phase]]}
    train = block([{**early, WAIT: [0.001 + seconds] * 5}, {**late, WAIT: [0.001] * 5}])
    apart = [{name: times for name, times in rank.items() if name != ISSUE} for rank in (early, late)]
    return [train, block(apart, NO_SYNC)]


def test_marks_become_phases_of_steps_that_add_up_to_the_whole() -> None:
    names = [DATA, FORWARD, BACKWARD, ISSUE, BACKWARD, ISSUE, WAIT, OPTIMIZER, STEP, DATA, FORWARD, BACKWARD, STEP]
    seconds = [float(2**place) for place in range(len(names))]
    found = by_step(names, seconds)
    assert found[BACKWARD] == [4.0 + 16.0, 2048.0]
    assert found[ISSUE] == [8.0 + 32.0, 0.0]
    assert found[WAIT] == [64.0, 0.0]
    assert found[OPTIMIZER] == [128.0 + 256.0, 4096.0]
    assert sum(sum(times) for times in found.values()) == sum(seconds)


def test_throughput_is_all_samples_over_all_time_and_no_mean_of_rates() -> None:
    blocks = [block([{FORWARD: [0.1]}], batch=1), block([{FORWARD: [0.2]}], number=1, batch=1)]
    assert 1 / mean_step_s(blocks) == pytest.approx(2 / 0.3)  # 6.67, where the mean of rates would be 7.5
    hundred = [block([{FORWARD: [0.1] * 100}])]
    assert 8 / mean_step_s(hundred) == pytest.approx(80)  # not times the number of steps


def test_percentiles_are_of_the_slowest_rank_of_each_step_and_say_how_many() -> None:
    steps = [float(value) for value in range(1, 101)]
    found = [block([{FORWARD: steps}, {FORWARD: steps[::-1]}])]
    assert percentiles_s(found, 0) == ([50.0, 95.0, 99.0, 100.0], 100)
    assert percentiles_s(found)[0][0] == 75.0


@pytest.mark.parametrize("phase", [DATA, FORWARD, BACKWARD, ISSUE, OPTIMIZER])
def test_the_rank_that_waits_least_is_the_straggler_and_its_phase_is_named(phase: str) -> None:
    blocks = late_rank(phase)
    found = straggler(blocks)
    assert found is not None
    assert (found.rank, found.phase, found.chronic) == (1, phase, True)
    assert found.late_s == pytest.approx(0.03)
    assert critical_ranks(blocks[0]) == (1,) * 5
    assert lateness_s(blocks) == pytest.approx([0.0, 0.03])


def test_a_little_lateness_is_not_chronic_and_one_rank_has_none() -> None:
    found = straggler(late_rank(FORWARD, 0.0002))
    assert found is not None
    assert not found.chronic
    assert lateness_s([block([{FORWARD: [0.1]}])]) is None
    assert lateness_s([block([{FORWARD: [0.1]}, {FORWARD: [0.2]}])]) is None  # no waits known


def test_with_sync_bn_steps_without_communication_tell_who_is_late() -> None:
    met = block([{FORWARD: [0.05], WAIT: [0.001]}, {FORWARD: [0.05], WAIT: [0.001]}])
    free = block([{FORWARD: [0.01], BACKWARD: [0.01]}, {FORWARD: [0.01], BACKWARD: [0.04]}], LOCAL)
    found = straggler([met, free])
    assert found is not None
    assert (found.rank, found.phase, found.late_s) == (1, BACKWARD, pytest.approx(0.03))


def test_the_parts_of_a_step_add_up_and_exposed_communication_is_the_step_minus_the_one_without() -> None:
    own: Steps = {DATA: [0.002] * 3, FORWARD: [0.010] * 3, BACKWARD: [0.020] * 3, OPTIMIZER: [0.001] * 3}
    blocks = [block([{**own, ISSUE: [0.001] * 3, WAIT: [0.004] * 3}] * 2), block([own] * 2, NO_SYNC)]
    for rank in (None, 0, 1):
        found = breakdown(blocks, rank)
        assert found.step_s == pytest.approx(0.038)
        assert found.exposed_s == pytest.approx(0.005)
        assert found.parts_s[BACKWARD] == pytest.approx(0.020)
        assert found.rest_s == pytest.approx(0.0)


def test_a_late_rank_is_not_taken_for_communication() -> None:
    found = breakdown(late_rank(FORWARD))
    assert found.parts_s[FORWARD] == pytest.approx(0.033)
    assert found.exposed_s == pytest.approx(0.001)
    assert breakdown(late_rank(FORWARD), 0).exposed_s == pytest.approx(0.031)  # rank 0 waits for rank 1


def test_blocks_are_paired_by_round_so_that_drift_is_no_communication() -> None:
    blocks = []
    for number, (slow, wait_s) in enumerate(((1.0, 0.001), (3.0, 0.002), (2.0, 0.006))):
        blocks.append(block([{FORWARD: [0.010 * slow], WAIT: [wait_s]}] * 2, TRAIN, number))
        blocks.append(block([{FORWARD: [0.010 * slow]}] * 2, NO_SYNC, number))
    assert breakdown(blocks[::-1]).exposed_s == pytest.approx(0.002)


def test_a_spike_is_of_all_ranks_or_of_one_or_of_communication() -> None:
    def steps(own: list[float], wait: list[float]) -> Steps:
        return {FORWARD: own, WAIT: wait}

    calm, quiet = [0.01] * 9, [0.001] * 9
    everyone = steps([*calm, 0.1], [*quiet, 0.001])
    assert spikes(block([everyone, everyone])) == ["all ranks"]
    assert spikes(block([steps([*calm, 0.01], [*quiet, 0.091]), everyone])) == ["rank 1"]
    network = steps([*calm, 0.01], [*quiet, 0.1])
    assert spikes(block([network, network])) == ["communication"]
    assert spikes(block([steps(calm, quiet)] * 2)) == []


def test_a_rank_that_is_late_at_the_end_of_a_step_makes_one_spike_not_two() -> None:
    slow = {FORWARD: [0.01] * 6, OPTIMIZER: [0, 0, 0.1, 0, 0, 0], WAIT: [0.001] * 6}
    other = {FORWARD: [0.01] * 6, OPTIMIZER: [0.0] * 6, WAIT: [0.001, 0.001, 0.001, 0.101, 0.001, 0.001]}
    assert spikes(block([other, slow])) == ["rank 1"]


@pytest.mark.parametrize(
    "broken",
    [
        {"wall_s": [1.0]},
        {"phase_s": {FORWARD: [[0.1], [0.1, 0.2]]}},
        {"phase_s": {FORWARD: [[0.1], [float("nan")]]}},
        {"phase_s": {}},
        {"samples": 0},
        {"arm": NO_SYNC},
    ],
)
def test_numbers_that_cannot_be_are_refused(broken: dict[str, Any]) -> None:
    good = {"round": 0, "arm": TRAIN, "samples": 4, "wall_s": [0.1, 0.1], "phase_s": {FORWARD: [[0.1], [0.1]]}}
    assert read_blocks({"blocks": [good]}, 2)[0].slowest_s == (0.1,)
    with pytest.raises((ValueError, KeyError)):
        read_blocks({"blocks": [good | broken]}, 2)
