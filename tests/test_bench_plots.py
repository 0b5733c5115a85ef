"""Plots that stand in a page: deterministic, with text for those who cannot see them, drawn from odd points too."""

import re
from xml.etree import ElementTree

import pytest

from bench.plots import COLOURS, LETTERS, MOST_SERIES, alternative, limited, svg
from bench.plots_axes import log_ticks, spread_out, tick_text, x_text
from bench.plots_step import MOST_FIELDS, HeatMap, heat
from bench.section import Plot, Series
from bench.step_cells import measured
from bench.summary import summarise
from tests.bench_records import StepCell, all_cases, study, train_step_record


def test_a_plot_is_the_same_each_time_and_shares_no_id_with_another() -> None:
    plot = summarise(study()).plots[0]
    first, second = svg(plot, "plot1"), svg(plot, "plot2")
    assert first == svg(plot, "plot1")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', first)) <= ids[0]


def test_a_plot_has_words_for_those_who_cannot_see_it_and_the_colour_of_the_page() -> None:
    plot = summarise(study()).plots[0]
    root = ElementTree.fromstring(svg(plot, "p"))
    assert root.get("role") == "img"
    assert root.get("aria-label") == root[0].text == alternative(plot)
    assert "ddp, weak: 80.0 at 1 to 160 at 2." in alternative(plot)
    assert "ddp, weak: 80.0 % at 1 to 80.0 % at 2 (80.0 % to 80.0 %)." in alternative(summarise(study()).plots[1])
    assert "currentColor" in svg(plot, "p")
    assert "#010203" not in svg(plot, "p")
    assert "<style" not in svg(plot, "p")


@pytest.mark.parametrize("points", [(), ((1.0, 0.0),), ((1.0, 1e-9), (2.0, 1e12))])
def test_odd_points_can_be_drawn(points: tuple[tuple[float, float], ...]) -> None:
    series = (Series(label="_hidden $\\frac$", points=points), Series(label="", points=points, kind="stairs"))
    text = svg(Plot(title="t", x_label="x", y_label="y", series=series, y_zero=True), "p")
    assert "_hidden" in text


def test_a_study_and_a_run_have_the_six_plots_and_intervals_are_drawn() -> None:
    plots = summarise(study()).plots
    titles = [plot.title for plot in plots]
    assert titles == [
        "Throughput of lenet-5",
        "Efficiency of lenet-5",
        "Step times of lenet-5",
        "Test accuracy",
        "Test accuracy against time",
        "Loss",
    ]
    assert plots[0].series[0].points[1] == (2.0, pytest.approx(200.0))  # the ideal line
    weak = next(series for series in plots[1].series if series.label == "ddp, weak")
    assert weak.ranges[1] == (pytest.approx(0.8), pytest.approx(0.8))


def texts(drawing: str) -> list[str]:
    """What is written in a drawing."""
    return [each.text or "" for each in ElementTree.fromstring(drawing).iter() if each.tag.rpartition("}")[2] == "text"]


def test_a_folder_with_every_case_has_all_the_plots_that_people_ask_for() -> None:
    titles = [plot.title for plot in summarise(all_cases()).plots]
    assert len(titles) == len(set(titles))
    for wanted in (
        *("Throughput of lenet-5", "Efficiency of lenet-5", "Parts of a step of lenet-5", "Memory of lenet-5"),
        *("Bandwidth of float32 on 2 ranks", "Ranks and steps of lenet-5", "Step times of lenet-5"),
        *("Step times of lenet-5, phases marked", "Test accuracy against time", "Inference of lenet-5 on 2 ranks"),
    ):
        assert wanted in titles


def test_every_plot_of_a_folder_is_drawn_as_vectors_in_the_pages_colour_and_told_in_words() -> None:
    for place, plot in enumerate(summarise(all_cases()).plots):
        text = svg(plot, f"p{place}")
        assert "<image" not in text
        assert "data:" not in text
        assert len(text) < 250_000
        root = ElementTree.fromstring(text)
        assert root.get("aria-label") == alternative(plot)
        assert len(alternative(plot).split(". ")) > 1
        for element in root.iter():
            if element.tag.rpartition("}")[2] == "text":
                assert "currentColor" in (element.get("style") or ""), (plot.title, element.text)


def test_bandwidth_has_decades_for_ticks_sizes_in_words_and_ddps_buckets_by_letter() -> None:
    plot = next(plot for plot in summarise(all_cases()).plots if plot.title.startswith("Bandwidth"))
    seen = texts(svg(plot, "p"))
    assert {"0.0001", "0.001", "0.01", "0.1", "1"} <= set(seen)
    assert {"64 B", "4 KiB", "256 KiB", "16 MiB"} <= set(seen)
    assert [text for text in seen if "bucket" in text] == [
        f" {letter}: lenet-5: bucket of {size} MiB"
        for letter, size in zip(LETTERS, ("0.25", "1.00", "4.00"), strict=False)
    ]
    assert [text for text in seen if text in ("a", "b", "c")] == ["a", "b", "c"]
    assert "at 8 B to 1.99 at 32 MiB" in alternative(plot)
    assert "lenet-5: bucket of 1.00 MiB: 1 MiB." in alternative(plot)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00195312, "0.00195312"), (2e-5, "0.00002"), (1.025, "1.025"), (131072.0, "131,072"), (1e13, "1e+13")],
)
def test_ticks_have_no_exponent_where_they_can_be_read_without(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_logarithmic_ticks_are_round_and_few_and_surround_the_data() -> None:
    assert log_ticks(0.3, 4.0) == pytest.approx([0.2, 0.5, 1, 2, 5])
    assert log_ticks(1.0, 1.0) == [1.0]
    assert log_ticks(1e-4, 3.0) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1, 10])
    for low, high in ((1e-9, 1e9), (3.0, 7e11), (0.011, 0.012)):
        ticks = log_ticks(low, high)
        assert ticks[0] <= low <= high <= ticks[-1]
        assert len(ticks) <= 8


def test_labels_that_would_touch_are_left_out_and_the_last_one_stays() -> None:
    ranks = [float(rank) for rank in range(1, 65)]
    kept = spread_out(ranks, [f"{rank:g}" for rank in ranks], log=True)
    assert kept[-1] == 64.0
    assert len(kept) < 16
    assert spread_out([1.0, 2.0, 4.0], ["1", "2", "4"], log=True) == [1.0, 2.0, 4.0]
    plot = Plot(title="t", x_label="x", y_label="y", series=(), x_kib=True)
    assert [x_text(plot, size) for size in (0.0078125, 1.0, 25600.0, 2.0**21)] == ["8 B", "1 KiB", "25 MiB", "2 GiB"]


def test_a_plot_has_a_dozen_lines_at_most_and_says_how_many_more_there_are() -> None:
    series = tuple(Series(label=f"s{place}", points=((1.0, 1.0), (2.0, 2.0))) for place in range(5000))
    plot = limited(Plot(title="t", x_label="x", y_label="y", series=series, note="Note."))
    assert len(plot.series) == MOST_SERIES
    assert plot.note == "Note. 4,988 more lines in the table."
    few = Plot(title="t", x_label="x", y_label="y", series=series[:3])
    assert limited(few) is few


def test_a_heat_map_of_many_ranks_shows_fewer_steps() -> None:
    record = train_step_record(StepCell(model="m", ranks=64, batch_per_rank=1), 0.01, rounds=1)
    for block in record.raw["blocks"]:
        block["phase_s"] = {name: [times * 5 for times in ranks] for name, ranks in block["phase_s"].items()}
    plot = heat("m", measured(record).blocks)
    assert isinstance(plot, HeatMap)
    assert sum(len(series.points) for series in plot.series) == MOST_FIELDS
    assert plot.series[0].points[-1][0] == 99.0
    assert len([text for text in texts(svg(plot, "p")) if text.startswith("rank ")]) <= 12


def test_colours_are_those_that_every_kind_of_colour_vision_tells_apart() -> None:
    okabe_ito = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert set(COLOURS) <= okabe_ito
    assert len(set(COLOURS)) == len(COLOURS) == 6
