"""Plots that stand in a page: deterministic, with text for those who cannot see them, drawn from odd points too."""

import re
from xml.etree import ElementTree

import pytest

from bench.plots import alternative, svg
from bench.section import Plot, Series
from bench.summary import summarise
from tests.bench_records import study


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
    assert "ddp, weak: 80.0 at 1.00 to 160 at 2.00." in alternative(plot)
    assert "currentColor" in svg(plot, "p")
    assert "#010203" not in svg(plot, "p")
    assert "<style" not in svg(plot, "p")


@pytest.mark.parametrize("points", [(), ((1.0, 0.0),), ((1.0, 1e-9), (2.0, 1e12))])
def test_odd_points_can_be_drawn(points: tuple[tuple[float, float], ...]) -> None:
    series = (Series(label="_hidden $\\frac$", points=points), Series(label="", points=points, kind="stairs"))
    text = svg(Plot(title="t", x_label="x", y_label="y", series=series, y_zero=True), "p")
    assert "_hidden" in text


def test_a_study_and_a_run_have_the_five_plots_and_intervals_are_drawn() -> None:
    plots = summarise(study()).plots
    titles = [plot.title for plot in plots]
    assert titles == [
        "Throughput of lenet-5",
        "Efficiency of lenet-5",
        "Step times of lenet-5",
        "Test accuracy",
        "Loss",
    ]
    assert plots[0].series[0].points[1] == (2.0, pytest.approx(200.0))  # the ideal line
    weak = next(series for series in plots[1].series if series.label == "ddp, weak")
    assert weak.ranges[1] == (pytest.approx(0.8), pytest.approx(0.8))
