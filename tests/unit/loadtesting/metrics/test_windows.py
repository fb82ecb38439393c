import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.metrics.figures import SECOND
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series
from opsplane_server.loadtesting.metrics.windows import Window, WindowAssembler, WindowCursor

from tests.unit.loadtesting.metrics.samples import ORIGIN, histogram_of, row

Positioned = Sequence[tuple[str, ExportRow]]


def positioned(rows: Sequence[ExportRow]) -> Positioned:
    """Rows with the positions that a store would give, which sort as text."""
    return [(f"{i:04}", one) for i, one in enumerate(rows, 1)]


def after(rows: Positioned, cursor: str) -> Positioned:
    """What a store returns to who goes on with this cursor."""
    position = WindowCursor.decode(cursor).position
    return [(p, one) for p, one in rows if p > position]


def at(seconds: float) -> int:
    return ORIGIN + round(seconds * SECOND)


def watch(rows: Positioned, generators: int, cursor: str = "") -> list[Window]:
    """All windows of a run, each row arriving as soon as it is exported."""
    assembler = WindowAssembler(ORIGIN, generators, WindowCursor.decode(cursor))
    windows: list[Window] = []
    latest = 0
    for position, one in rows:
        latest = max(latest, one.time_unix_nano)
        windows += assembler.feed([(position, one)], now=latest)
    return [*windows, *assembler.finish()]


# --- one load generator ---


def test_each_row_is_a_window_at_once() -> None:
    first = row(0.2, 1.0, requests=80, failed=4, vus=None, response_time=histogram_of([10.0] * 80, 3))
    second = replace(
        row(1.0, 2.0, requests=120, response_time=histogram_of([20.0] * 120, 3)), received_bytes=5000, sent_bytes=100
    )
    assembler = WindowAssembler(ORIGIN)

    (one,) = assembler.feed([("1", first)], now=0)
    (two,) = assembler.feed([("2", second)], now=0)

    assert (one.index, one.start_unix_nano, one.end_unix_nano) == (0, at(0.2), at(1.0))
    assert (one.total.requests, one.total.failed_requests) == (80, 4)
    assert one.total.tps == pytest.approx(100)
    assert one.total.error_ratio == 0.05
    assert one.total.response_time is not None
    assert one.total.response_time.p99_ms == 10
    assert one.vus == 0
    assert [(s.name, s.stats) for s in one.scenarios] == [("load", one.total)]
    assert [(s.name, s.stats) for s in one.endpoints] == [("GET /", one.total)]
    assert (two.index, two.total_requests, two.total_failed_requests) == (1, 200, 4)
    assert (two.total.tps, two.received_bytes_per_second, two.sent_bytes_per_second) == (120, 5000, 100)
    assert (two.vus, two.gap_seconds) == (10, 0)


def test_calls_are_told_apart_by_scenario_and_by_endpoint() -> None:
    fast, slow = histogram_of([1.0] * 10, 3), histogram_of([9.0] * 10, 3)
    one = ExportRow(
        "a",
        at(0),
        at(1),
        (
            Series("buy", "GET /pets", 10, 0, fast),
            Series("buy", "POST /orders", 10, 5, slow),
            Series("look", "GET /pets", 20, 0, fast),
            Series("", "GET /login", 1, 0, fast),
        ),
    )

    (window,) = watch([("1", one)], 1)

    assert {s.name: s.stats.requests for s in window.scenarios} == {"buy": 20, "look": 20}
    assert {s.name: s.stats.requests for s in window.endpoints} == {
        "GET /login": 1,
        "GET /pets": 30,
        "POST /orders": 10,
    }
    assert window.total.requests == 41
    (buy,) = (s.stats for s in window.scenarios if s.name == "buy")
    assert buy.error_ratio == 0.25
    assert buy.response_time is not None
    assert (buy.response_time.min_ms, buy.response_time.avg_ms, buy.response_time.max_ms) == (1, 5, 9)


def test_rows_without_calls_are_zeros_and_missing_rows_a_gap() -> None:
    rows = [row(0, 1, requests=10), row(2, 2), row(5, 6, requests=10), row(6.7, 7, requests=10)]

    windows = watch(positioned(rows), 1)

    assert [w.total.requests for w in windows] == [10, 0, 10, 10]
    assert [w.gap_seconds for w in windows] == [0, 0, 3, 0]
    # The second says not where it starts, the last when its first call began: both go on where the one before ended.
    assert [(w.start_unix_nano, w.end_unix_nano) for w in windows] == [
        (at(0), at(1)),
        (at(1), at(2)),
        (at(5), at(6)),
        (at(6), at(7)),
    ]


def test_a_long_row_is_one_long_window() -> None:
    windows = watch(positioned([row(0, 1, requests=10), row(1, 11, requests=100)]), 1)

    assert [w.total.tps for w in windows] == [10, 10]
    assert windows[1].gap_seconds == 0


# --- several ---


def test_windows_of_two_load_generators_are_seconds_of_the_run() -> None:
    values = [10.0, 30.0]
    rows = []
    for second in range(4):
        for i, instance in enumerate("ab"):
            phase = 0.3 + 0.2 * i
            times = histogram_of([values[i]] * 100, 4)
            rows.append(
                row(second + phase, second + 1 + phase, requests=100, instance=instance, response_time=times, vus=5)
            )

    windows = watch(positioned(rows), 2)

    assert [w.index for w in windows] == [0, 1, 2, 3, 4]
    assert [w.generators for w in windows] == [2] * 5
    assert [w.total.tps for w in windows] == pytest.approx([120, 200, 200, 200, 80])
    assert [w.vus for w in windows] == [10] * 5
    assert sum(w.total.requests for w in windows) == 800
    assert windows[-1].total_requests == 800
    middle = windows[2].total.response_time
    assert middle is not None
    assert (middle.min_ms, middle.avg_ms, middle.max_ms) == (10, 20, 30)


def test_a_window_closes_as_soon_as_all_have_passed_its_end() -> None:
    assembler = WindowAssembler(ORIGIN, 2)

    assert list(assembler.feed([("1", row(0, 1.2, requests=1))], now=at(1.2))) == []
    (window,) = assembler.feed([("2", row(0, 1.1, requests=1, instance="b"))], now=at(1.2))

    assert (window.index, window.generators, window.end_unix_nano) == (0, 2, at(1))


def test_a_silent_load_generator_delays_windows_by_two_seconds_at_most() -> None:
    assembler = WindowAssembler(ORIGIN, 2)
    list(assembler.feed([("1", row(0, 1, requests=1)), ("2", row(0, 1, requests=1, instance="b"))], now=at(1)))

    assert list(assembler.feed([("3", row(1, 2, requests=1))], now=at(2))) == []
    assert list(assembler.advance(at(3.9))) == []
    (window,) = assembler.advance(at(4))

    assert (window.index, window.generators, window.total.requests) == (1, 1, 1)


def test_an_old_run_is_replayed_without_waiting() -> None:
    rows = [row(i, i + 1, requests=1) for i in range(10)]
    rows.insert(1, row(0, 1, requests=1, instance="b"))
    assembler = WindowAssembler(ORIGIN, 2)

    replayed = list(assembler.feed(positioned(rows), now=at(3600)))

    assert [w.index for w in replayed] == list(range(8))
    assert [w.index for w in assembler.finish()] == [8, 9]


def test_a_clock_that_runs_ahead_does_not_push_the_others_out() -> None:
    assembler = WindowAssembler(ORIGIN, 2)
    windows: list[Window] = []
    for i in range(5):
        windows += assembler.feed([(f"{i}a", row(i + 100, i + 101, requests=1, instance="ahead"))], now=at(i + 1))
        windows += assembler.feed([(f"{i}b", row(i, i + 1, requests=1))], now=at(i + 1))

    assert [(w.index, w.total.requests) for w in windows] == [(i, 1) for i in range(5)]
    assert len(list(assembler.finish())) == 5


def test_what_comes_too_late_is_left_out() -> None:
    assembler = WindowAssembler(ORIGIN, 2)
    list(assembler.feed([("1", row(0, 1, requests=5))], now=at(1)))
    (window,) = assembler.advance(at(3))
    late = list(assembler.feed([("2", row(0, 1, requests=5, instance="b"))], now=at(3)))

    assert window.total.requests == 5
    assert late == []
    assert list(assembler.finish()) == []


def test_nothing_is_invented_where_nothing_came() -> None:
    rows = [row(0, 1, requests=1), row(0, 1, requests=1, instance="b")]
    rows += [row(5, 6, requests=1), row(5, 6, requests=1, instance="b")]

    windows = watch(positioned(rows), 2)

    assert [(w.index, w.gap_seconds) for w in windows] == [(0, 0), (5, 4)]


# --- going on after a lost stream ---


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, list[ExportRow]]:
    """Rows of one to three load generators that export every second, with jitter, in the order of arrival."""
    generators = draw(st.integers(1, 3))
    jitter = st.floats(-0.05, 0.05)
    arrivals = []
    for instance in range(generators):
        end = draw(st.floats(0.0, 1.0))
        for _ in range(draw(st.integers(1, 8))):
            start, end = end, end + 1 + draw(jitter)
            calls = draw(st.integers(0, 50))
            one = row(start, end, requests=calls, failed=min(calls, 2), instance=str(instance))
            arrivals.append((end + draw(st.floats(0.0, 0.3)), one))
    # An instance's own rows never overtake one another.
    return generators, [one for _, one in sorted(arrivals, key=lambda arrival: arrival[0])]


@given(runs(), st.data())
def test_a_watcher_that_comes_back_misses_no_window_and_sees_none_twice(
    run: tuple[int, list[ExportRow]], data: st.DataObject
) -> None:
    generators, rows = run
    stored = positioned(rows)
    whole = watch(stored, generators)

    seen: list[Window] = []
    cursor = ""
    while True:
        windows = watch(after(stored, cursor), generators, cursor)
        if not windows:
            break
        received = windows[: data.draw(st.integers(1, len(windows)))]
        seen += received
        cursor = received[-1].cursor

    assert [replace(w, cursor="") for w in seen] == [replace(w, cursor="") for w in whole]


@given(runs())
def test_all_calls_are_in_windows(run: tuple[int, list[ExportRow]]) -> None:
    generators, rows = run
    windows = watch(positioned(rows), generators)
    calls = sum(series.requests for one in rows for series in one.series)

    assert sum(w.total.requests for w in windows) == calls
    assert sum(w.total.tps * (w.end_unix_nano - w.start_unix_nano) / SECOND for w in windows) == pytest.approx(calls)
    assert all(one.end_unix_nano <= two.start_unix_nano for one, two in pairwise(windows))
    assert [w.index for w in windows] == sorted({w.index for w in windows})


def test_pending_rows_are_read_again_by_who_comes_back() -> None:
    stored = positioned(
        [
            row(0.0, 1.2, requests=12),
            row(0.0, 1.1, requests=11, instance="b"),
            row(1.2, 2.2, requests=10),
        ]
    )
    assembler = WindowAssembler(ORIGIN, 2)
    (window,) = assembler.feed(stored, now=at(2.2))

    # The first two rows are part of the next window too.
    assert WindowCursor.decode(window.cursor).position == ""
    assert [w.index for w in watch(stored, 2, window.cursor)] == [1, 2]


def test_cursors_are_short() -> None:
    cursor = WindowCursor("ffffffffffffffff-7fffffffffffffff", 2**31, 2**63 - 1, 2**63 - 1, 2**63 - 1)

    assert len(cursor.encode()) <= 150
    assert WindowCursor.decode(cursor.encode()) == cursor


@given(st.text(max_size=60))
def test_other_cursors_are_refused(text: str) -> None:
    with suppress(InvalidArgument):
        cursor = WindowCursor.decode(text)
        assert text in ("", cursor.encode())


@pytest.mark.parametrize(
    "cursor", ["x", "1~1~1~1", "1~1~1~1~1~1", "1~+1~1~1~1", "1~-1~1~1~1", "1~1~1~ 1~1", "1~1~1~0~x"]
)
def test_malformed_cursors_are_refused(cursor: str) -> None:
    with pytest.raises(InvalidArgument, match="cursor"):
        WindowCursor.decode(cursor)


def test_random_order_between_instances_loses_no_call() -> None:
    rng = random.Random(3)  # noqa: S311
    rows = [row(i, i + 1, requests=7, instance=str(g)) for g in range(20) for i in range(5)]
    rows.sort(key=lambda one: (one.time_unix_nano, rng.random()))

    windows = watch(positioned(rows), 20)

    assert [(w.total.requests, round(w.total.tps, 6), w.generators) for w in windows] == [(140, 140, 20)] * 5
