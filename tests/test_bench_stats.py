"""The report's arithmetic, against examples computed by hand and properties that hold for all numbers."""

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from bench.intervals import difference, interval
from bench.stats import (
    Block,
    distribution,
    efficiency,
    nearest_rank,
    paired_ratios,
    ratio_interval,
    slowest_steps_s,
    throughput_per_round,
    throughput_per_s,
    unpaired_interval,
)

SECONDS = st.floats(1e-4, 1e3)


def block(samples: int, *step_s: tuple[float, ...], number: int = 0) -> Block:
    """A block from the step times of each rank."""
    return Block(round=number, samples=samples, wall_s=tuple(sum(steps) for steps in step_s), step_s=step_s)


def test_throughput_is_total_samples_over_total_time_and_not_a_mean_of_rates() -> None:
    blocks = [block(1, (0.1,)), block(1, (0.2,))]
    assert throughput_per_s(blocks) == pytest.approx(20 / 3)  # 2 / 0.3 s = 6.67; the mean of 10 and 5 would be 7.5


def test_throughput_counts_the_slowest_rank_of_each_block() -> None:
    blocks = [block(8, (1.0,), (2.0,)), block(8, (3.0,), (1.0,))]
    assert throughput_per_s(blocks) == pytest.approx(16 / 5)  # 2 + 3 s; rank 0 alone says 4, the mean rank 3.5


def test_throughput_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected at least one block, got none"):
        throughput_per_s([])


def test_blocks_of_the_same_round_are_added_before_dividing() -> None:
    rounds = throughput_per_round([block(1, (0.1,), number=4), block(1, (0.2,), number=4), block(3, (1.0,), number=7)])
    assert rounds == pytest.approx({4: 20 / 3, 7: 3.0})


def test_a_step_takes_as_long_as_its_slowest_rank() -> None:
    blocks = [block(4, (0.1, 0.4), (0.3, 0.2)), block(4, (0.5, 0.5), (0.1, 0.6))]
    assert slowest_steps_s(blocks) == (0.3, 0.4, 0.5, 0.6)


@pytest.mark.parametrize(("percent", "value"), [(5, 15), (30, 20), (40, 20), (50, 35), (100, 50)])
def test_nearest_rank_agrees_with_the_textbook_example(percent: float, value: float) -> None:
    assert nearest_rank([50, 15, 40, 20, 35], percent) == value


def test_the_95th_percentile_of_a_hundred_values_is_the_95th() -> None:
    assert nearest_rank(list(range(1, 101)), 95) == 95


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_a_percentile_that_does_not_exist_is_an_error(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="expected values and a percentage"):
        nearest_rank(values, percent)


def test_weak_efficiency_of_four_ranks_at_three_times_the_base_is_three_quarters() -> None:
    assert efficiency(300.0, 4, 100.0) == 0.75


@given(batch=st.integers(1, 10_000), base_s=SECONDS, time_s=SECONDS, ranks=st.integers(1, 64))
def test_with_the_same_global_batch_efficiency_is_speed_up_over_ranks(
    batch: int, base_s: float, time_s: float, ranks: int
) -> None:
    rates = efficiency(batch / time_s, ranks, batch / base_s)
    assert rates == pytest.approx(base_s / time_s / ranks)


def test_only_rounds_that_both_sides_have_are_paired() -> None:
    assert paired_ratios({0: 2.0, 1: 3.0, 5: 9.0}, {1: 6.0, 0: 2.0, 2: 1.0}) == (1.0, 0.5)


def test_the_interval_of_four_ratios_is_the_one_computed_by_hand() -> None:
    # Logs -0.3, -0.1, 0.1, 0.3: mean 0, s = sqrt(0.2 / 3), t(0.975, 3) = 3.18245, half width t s / 2 = 0.410852.
    interval = ratio_interval([math.exp(log) for log in (-0.3, -0.1, 0.1, 0.3)])
    assert interval is not None
    assert (interval.mean, interval.count) == (pytest.approx(1.0), 4)
    assert (interval.low, interval.high) == (pytest.approx(math.exp(-0.410852)), pytest.approx(math.exp(0.410852)))


def test_two_sides_that_did_not_take_turns_have_welchs_interval_while_they_are_few() -> None:
    rates, alone = [120.0, 118.0, 125.0, 119.0, 121.0], [100.0, 90.0, 110.0]
    found = unpaired_interval(rates, alone)
    logs = [[math.log(rate) for rate in side] for side in (rates, alone)]
    wanted = stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(math.exp(wanted.low)), pytest.approx(math.exp(wanted.high)))
    assert found.mean == pytest.approx(math.prod(rates) ** 0.2 / math.prod(alone) ** (1 / 3))
    assert found.count == 3
    assert unpaired_interval(rates, alone[:1]) is None
    same = unpaired_interval([50.0] * 3, [100.0] * 12)
    assert same is not None
    assert (same.low, same.high) == (pytest.approx(0.5), pytest.approx(0.5))


@pytest.mark.parametrize("counts", [(12, None), (12, 12), (12, 15), (200, 10)])
def test_many_are_bootstrapped_as_scipy_does_it_as_far_out_as_students_t_both_sides_by_themselves(
    counts: tuple[int, int | None],
) -> None:
    generator = np.random.default_rng(7)
    now = np.sort(np.log(100 + generator.gamma(1.5, 4.0, counts[0])))  # sorted: sides resampled alike would show
    sides = (now,) if counts[1] is None else (now, np.sort(np.log(90 + generator.gamma(2.0, 6.0, counts[1]))))

    def mean(*parts: Any, axis: int = -1) -> Any:
        return np.mean(parts[0], axis) - (np.mean(parts[1], axis) if len(parts) > 1 else 0.0)

    errors = [float(np.var(side, ddof=1)) / len(side) for side in sides]
    biased = sum(float(np.var(side)) / len(side) for side in sides)
    freedom = sum(errors) ** 2 / sum(error**2 / (len(side) - 1) for error, side in zip(errors, sides, strict=True))
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(sum(errors) / biased)
    level = 1 - 2 * stats.norm.sf(reach)  # scipy's own reach is the normal distribution's
    wanted = stats.bootstrap(
        sides, mean, vectorized=True, random_state=generator, n_resamples=20000, confidence_level=level
    )
    low, high = wanted.confidence_interval
    found = [interval(list(now), 0.05) if len(sides) == 1 else difference(*map(list, sides), 0.05) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0] is not None
    width = high - low
    assert found[0].low == pytest.approx(low, abs=0.04 * width)
    assert found[0].high == pytest.approx(high, abs=0.04 * width)


@pytest.mark.parametrize(("alpha", "most"), [(0.05, 0.064), (0.01, 0.026)])
@pytest.mark.parametrize("count", [10, 12, 24])
def test_intervals_of_few_values_miss_their_mean_as_seldom_as_they_say(alpha: float, most: float, count: int) -> None:
    """The bootstrap as it is would miss 9.5 % at 10 values and alpha 5 %, 4.4 % at 1 %."""
    generator = random.Random(count)
    missed = 0
    for _ in range(1000):
        found = interval([generator.gauss(0.0, 0.02) for _ in range(count)], alpha)
        assert found is not None
        missed += not found.low <= 0.0 <= found.high
    assert missed <= 1000 * most


@pytest.mark.parametrize("ratios", [[], [0.9]])
def test_below_two_rounds_there_is_no_interval(ratios: list[float]) -> None:
    assert ratio_interval(ratios) is None


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30), st.floats(0.01, 100))
@example([1.0] * 9 + [2.0], 2.0)  # resamples with the very mean of the sample
def test_the_interval_holds_its_mean_and_scales_with_the_ratios(ratios: list[float], factor: float) -> None:
    interval, scaled = ratio_interval(ratios), ratio_interval([factor * ratio for ratio in ratios])
    assert interval is not None
    assert scaled is not None
    assert interval.low <= interval.mean <= interval.high
    assert scaled.mean == pytest.approx(factor * interval.mean, rel=1e-6)
    assert scaled.high / scaled.low == pytest.approx(interval.high / interval.low, rel=1e-5)


@given(st.lists(st.tuples(st.integers(1, 1000), SECONDS), min_size=1, max_size=20))
def test_throughput_lies_between_the_slowest_and_the_fastest_block(pairs: list[tuple[int, float]]) -> None:
    rates = [samples / time_s for samples, time_s in pairs]
    total = throughput_per_s([block(samples, (time_s,)) for samples, time_s in pairs])
    assert min(rates) * (1 - 1e-9) <= total <= max(rates) * (1 + 1e-9)


@given(st.lists(SECONDS, min_size=1, max_size=60), st.floats(0.1, 100))
def test_a_percentile_was_measured_and_leaves_enough_values_at_or_below_it(values: list[float], percent: float) -> None:
    found = nearest_rank(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent * len(values) / 100 - 1e-9
    assert sum(value < found for value in values) < percent * len(values) / 100


@given(st.lists(SECONDS, min_size=1, max_size=900), st.integers(1, 50))
def test_a_thinned_distribution_rises_to_one_at_the_largest_value(values: list[float], points: int) -> None:
    pairs = distribution(values, points)
    assert len(pairs) <= points + 1
    assert pairs[-1] == (max(values), 1.0)
    assert list(pairs) == sorted(pairs)


def test_the_distribution_of_nothing_is_empty() -> None:
    assert distribution([]) == ()
