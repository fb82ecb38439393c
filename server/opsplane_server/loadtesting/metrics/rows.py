"""Rows: what one load generator counted in about a second. They are what is stored of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from opsplane_server.loadtesting.metrics.histograms import EMPTY, Histogram, merge

OTHER = "other"


@dataclass(frozen=True, slots=True)
class Series:
    """Calls of one scenario under one name, in a row. Both are empty where the script has none.

    k6 exports its metrics one after the other while samples go on coming, so `failed` or the histogram may hold a
    call that `requests` holds in the next row only. Sums over a run agree.
    """

    scenario: str
    name: str
    requests: int = 0
    failed: int = 0
    response_time: Histogram = EMPTY  # milliseconds


@dataclass(frozen=True, slots=True)
class ExportRow:
    """An export of a load generator. Times are nanoseconds since 1970, by its clock.

    It covers `start_unix_nano` to `time_unix_nano`; they are equal when nothing was counted, for then the export does
    not say where it starts: where the one before ended. `vus` is None until k6 has said, after about a second.
    """

    instance: str
    start_unix_nano: int
    time_unix_nano: int
    series: tuple[Series, ...] = ()
    iterations: int = 0
    dropped_iterations: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    checks: int = 0
    checks_passed: int = 0
    vus: int | None = None


def capped(series: Iterable[Series], limit: int) -> tuple[Series, ...]:
    """At most `limit` series and one for each of up to `limit` scenarios: the busiest as they are, the rest joined.

    The rest of a scenario becomes its series `other`, so that figures of scenarios stay whole; what is beyond
    `limit` scenarios becomes `other` of scenario `other`.
    """
    ranked = sorted(series, key=lambda s: (-s.requests, s.scenario, s.name))
    if len(ranked) <= limit:
        return tuple(ranked)
    rest: dict[str, list[Series]] = {}
    for one in ranked[limit:]:
        scenario = one.scenario if one.scenario in rest or len(rest) < limit else OTHER
        rest.setdefault(scenario, []).append(one)
    # A script may call something `other` itself.
    kept = []
    for one in ranked[:limit]:
        if one.name == OTHER and one.scenario in rest:
            rest[one.scenario].append(one)
        else:
            kept.append(one)
    return (*kept, *(_joined(scenario, parts) for scenario, parts in rest.items()))


def _joined(scenario: str, parts: list[Series]) -> Series:
    return Series(
        scenario=scenario,
        name=OTHER,
        requests=sum(s.requests for s in parts),
        failed=sum(s.failed for s in parts),
        response_time=merge(s.response_time for s in parts),
    )
