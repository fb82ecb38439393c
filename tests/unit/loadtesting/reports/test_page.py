from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.loadtesting.reports.charts import Line, chart, clock, ranges, short_number, sparkline, ticks_to
from opsplane_server.loadtesting.reports.page import page

from tests.unit.loadtesting.comparison.courses import rows
from tests.unit.loadtesting.reports.contents import BASELINE, content

# Elements that are not closed.
VOID = {"meta", "br"}


class Outline(HTMLParser):
    """What elements a page has, and whether each that opens is closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, _ in attrs:
            assert not name.startswith("on"), "pages have no scripts"

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return parser


def test_page_is_whole_and_fetches_nothing() -> None:
    html = page(content(baseline=True))
    found = outline(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.seen)
    assert "url(" not in html
    assert "@import" not in html
    text = " ".join(found.text)
    for words in ("Nightly", "GET /11", "Light", "missed", "kept", "a note", f"Compared with {BASELINE}", "worse"):
        assert words in text
    assert found.seen.count("figure") == 5


def test_run_without_calls_has_a_page() -> None:
    found = outline(page(content([])))
    assert "figure" not in found.seen


def test_long_run_has_a_page_of_bounded_size() -> None:
    html = page(content(rows(1, seconds=900, calls=3)))
    outline(html)
    assert len(html) < 600_000


def test_chart_breaks_where_nothing_is_known() -> None:
    svg = chart("Times", "ms", [0.5, 1.5, 2.5, 3.5], [Line("p50", "p50", [1.0, None, 2.0, 3.0])])
    [path] = re.findall(r'<path class="line p50" d="([^"]+)"', svg)
    assert path.count("M") == 2
    assert path.count("L") == 1
    assert "nan" not in svg.lower()


def test_sparkline_keeps_its_peak() -> None:
    values: list[float | None] = [1.0] * 500
    values[250] = 10.0
    [path] = re.findall(r'd="([^"]+)"', sparkline(values, "rate"))
    heights = [float(place.split(" ")[1].partition("h")[0]) for place in re.split("[ML]", path)[1:]]
    assert min(heights) == 2.0
    assert len(heights) <= 60
    assert "path" in sparkline([None, None], "rate")


def test_names_are_escaped_in_charts() -> None:
    svg = ranges([("GET /<x>&\"'", 1.0, 2.0, 3.0)])
    assert "<x>" not in svg
    outline(svg)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65, "1:05"), (3_725, "1:02:05")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.25, "0.25"), (1500, "1.5k"), (2e6, "2M")])
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text


@given(st.floats(1e-6, 1e12))
def test_ticks_reach_the_highest_value(highest: float) -> None:
    ticks = ticks_to(highest)
    assert ticks[0] == 0.0
    assert ticks[-1] >= highest * (1 - 1e-6)
    assert 3 <= len(ticks) <= 7
