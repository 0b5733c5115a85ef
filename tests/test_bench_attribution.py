"""Where the efficiency went: shares that add up, and the one that is named; utilisation that is null, not wrong."""

import pytest

from bench.attribution import COMMUNICATION, DATA_WAIT, KERNELS, STRAGGLERS, SYNC_BN, Attribution, attribute
from bench.peaks import mfu, peak_flop_per_s
from bench.phases import BACKWARD, DATA, FORWARD, LOCAL, NO_SYNC, TRAIN, WAIT, StepBlock
from bench.record import Record
from bench.summaries.train_step import summarise
from tests.bench_records import cell, step_record
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
