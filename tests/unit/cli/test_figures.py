import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane.cli.figures import Progress, milliseconds, percent, rate, sparkline
from opsplane.cli.output import clean
from opsplane.cli.results import history_table, print_results
from opsplane.cli.views import LiveView
from opsplane.loadtesting.v1 import runs_pb2
from rich.console import Console

from tests.unit.cli.fake_servicer import run, script


def rendered(thing: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160, force_terminal=False).print(thing)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (milliseconds(0.4239), "0.42 ms"),
        (milliseconds(12.34), "12.3 ms"),
        (milliseconds(321.7), "322 ms"),
        (milliseconds(1250), "1.25 s"),
        (percent(0), "0%"),
        (percent(0.00001), "<0.01%"),
        (percent(0.0123), "1.23%"),
        (percent(1), "100.0%"),
        (rate(7.305), "7.30"),
        (rate(842.04), "842.0"),
        (rate(12403.2), "12,403"),
    ],
)
def test_figures_are_written_with_the_digits_that_count(text: str, expected: str) -> None:
    assert text == expected


@given(st.lists(st.floats(min_value=0, max_value=1e12), max_size=2000), st.integers(min_value=1, max_value=80))
def test_sparkline_fits_and_keeps_its_peak(values: list[float], width: int) -> None:
    bars = sparkline(values, width)
    assert len(bars) <= width
    assert bool(bars) == bool(values)
    if values and max(values) > 0:
        assert "█" in bars


def test_progress_follows_the_run() -> None:
    progress = Progress()
    assert progress.done_ratio is None
    for update in script()[:3]:
        progress.add(update)
    assert progress.elapsed.total_seconds() == 2
    assert progress.done_ratio == 0.5
    assert progress.endpoints["GET /pets"].requests == 20
    assert progress.endpoints["GET /pets"].failed == 2
    line = progress.line()
    for part in ("2s", "50%", "vus 3", "tps 10.0", "p95 4.00 ms", "errors 10.0%", "total 20"):
        assert part in line


def test_an_endpoint_that_was_not_called_lately_shows_no_old_figures() -> None:
    progress = Progress()
    updates = script()
    progress.add(updates[1])
    updates[2].window.ClearField("endpoints")
    progress.add(updates[2])
    assert progress.endpoints["GET /pets"].requests == 10
    assert progress.endpoints["GET /pets"].last.requests == 0


def test_live_picture_from_start_to_end() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    with LiveView(console) as view:
        assert "connecting" in rendered(view.picture())
        for update in script()[:3]:
            view.show(update)
        picture = rendered(view.picture())
        for part in ("Nightly", "RUNNING", "50%", "2s of 4s", "GET /pets", "p99 8.00 ms", "errors 10.0%"):
            assert part in picture
        view.note("connection lost")
        assert "connection lost" in rendered(view.picture())
        view.show(script()[3])
        assert "connection lost" not in rendered(view.picture())


def test_results_say_verdict_reasons_and_figures() -> None:
    ended = run(runs_pb2.RUN_STATE_FAILED, runs_pb2.VERDICT_FAILED)
    ended.failure_message = "k6 was killed"
    ended.failure_reason = "GENERATOR_LOST"
    ended.missed_targets.add(target="p95 of all <= 1 ms", limit=1, actual=4.25)
    ended.notes.append("took long")
    ended.results.incomplete_reason = "the last second is missing"
    stream = io.StringIO()
    print_results(Console(file=stream, width=200), ended)
    for part in (
        "FAILED", "k6 was killed (GENERATOR_LOST)", "p95 of all <= 1 ms, measured 4.25", "took long",
        "the last second is missing", "GET /pets", "4.00 ms",
    ):  # fmt: skip
        assert part in stream.getvalue()


def test_history_has_a_row_for_runs_with_and_without_results() -> None:
    text = rendered(
        history_table(
            [run(runs_pb2.RUN_STATE_RUNNING), run(runs_pb2.RUN_STATE_COMPLETED, runs_pb2.VERDICT_PASSED)], full=True
        )
    )
    assert text.count("shop/nightly") == 2
    assert "PASSED" in text


@given(st.text())
def test_clean_text_can_not_drive_a_terminal(text: str) -> None:
    assert not set(clean(text)) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}


def test_titles_are_shown_without_control_characters() -> None:
    ended = run(runs_pb2.RUN_STATE_COMPLETED, runs_pb2.VERDICT_PASSED)
    ended.title = "evil \x1b]0;owned\x07 [red]title[/red]"
    stream = io.StringIO()
    print_results(Console(file=stream, width=200), ended)
    assert "\x1b]" not in stream.getvalue()
    assert "[red]title[/red]" in stream.getvalue()
