"""Rows of a finished run are joined into longer ones: a tenth of the space, and the same figures.

Counts and sums stay exact, and histograms merge into the coarser scale of their parts, so a percentile moves by less
than a bucket. What is lost is only how fine the course of the run can be seen.
"""

from __future__ import annotations

from collections.abc import Iterable

from opsplane_server.loadtesting.metrics.figures import SECOND
from opsplane_server.loadtesting.metrics.histograms import merge
from opsplane_server.loadtesting.metrics.otlp import MAX_SERIES
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series, capped

COMPACT_SECONDS = 10

# Short runs are joined less: their course would be lost, and comparison with them needs slices of their time.
LEAST_WINDOWS = 40

# A gap between two rows stays one: time of which no figures came is not covered by a joined row.
_GAP = SECOND // 2


def joined_seconds(rows: Iterable[ExportRow]) -> int:
    """How long joined rows of a run may be: up to ten seconds, and a fortieth of the run."""
    times = [(row.start_unix_nano, row.time_unix_nano) for row in rows]
    if not times:
        return COMPACT_SECONDS
    span = max(end for _, end in times) - min(start for start, _ in times)
    return min(COMPACT_SECONDS, round(span / SECOND / LEAST_WINDOWS))


def compact(rows: Iterable[ExportRow], seconds: int = COMPACT_SECONDS) -> list[ExportRow]:
    """Joins neighbouring rows of each load generator up to a length, in the order of their ends."""
    groups: list[list[ExportRow]] = []
    open_groups: dict[str, list[ExportRow]] = {}
    for row in sorted(rows, key=lambda r: (r.time_unix_nano, r.instance)):
        group = open_groups.get(row.instance)
        if group is None or not _belongs(group, row, seconds):
            group = open_groups[row.instance] = []
            groups.append(group)
        group.append(row)
    return sorted((_joined(group) for group in groups), key=lambda r: (r.time_unix_nano, r.instance))


def _belongs(group: list[ExportRow], row: ExportRow, seconds: int) -> bool:
    # A row in which nothing was counted does not say where it starts.
    starts = row.start_unix_nano if row.start_unix_nano < row.time_unix_nano else group[-1].time_unix_nano
    return (
        row.time_unix_nano - group[0].start_unix_nano <= seconds * SECOND and starts - group[-1].time_unix_nano <= _GAP
    )


def _joined(group: list[ExportRow]) -> ExportRow:
    if len(group) == 1:
        return group[0]
    series: dict[tuple[str, str], list[Series]] = {}
    for row in group:
        for one in row.series:
            series.setdefault((one.scenario, one.name), []).append(one)
    return ExportRow(
        instance=group[0].instance,
        start_unix_nano=group[0].start_unix_nano,
        time_unix_nano=group[-1].time_unix_nano,
        series=capped(
            (
                Series(
                    scenario,
                    name,
                    sum(part.requests for part in parts),
                    sum(part.failed for part in parts),
                    merge(part.response_time for part in parts),
                )
                for (scenario, name), parts in series.items()
            ),
            MAX_SERIES,
        ),
        iterations=sum(row.iterations for row in group),
        dropped_iterations=sum(row.dropped_iterations for row in group),
        received_bytes=sum(row.received_bytes for row in group),
        sent_bytes=sum(row.sent_bytes for row in group),
        checks=sum(row.checks for row in group),
        checks_passed=sum(row.checks_passed for row in group),
        vus=group[-1].vus,
    )
