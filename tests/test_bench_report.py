"""That the report's three renderings say the same, and that nothing in a record can abuse them."""

import html
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench import report
from bench.record import FILE_NAME, Record, append
from bench.section import Table
from bench.summary import MOST_CAVEATS, MOST_LEADS, MOST_PLOTS, VERDICT_LINES, Summary, summarise
from bench.text import LONGEST, clean, duration, number, percent, value_text
from tests.bench_records import all_cases, cell, find, fit_record, many, step_record, study

HOSTILE = "<script>alert(1)</script>|`rm -rf`\x1b[31m[red]x[/red]$y$\u202e\ud800*b*\nline\x9b2J"
ALLOWED_TAGS = re.compile(
    r"html|head|meta|title|style|body|main|h[12]|d[ldt]|div|span|ul|li|figure|figcaption|small|section|"
    r"table|thead|tbody|t[rhd]|p|svg|g|path|use|text|defs|clippath|rect"
)


def in_terminal(summary: Summary, width: int = 2000) -> str:
    """The terminal's rendering, as a terminal with colours would get it."""
    console = Console(width=width, force_terminal=True, color_system="truecolor", _environ={})
    with console.capture() as capture:
        console.print(report.terminal(summary))
    return capture.get()


def without_style(text: str) -> str:
    """Text without rich's own colour sequences."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.values: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.values += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_three_renderings_say_the_same(tmp_path: Path) -> None:
    for record in all_cases():
        append(tmp_path, record)
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write("{torn\n")
    summary = report.write_report(tmp_path)
    assert any(table.lead for table in summary.tables)
    page = Page((tmp_path / report.HTML).read_text()).text
    marks = html.unescape(re.sub(r"\\([\\`*_|\[\]~$#])", r"\1", (tmp_path / report.MARKDOWN).read_text()))
    screen = without_style(in_terminal(summary))
    facts = [*summary.facts, *(fact for table in summary.tables for fact in table.lead)]
    texts = [text for fact in facts for text in (fact.label, fact.value, *fact.details)]
    for table in report.all_tables(summary):
        texts += [table.title, table.note, *table.columns, *(cell for row in table.rows for cell in row)]
    assert len(summary.remarks) == 1
    for text in (*texts, *summary.remarks):
        assert text in page
        assert text in marks
        assert text in screen


@pytest.mark.parametrize("width", [40, 80, 100, 120, 200])
def test_the_terminal_never_writes_wider_than_it_is_and_loses_no_row(width: int) -> None:
    lines = without_style(in_terminal(summarise(study()), width)).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert any("weak+strong" in line for line in lines)  # no word is torn
    assert "halve" in " ".join(lines)
    assert sum("62.5" in line for line in lines) >= 2  # in the verdict and in the table


def hostile_summary() -> Summary:
    """Hostile text wherever a record can hold text."""
    bad = {HOSTILE: HOSTILE, "host": HOSTILE, "device": HOSTILE, "torch": HOSTILE}
    records = [
        *(
            replace(record, environment=bad)
            for record in (step_record(cell(n, 10, model=HOSTILE), 0.1) for n in (1, 2))
        ),
        step_record(cell(3, 10, HOSTILE, HOSTILE), 0.1),
        step_record(cell(4, 10, model=HOSTILE), 0.1, status="failed", error=HOSTILE, raw={}),
        fit_record(cell={"model": HOSTILE, "input": {"data": HOSTILE}, "seed": HOSTILE}),
        Record(case=HOSTILE, cell={HOSTILE: HOSTILE}, status="ok", error=HOSTILE, time=HOSTILE),
    ]
    return summarise(records, [HOSTILE])


def test_hostile_text_reaches_a_page_only_as_text() -> None:
    page = Page(report.html(hostile_summary()))
    assert not [tag for tag in page.tags if not ALLOWED_TAGS.fullmatch(tag)]
    assert not [name for name, _ in page.values if name.startswith("on") or name == "src"]
    assert all(value.startswith("#") for name, value in page.values if name.endswith("href"))
    assert "<script>alert(1)</script>" in page.text
    report.html(hostile_summary()).encode("utf-8")


def test_hostile_text_cannot_break_out_of_a_markdown_table() -> None:
    text = report.markdown(hostile_summary())
    assert "<" not in text
    assert "\x1b" not in text
    assert not re.search(r"(?<!\\)`", text)
    block: list[str] = []
    for line in text.splitlines():
        block = [*block, line] if line.startswith("|") else []
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block}) <= 1


def test_hostile_text_cannot_steer_a_terminal() -> None:
    summary = hostile_summary()
    text = without_style(in_terminal(summary))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800]", text)
    assert r"\x1b[31m[red]x[/red]$y$\u202e\ud800*b* line\x9b2J" in text
    cells = [cell for table in report.all_tables(summary) for row in table.rows for cell in row]
    assert text.count("[red]x[/red]") >= sum(cell.count("[red]x[/red]") for cell in cells) > 10


@given(st.text(alphabet=st.characters(codec=None)))
def test_cleaned_text_is_one_printable_line_that_can_be_written(text: str) -> None:
    shown = clean(text)
    assert shown.isprintable()
    assert len(shown.encode("utf-8").splitlines()) <= 1
    assert clean(shown) == shown


def test_long_text_is_cut_and_says_by_how_much() -> None:
    assert clean("x" * (LONGEST + 2000)) == "x" * LONGEST + " ... (2,000 more characters)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"),
        (float("nan"), "n/a"),
        (0, "0"),
        (6.6667, "6.67"),
        (41.25, "41.2"),
        (1234.5, "1,234"),
        (0.01234, "0.0123"),
    ],
)
def test_numbers_have_three_digits_and_unknown_is_not_a_number(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(45.2, "45.2 s"), (725, "12 min 5 s"), (7380, "2 h 3 min"), (None, "n/a")]
)
def test_durations_are_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_share_that_rounds_to_zero_has_no_sign() -> None:
    assert [percent(each) for each in (-0.0004, 0.943, -0.5, None)] == ["0.0 %", "94.3 %", "-50.0 %", "n/a"]


# Files


def test_a_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    for record in study():
        append(tmp_path, record)
    report.write_report(tmp_path)
    page = (tmp_path / report.HTML).read_text()
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'\"" in page
    assert not re.search(r"<(script|link|iframe|img)\b|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    assert page.count('class="scroll" tabindex="0"') == len(re.findall("<table", page))


def test_an_empty_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder with records.jsonl, got .*; name the --out folder"):
        report.write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_one_readable_record_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("{torn\n")
    with pytest.raises(
        ValueError, match=r"expected at least one record that can be read, got none \(records.jsonl line 1"
    ):
        report.write_report(tmp_path)


def test_a_record_of_the_wrong_shape_is_left_out_with_a_remark(tmp_path: Path) -> None:
    append(tmp_path, fit_record())
    for wrong in ({"cell": None}, {"raw": []}, {"case": 3}, {"status": "great"}):
        with (tmp_path / FILE_NAME).open("a") as file:
            file.write(json.dumps({**asdict(fit_record()), **wrong}) + "\n")
    summary = report.write_report(tmp_path)
    assert len(summary.remarks) == 4
    assert len(find(summary, "Training runs").rows) == 1


def test_a_report_is_replaced_as_a_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    append(tmp_path, fit_record())
    (tmp_path / report.HTML).write_text("old")
    first = report.write_report(tmp_path)
    page = (tmp_path / report.HTML).read_bytes()
    assert report.write_report(tmp_path) == first
    assert (tmp_path / report.HTML).read_bytes() == page
    assert {path.name for path in tmp_path.iterdir()} == {FILE_NAME, report.HTML, report.MARKDOWN, report.CSV}


# Many cells, and one


def test_five_thousand_cells_make_a_page_that_can_be_used(tmp_path: Path) -> None:
    records = many(5000)
    assert len({value_text([record.case, record.cell]) for record in records}) == len(records) == 5000
    (tmp_path / FILE_NAME).write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
    summary = report.write_report(tmp_path)
    page = (tmp_path / report.HTML).read_text()
    assert len(page) < 8_000_000
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert 10 < len(drawings) == len(summary.plots) <= 5 * MOST_PLOTS
    assert max(map(len, drawings)) < 250_000
    assert max(drawing.count('id="plot') for drawing in drawings) < 400
    assert len(summary.facts) <= VERDICT_LINES + 1
    assert max(len(table.lead) for table in summary.tables) <= MOST_LEADS + 1
    assert len(next(fact for fact in summary.facts if fact.label == "Confidence").details) <= MOST_CAVEATS + 1
    assert len(summary.tables) < 200
    assert (tmp_path / report.CSV).read_text().count("\n") == 5001
    shown = sum(len(table.rows) for table in summary.tables if not table.title.startswith(("Where", "Cost", "Steps")))
    assert shown == 5000 - sum(record.case == "train_step" for record in records)
    assert any("plots of scaling left out" in remark for remark in summary.remarks)


def test_one_cell_makes_a_page_too(tmp_path: Path) -> None:
    append(tmp_path, step_record(cell(1, 10, "single"), 0.1))
    summary = report.write_report(tmp_path)
    assert [fact.label for fact in summary.facts] == ["Throughput", "Efficiency", "Confidence", "Environment"]
    page = (tmp_path / report.HTML).read_text()
    assert page.count("<svg") == 1
    assert "100 samples/s" in page
    assert (tmp_path / report.CSV).read_text().count("\n") == 2


def test_options_are_no_numbers_and_stand_on_the_left() -> None:
    rows = (("1.5", "--amp off", "n/a", "-"), ("-2", "--amp bf16", "+3 %", ""))
    table = Table(title="t", columns=("a", "b", "c", "d"), rows=rows)
    assert [table.is_numeric(place) for place in range(4)] == [True, False, True, False]
