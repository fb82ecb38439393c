"""What is written to InfluxDB: points in line protocol. docs/influxdb.md tells users of them.

    opsplane_calls    a row's calls of one series; tags scenario, endpoint, generator
    opsplane_run      a row's other figures, and all its calls; tag generator
    opsplane_results  an ended run, at its end
    opsplane_history  rows as PostgreSQL keeps them, to be read back

All carry the tags project and run. Times are those of the rows, but for `opsplane_history`: there row `n` stands `n`
nanoseconds after the creation of its run, so that a range of time is a range of rows, in their order and without a gap.
How many there are is written at the creation itself, once the run has ended.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Final

from influxdb_client.client.write.point import Point

from opsplane_server.errors import DataLoss
from opsplane_server.loadtesting import names
from opsplane_server.loadtesting.history.port import Placed
from opsplane_server.loadtesting.history.series import SeriesNames
from opsplane_server.loadtesting.metrics.figures import SECOND, ResponseTimes, response_times
from opsplane_server.loadtesting.metrics.histograms import merge
from opsplane_server.loadtesting.metrics.packing import pack, unpack
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series
from opsplane_server.loadtesting.model import Run
from opsplane_server.loadtesting.watch import origin
from opsplane_server.storage.followers import Position

CALLS: Final = "opsplane_calls"
RUN: Final = "opsplane_run"
RESULTS: Final = "opsplane_results"
HISTORY: Final = "opsplane_history"

ROWS: Final = "rows"
_PACKED: Final = "packed_"

# InfluxDB promises to take strings of 64 kB. Large rows are cut into several fields.
_PIECE: Final = 60_000
_LARGEST: Final = 2**63 - 1


def tags(name: str) -> dict[str, str]:
    """What all points of a run are found by."""
    project, run = names.ids(name)
    return {"project": project, "run": run}


def of_rows(run: Run, first: int, rows: Sequence[Placed], series_names: SeriesNames) -> Iterator[str]:
    """The points of rows that are numbered from `first`. It takes some time for many series."""
    of_run = tags(run.name)
    for number, (position, row) in enumerate(rows, first):
        of_row = of_run | {"generator": row.instance}
        series = series_names.apply(row.series)
        for one in series:
            of_series = of_row | {"scenario": one.scenario, "endpoint": one.name}
            yield _line(CALLS, of_series, _calls(row, [one]), row.time_unix_nano)
        yield _line(RUN, of_row, _calls(row, series) | _rest(row), row.time_unix_nano)
        yield _line(HISTORY, of_run, _packed(number, position, row), origin(run) + number)


def of_end(run: Run, rows: int) -> Iterator[str]:
    """The points of a run that has ended with so many rows."""
    yield _line(HISTORY, tags(run.name), {ROWS: rows}, origin(run))
    if run.outcome is None or run.end_time is None:
        return
    results = run.outcome.results
    total = results.total
    fields: dict[str, object] = {
        "title": run.title,
        "state": run.state.value,
        "verdict": run.verdict.value if run.verdict else "",
        "seconds": results.duration / timedelta(seconds=1),
        "requests": total.requests,
        "failed": total.failed_requests,
        "rate": total.tps.avg if total.tps else 0.0,
        "iterations": results.iterations,
        "dropped_iterations": results.dropped_iterations,
        "received_bytes": results.received_bytes,
        "sent_bytes": results.sent_bytes,
    }
    if results.vus:
        fields["vus"] = results.vus.max
    end = int(run.end_time.timestamp() * 1_000_000) * 1000
    yield _line(RESULTS, tags(run.name), fields | _times(total.response_time), end)


def packed_row(values: Mapping[str, object]) -> tuple[int, Position, ExportRow]:
    """Number, position and row of a point of `opsplane_history`. Raises DataLoss when it is damaged."""
    try:
        pieces = sorted(
            (int(name.removeprefix(_PACKED)), str(value))
            for name, value in values.items()
            if name.startswith(_PACKED) and value is not None
        )
        number, xid, row_id = (int(str(values[name])) for name in ("number", "xid", "id"))
        data = base64.b64decode("".join(piece for _, piece in pieces), validate=True)
    except (KeyError, ValueError) as error:
        raise DataLoss("figures in InfluxDB are damaged", reason="WINDOW_DAMAGED") from error
    return number, Position(xid, row_id), unpack(data)


def _packed(number: int, position: Position, row: ExportRow) -> dict[str, object]:
    text = base64.b64encode(pack(row)).decode()
    fields: dict[str, object] = {"number": number, "xid": position.xid, "id": position.id}
    return fields | {f"{_PACKED}{at // _PIECE}": text[at : at + _PIECE] for at in range(0, len(text), _PIECE)}


def _calls(row: ExportRow, series: Sequence[Series]) -> dict[str, object]:
    requests = sum(one.requests for one in series)
    seconds = (row.time_unix_nano - row.start_unix_nano) / SECOND
    calls: dict[str, object] = {
        "requests": requests,
        "failed": sum(one.failed for one in series),
        "rate": requests / seconds if seconds > 0 else 0.0,
    }
    return calls | _times(response_times(merge(one.response_time for one in series)))


def _times(times: ResponseTimes | None) -> dict[str, object]:
    if times is None:
        return {}
    return {
        "min_ms": times.min_ms,
        "avg_ms": times.avg_ms,
        "max_ms": times.max_ms,
        "p50_ms": times.p50_ms,
        "p90_ms": times.p90_ms,
        "p95_ms": times.p95_ms,
        "p99_ms": times.p99_ms,
    }


def _rest(row: ExportRow) -> dict[str, object]:
    rest: dict[str, object] = {
        "iterations": row.iterations,
        "dropped_iterations": row.dropped_iterations,
        "received_bytes": row.received_bytes,
        "sent_bytes": row.sent_bytes,
        "checks": row.checks,
        "checks_passed": row.checks_passed,
    }
    return rest if row.vus is None else rest | {"vus": row.vus}


def _line(measurement: str, tag_values: Mapping[str, str], fields: Mapping[str, object], time: int) -> str:
    point = Point(measurement).time(time)
    for tag, value in tag_values.items():
        point.tag(tag, value)
    for name, figure in fields.items():
        point.field(name, min(figure, _LARGEST) if isinstance(figure, int) else figure)
    return str(point.to_line_protocol())
