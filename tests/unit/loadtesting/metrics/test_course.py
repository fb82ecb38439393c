from collections.abc import Sequence
from itertools import pairwise

from opsplane_server.loadtesting.metrics.compaction import compact
from opsplane_server.loadtesting.metrics.course import CourseFold, Point, names_of
from opsplane_server.loadtesting.metrics.results import RunFold
from opsplane_server.loadtesting.metrics.rows import ExportRow

from tests.unit.loadtesting.comparison.courses import SECOND, START, rows


def course(measured: Sequence[ExportRow], *, generators: int = 1, most: int = 240) -> list[Point]:
    fold = CourseFold(START, generators, most)
    fold.add(measured)
    return fold.points()


def two_generators(seconds: int) -> list[ExportRow]:
    """Half a second apart."""
    second = [
        ExportRow("b", row.start_unix_nano + SECOND // 2, row.time_unix_nano + SECOND // 2, row.series, vus=10)
        for row in rows(2, seconds=seconds)
    ]
    both = [*rows(1, seconds=seconds), *second]
    return sorted(both, key=lambda row: row.time_unix_nano)


def requests(points: Sequence[Point]) -> int:
    return sum(point.total.requests for point in points)


def test_a_short_run_is_second_by_second() -> None:
    measured = rows(1, seconds=20)
    points = course(measured)
    assert len(points) == 20
    assert [point.total.requests for point in points] == [sum(s.requests for s in row.series) for row in measured]
    assert points[0].of_scenario("Light").requests + points[0].of_scenario("Heavy").requests == requests(points[:1])
    assert names_of(points, 0) in (["Light", "Heavy"], ["Heavy", "Light"])
    assert len(names_of(points, 1)) == 12


def test_a_long_run_has_bounded_points_and_the_same_figures() -> None:
    measured = rows(1, seconds=200, endpoints=2)
    points = course(measured, most=20)
    assert 20 <= len(points) < 40
    fold = RunFold(START)
    for row in measured:
        fold.add(row)
    results = fold.results()
    assert requests(points) == results.total.requests
    assert points[0].start == START
    assert all(before.end == after.start for before, after in pairwise(points))
    mean = sum(point.total.rate * point.seconds for point in points) / sum(point.seconds for point in points)
    assert results.total.tps is not None
    assert abs(mean / results.total.tps.avg - 1) < 0.01


def test_several_generators_lose_nothing() -> None:
    measured = two_generators(20)
    points = course(measured, generators=2)
    assert requests(points) == sum(series.requests for row in measured for series in row.series)
    assert len(points) in (20, 21)
    # One that fell silent is not waited for in vain.
    late = [row for row in measured if row.instance == "a" or row.time_unix_nano < START + 3 * SECOND]
    assert requests(course(late, generators=2)) == sum(series.requests for row in late for series in row.series)


def test_compacted_rows_give_points_as_long_as_they_are() -> None:
    for generators, measured in ((1, rows(1, seconds=60)), (2, two_generators(60))):
        points = course(compact(measured), generators=generators)
        assert requests(points) == requests(course(measured, generators=generators))
        assert all(point.total.response_time.count for point in points[:-1])


def test_nothing_was_called() -> None:
    assert course([]) == []
    assert course([ExportRow("a", START, START + SECOND, vus=1)]) == []
