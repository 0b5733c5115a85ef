"""The arithmetic of comparisons: examples computed by hand, and verdicts on simulated machines."""

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from bench import intervals, paired
from bench.compare import comparison
from bench.record import Record
from bench.summary import summarise
from tests.bench_records import ENVIRONMENT

CELL = {"a": "--amp off", "b": "--amp bf16", "pairs": 6, "max_pairs": 24, "margin_percent": 2.0, "ranks": 1}


def test_the_order_is_abba_and_baab_with_equally_many_of_both() -> None:
    for seed in range(20):
        word = paired.order(64, seed)
        quads = [word[place : place + 4] for place in range(0, 128, 4)]
        assert Counter(quads) == {"ABBA": 16, "BAAB": 16}
        assert all({first, second} == {"ABBA", "BAAB"} for first, second in zip(quads[::2], quads[1::2], strict=True))
        assert word.startswith(paired.order(6, seed))
    assert len({paired.order(16, seed) for seed in range(20)}) > 5


def test_an_odd_number_of_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an even number of pairs"):
        paired.order(7, 0)


def test_pairs_double_up_to_the_most_and_the_looks_share_alpha() -> None:
    assert paired.looks(6, 64) == (6, 12, 24, 48, 64)
    assert paired.alpha_at_each(6, 64) == pytest.approx(0.05 / 5)
    assert paired.alpha_at_each(64, 64) == 0.05


def test_equal_arms_that_are_looked_at_often_are_seldom_told_apart() -> None:
    """Over all looks of a comparison, not at each, and without any margin that would help."""
    generator = random.Random(1)
    alpha, looks = paired.alpha_at_each(6, 24), paired.looks(6, 24)
    wrong = 0
    for _ in range(1000):
        ratios = [generator.gauss(0.0, 0.02) for _ in range(24)]
        words = [paired.judge(ratios[:look], [0.0] * (look // 2), alpha, 0.0).word for look in looks]
        wrong += bool({"slower", "faster"} & set(words))
    assert wrong <= 64  # the 95 % bound of 5 %: sqrt(0.05 * 0.95 / 1000) is 0.7 %


def test_log_ratios_are_b_over_a_whichever_came_first() -> None:
    assert paired.log_ratios("ABBA", [1.0, 2.0, 6.0, 3.0]) == pytest.approx((math.log(2), math.log(2)))


def test_drift_cancels_in_ratios_and_in_the_null() -> None:
    drift = [1.01**place for place in range(8)]  # each block takes 1 % longer than the one before; no difference
    assert math.fsum(paired.log_ratios("ABBABAAB", drift)) == pytest.approx(0.0)
    assert math.fsum(paired.null_ratios("ABBABAAB", drift)) == pytest.approx(0.0)


def test_the_null_is_of_the_same_arm_and_knows_no_difference_between_arms() -> None:
    assert paired.null_ratios("ABBABAAB", [1.0, 5.0, 5.0, 1.0, 5.0, 1.0, 1.0, 5.0]) == (0.0, 0.0)
    (found,) = paired.null_ratios("ABBA", [1.0, 1.0, 1.21, 1.1])
    assert found == pytest.approx((math.log(1.1) + math.log(1.21)) / 2)


def test_a_block_is_the_median_of_its_slowest_ranks_behind_its_warm_up() -> None:
    assert paired.block_statistic_s([[1.0, 4.0, 1.0], [3.0, 2.0, 1.0]]) == 3.0  # 3, 4, 1
    steps = [9.0] * 4 + [2.0] * 10 + [2.1] * 6
    assert paired.settled_from(steps) == 4
    assert paired.block_statistic_s([steps]) == 2.0
    assert paired.settled_from([2.0, 2.1] * 10) == 0
    assert paired.settled_from([3.0 - 0.1 * place for place in range(20)]) == 6  # never settles: a third at most


def test_a_pair_of_many_turns_counts_as_their_median() -> None:
    assert paired.grouped([1.0, 9.0, 2.0, 5.0, 5.0, 70.0, 4.0], 3) == (2.0, 5.0)
    order = paired.order(36, 3)  # six pairs of six turns; one turn in six is disturbed
    times = [[9.0 if place % 12 == 0 else 1.1 if arm == "B" else 1.0] * 20 for place, arm in enumerate(order)]
    record = Record(case="compare", cell={**CELL, "turns": 6}, status="ok", raw={"blocks": blocks(order, times)})
    found = comparison(record)
    assert found.ratios == pytest.approx((math.log(1.1),) * 6)
    assert found.verdict.word == "slower"
    assert comparison(replace(record, cell=CELL)).verdict.word == "inconclusive"


def test_the_interval_of_four_is_students() -> None:
    # Logs -0.3, -0.1, 0.1, 0.3: s = sqrt(0.2 / 3), t(0.975, 3) = 3.18245, half width t s / 2 = 0.410852.
    found = intervals.interval([-0.3, -0.1, 0.1, 0.3], 0.05)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(-0.410852), pytest.approx(0.410852))


def test_the_interval_of_many_is_bootstrapped_the_same_each_time_and_skewed_with_the_data() -> None:
    logs = [0.0] * 8 + [0.01 * number for number in range(1, 9)] + [0.5]
    found = intervals.interval(logs, 0.05)
    assert found is not None
    assert found == intervals.interval(logs, 0.05)
    assert found.high - found.mean > 1.5 * (found.mean - found.low)  # a t-interval would be symmetrical
    wider = intervals.interval(logs, 0.00625)
    assert wider is not None
    assert wider.width > found.width


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = intervals.interval([0.01] * 12, 0.05)
    assert found is not None
    assert (found.low, found.high) == (0.01, 0.01)
    assert intervals.interval([0.01], 0.05) is None


@pytest.mark.parametrize(
    ("logs", "word"),
    [
        ([0.040, 0.041, 0.039, 0.040], "slower"),
        ([-0.040, -0.041, -0.039, -0.040], "faster"),
        ([0.010, 0.011, 0.009, 0.010], "same"),
        ([0.018, 0.022, 0.019, 0.021], "slower"),
        ([0.016, 0.022, 0.018, 0.021], "inconclusive"),
        ([-0.1, 0.2, -0.3, 0.4], "inconclusive"),
    ],
)
def test_the_interval_and_the_margin_decide(logs: list[float], word: str) -> None:
    assert paired.judge(logs, [0.0, 0.0], 0.05, 0.02).word == word


def test_a_difference_that_the_same_code_shows_as_well_is_not_believed() -> None:
    logs = [0.040, 0.041, 0.039, 0.040]
    found = paired.judge(logs, [0.045, 0.0451], 0.05, 0.02)
    assert found.word == "inconclusive"
    assert "too noisy" in found.why
    assert paired.judge(logs, [0.001, 0.0012], 0.05, 0.02).word == "slower"
    assert paired.judge(logs, [0.045, -0.046, 0.044], 0.05, 0.02).word == "slower"  # wide, but of no difference
    assert paired.judge(logs, [], 0.05, 0.02).word == "inconclusive"


def blocks(order: str, times: list[list[float]]) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "samples": 8, "wall_s": [sum(steps)], "step_s": [steps], "cpu_s": [sum(steps)], "guards": {}}
        for arm, steps in zip(order, times, strict=True)
    ]


def simulated(effect: float, seed: int, noise: float = 0.02) -> Record:
    """A comparison on a machine that drifts (AR(1), 3 %) with noisy, spiky steps, as the command would end it."""
    generator = random.Random(seed)
    order, drift, times = paired.order(24, seed), 0.0, []
    for arm in order:
        steps = []
        for _ in range(30):
            drift += -drift / 300 + generator.gauss(0, 0.03 * math.sqrt(2 / 300))
            step = math.exp(drift + generator.gauss(0, noise)) * (1 + effect * (arm == "B"))
            steps.append(step * (1.5 if generator.random() < 0.01 else 1.0))
        times.append(steps)
    for pairs in paired.looks(6, 24):
        raw = {"blocks": blocks(order[: 2 * pairs], times[: 2 * pairs])}
        record = Record(case="compare", cell=CELL, status="ok", raw=raw, environment=ENVIRONMENT)
        if comparison(record).verdict.word != "inconclusive":
            break
    return record


def test_sixty_comparisons_of_the_same_code_and_twenty_of_four_percent_on_a_drifting_machine() -> None:
    same = Counter(comparison(simulated(0.0, seed)).verdict.word for seed in range(60))
    assert same["slower"] + same["faster"] == 0, same
    assert same["same"] >= 50, same
    slower = Counter(comparison(simulated(0.04, seed)).verdict.word for seed in range(100, 120))
    assert slower["slower"] >= 19, slower


def test_arms_with_other_batches_are_compared_by_the_sample() -> None:
    raw = {"blocks": blocks("ABBABAAB" * 2, [[1.0] * 20 if arm == "A" else [2.0] * 20 for arm in "ABBABAAB" * 2])}
    for block in raw["blocks"]:
        block["samples"] = 8 if block["arm"] == "A" else 16
    record = Record(case="compare", cell=CELL, status="ok", raw=raw, environment={})
    assert comparison(record).verdict.word == "same"


def test_a_spike_is_counted_once_whichever_rank_it_comes_from() -> None:
    ranks = [[1.0] * 8 + [2.0, 1.0], [1.0] * 8 + [2.0, 3.0]]
    assert paired.spikes(ranks) == 2
    assert paired.spikes([[1.0, 1.0, 1.4]]) == 0


def test_a_comparison_in_a_report_says_verdict_interval_and_why_not() -> None:
    good, broken = simulated(0.04, 100), simulated(0.04, 101)
    broken.raw["blocks"][1]["arm"] = "A"
    summary = summarise([good, replace(broken, cell={**CELL, "b": "--amp fp16"})])
    (fact,) = [each for each in summary.facts if each.label == "B against A"]
    assert fact.value == "slower"
    assert "% interval +" in fact.details[0]
    rows = next(table for table in summary.tables if table.title == "Comparisons").rows
    assert rows[0][2] == "slower"
    assert rows[1][-1].startswith("unreadable")
    assert summary.plots[0].series[0].points[0][1] == pytest.approx(math.exp(comparison(good).ratios[0]))
