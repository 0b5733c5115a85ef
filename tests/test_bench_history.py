"""Trends: which records belong together, their order, names and marks."""

from dataclasses import replace
from typing import Any

import pytest

from bench import history
from bench.cases.train_step import StepCell
from bench.record import Record
from tests.bench_records import fit_record, small_records, train_step_record
from tests.test_bench_gate import timed


def test_a_trend_has_its_rates_in_the_order_of_time_and_marks_what_changed() -> None:
    versions = {1: "2.15", 2: "2.15", 3: "2.16"}
    days = [replace(timed(1 / day, torch=versions[day]), time=f"2026-01-0{day}T00:00:00+00:00") for day in (3, 1, 2)]
    (trend,) = history.trends(days)
    assert [round(point.rate_per_s) for point in trend.points] == [16, 32, 48]
    assert [point.changes for point in trend.points] == [(), (), ("torch 2.15 -> 2.16",)]
    assert trend.change == pytest.approx(2.0)
    assert trend.last_step == pytest.approx(0.5)
    section = history.summarise(days)
    assert section.tables[0].rows[0][2] == "▁▅│█"
    assert section.tables[1].rows == (("2026-01-03T00:00:00+00:00", trend.label, "torch 2.15 -> 2.16"),)
    line, mark = section.plots[0].series
    assert [x for x, _ in line.points] == [0.0, 1.0, 2.0]
    assert (mark.kind, mark.label, mark.points[0][0]) == ("mark", "torch 2.15 -> 2.16", 2.0)


def test_changes_are_marked_once_and_commits_give_way_where_there_are_many() -> None:
    days = [
        replace(
            timed(1.0, commit=f"c{day}", torch="2.15" if day < 9 else "2.16"), time=f"2026-01-{day:02}T00:00:00+00:00"
        )
        for day in range(1, 10)
    ]
    later = [
        replace(each, cell={**each.cell, "model": "lenet5"}, time=each.time[:11] + "06:00:00+00:00") for each in days
    ]
    (plot,) = history.summarise([*days, *later]).plots
    marks = [(each.label, each.points[0][0]) for each in plot.series if each.kind == "mark"]
    assert marks[0] == ("torch 2.15 -> 2.16", 8.0)
    assert [label for label, _ in marks[1:]] == [f"commit c{day} -> c{day + 1}" for day in range(1, history.MOST_MARKS)]
    assert "3 more changes" in plot.note
    lines = [each.label for each in plot.series if each.kind == "line"]
    assert lines == ["scaling: model mlp", "scaling: model lenet5"]  # what both share is left out


def run(day: int, **settings: Any) -> Record:
    """A training run of a day, as a nightly job would record it."""
    record = fit_record(time=f"2026-01-{day:02}T00:00:00+00:00")
    own = {"out": f"runs/{day}", "resume": f"runs/{day}/latest.pt", "seed": day, "log_every": 10 * day, "keep": day}
    return replace(record, cell={**record.cell, **own, **settings})


def test_nightly_runs_in_folders_of_their_own_are_one_trend() -> None:
    (trend,) = history.trends([run(1), run(2), run(3, patience=None)])
    assert len(trend.points) == 3
    assert "out" not in trend.label
    assert trend.label == "fit: model lenet-5, ranks 2, epochs 2, global batch size 64"


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (
            {"input": {"data": "digits"}},
            {"input": {"data": "synthetic"}},
            ("input data digits", "input data synthetic"),
        ),
        ({"amp": "off"}, {"amp": "bf16"}, ("size 64", "amp bf16")),
        ({"optim": {"a": {"b": False}}}, {"optim": {"a": {"b": True}}}, ("optim a b no", "optim a b")),
        ({"milestones": [1, 2]}, {"milestones": [3]}, ("milestones [1, 2]", "milestones [3]")),
        ({"gain": 1}, {"gain": "1"}, (")", ")")),
    ],
)
def test_cells_that_differ_in_what_makes_speed_are_trends_with_names_of_their_own(
    one: dict[str, Any], other: dict[str, Any], words: tuple[str, str]
) -> None:
    found = history.trends([run(1, **one), run(2, **other), run(3, **one)])
    assert [len(trend.points) for trend in found] == [2, 1]
    assert found[0].label != found[1].label
    assert (found[0].label.endswith(words[0]), found[1].label.endswith(words[1])) == (True, True)


def test_a_case_is_part_of_what_a_trend_is() -> None:
    assert len(history.trends([timed(1.0), replace(timed(1.0), case="syncbn")])) == 2


@pytest.mark.parametrize("case", ["inference", "loader", "models", "syncbn", "loop_cost"])
def test_whatever_has_samples_and_wall_times_has_a_trend(case: str) -> None:
    record = next(each for each in small_records() if each.case == case)
    own = [each for each in record.raw["blocks"] if each.get("arm") in (None, "ringmark")]
    rate = sum(each["samples"] for each in own) / sum(max(each["wall_s"]) for each in own)
    assert history.rate_per_s(record) == pytest.approx(rate)


def test_a_trend_of_steps_taken_apart_is_of_training_as_it_is() -> None:
    record = train_step_record(StepCell(model="lenet-5", ranks=2, batch_per_rank=8), 0.01)
    train = [each for each in record.raw["blocks"] if each["arm"] == "train"]
    assert 0 < len(train) < len(record.raw["blocks"])
    rate = sum(each["samples"] for each in train) / sum(max(each["wall_s"]) for each in train)
    assert history.rate_per_s(record) == pytest.approx(rate)
    assert history.rate_per_s(fit_record()) == 300


def test_a_run_without_a_speed_is_no_point() -> None:
    epochs = [{"train_samples": 0, "train_s": 1.0}]
    none = fit_record(raw={"epochs": epochs})
    assert history.rate_per_s(none) is None
    assert history.trends([none, fit_record(raw={"epochs": [{"train_samples": 1, "train_s": float("nan")}]})]) == []
