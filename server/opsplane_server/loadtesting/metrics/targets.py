"""Figures are judged: final ones by a run's targets, windows by those that must not be missed for long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from opsplane_server.loadtesting.definitions import LoadTest, Target, TargetMetric
from opsplane_server.loadtesting.k6.loads import planned_calls
from opsplane_server.loadtesting.metrics.figures import SECOND, CallStats, ResponseTimes
from opsplane_server.loadtesting.metrics.results import MissedTarget, ResultStats, RunResults, Verdict
from opsplane_server.loadtesting.metrics.windows import Window

# A run that could not start more than this share of its iterations did not put the load on that was asked for.
MAX_DROPPED_RATIO = 0.01

# Arrival rates are kept by a clock: who starts fewer calls than this share less does not keep up.
MAX_SHORTAGE_RATIO = 0.05

# The length of a load is known to a fraction of a window, so a rate is not known better than this.
TPS_TOLERANCE = 0.01

_MILLISECOND = timedelta(milliseconds=1)


def all_targets(test: LoadTest) -> list[Target]:
    """Everything that a run is judged by: its targets, `target_tps` and those of its scenarios."""
    return [*(target for target in test.targets if target.sustained is not None), *_final_targets(test)]


def in_words(target: Target) -> str:
    """The target as people read it: `p95 of login <= 500 ms for 30 s`."""
    unit = {TargetMetric.TPS: " calls/s", TargetMetric.ERROR_RATIO: ""}.get(target.metric, " ms")
    relation = ">=" if target.metric is TargetMetric.TPS else "<="
    of = f" of {target.scenario}" if target.scenario else ""
    lasting = f" for {target.sustained.total_seconds():g} s" if target.sustained is not None else ""
    return f"{target.metric.value}{of} {relation} {target.limit:g}{unit}{lasting}"


def judge(
    results: RunResults, test: LoadTest, sustained: Iterable[MissedTarget] = ()
) -> tuple[Verdict, tuple[MissedTarget, ...]]:
    """The verdict on a run that ended by itself, with the targets that it missed.

    INVALID when the load was not what was asked for, see `why_invalid`. `sustained` are those that `SustainedTargets`
    found.
    """
    stats = {scenario.name: scenario.stats for scenario in results.scenarios} | {"": results.total}
    missed = [*sustained]
    for target in _final_targets(test):
        actual = _final_figure(target.metric, stats.get(target.scenario))
        if actual is not None and _beyond(target, actual):
            missed.append(_missed(target, actual))
    if why_invalid(results, test):
        return Verdict.INVALID, tuple(missed)
    return (Verdict.FAILED if missed else Verdict.PASSED), tuple(missed)


def why_invalid(results: RunResults, test: LoadTest) -> str:
    """Why the figures of a run that ended by itself prove nothing, in words: they are of another load than asked for.

    Empty where they do: something was called, up to 1% of the iterations were dropped for want of virtual users, and
    arrival rates were kept up with but for 5%, so that the load generator was not the limit.
    """
    attempts = results.iterations + results.dropped_iterations
    if not (results.total.requests or attempts):
        return "nothing was called"
    if results.dropped_iterations > MAX_DROPPED_RATIO * attempts:
        share = f"{results.dropped_iterations / attempts:.1%}"
        return (
            f"{share} of the iterations could not start, for want of virtual users: the load was not what was asked for"
        )
    planned = planned_calls(test)
    # Calls under way at the end are not counted as iterations.
    under_way = results.vus.max if results.vus else 0.0
    if planned is not None and attempts + under_way < (1 - MAX_SHORTAGE_RATIO) * planned:
        return f"only {attempts:,} of {planned:,.0f} calls were made in time: the load generator was the limit"
    return ""


@dataclass(slots=True)
class _Streak:
    """How long a target has been beyond its limit without a break."""

    since: int = 0
    worst: float = 0.0
    missed: bool = False


class SustainedTargets:
    """Follows the targets that are missed only when beyond their limit for some time without a break.

    A window without calls breaks the streak of all but calls a second; missing figures break all. Calls a second
    count only from the first call and while there are virtual users afterwards: before and after the load there is
    nothing to reach.
    """

    def __init__(self, test: LoadTest) -> None:
        self._streaks = [(target, _Streak()) for target in test.targets if target.sustained is not None]
        self._before: Window | None = None
        self._called: set[str] = set()

    def __bool__(self) -> bool:
        """Whether there are any: without them no windows need to be made."""
        return bool(self._streaks)

    def watch(self, window: Window) -> list[tuple[Target, MissedTarget]]:
        """The targets that are missed since this window; each is returned once."""
        before, self._before = self._before, window
        found = []
        for target, streak in self._streaks:
            judged = window
            if target.metric is TargetMetric.TPS:
                # Only a later window with users shows that the load went on to the end of this one.
                if before is None or not window.vus:
                    streak.since = 0
                    continue
                judged = before
            if self._goes_on(target, streak, judged) and not streak.missed:
                streak.missed = True
                found.append((target, _missed(target, streak.worst)))
        return found

    def _goes_on(self, target: Target, streak: _Streak, window: Window) -> bool:
        actual = self._figure(target, window)
        if actual is None or not _beyond(target, actual):
            streak.since = 0
            return False
        if not streak.since or window.gap_seconds:
            streak.since, streak.worst = window.start_unix_nano, actual
        worst = min if target.metric is TargetMetric.TPS else max
        streak.worst = worst(streak.worst, actual)
        assert target.sustained is not None
        return window.end_unix_nano - streak.since >= target.sustained / timedelta(seconds=1) * SECOND

    def _figure(self, target: Target, window: Window) -> float | None:
        stats = _stats_of(target.scenario, window)
        if stats is not None and stats.requests:
            self._called.add(target.scenario)
        if target.metric is TargetMetric.TPS:
            if target.scenario not in self._called:
                return None
            return stats.tps if stats else 0.0
        if stats is None or not stats.requests:
            return None
        if target.metric is TargetMetric.ERROR_RATIO:
            return stats.error_ratio
        return _time(target.metric, stats.response_time)


def _stats_of(scenario: str, window: Window) -> CallStats | None:
    if not scenario:
        return window.total
    return next((one.stats for one in window.scenarios if one.name == scenario), None)


def _final_targets(test: LoadTest) -> list[Target]:
    """All targets that are judged once, over the whole run."""
    targets = [target for target in test.targets if target.sustained is None]
    if test.target_tps:
        targets.append(Target(TargetMetric.TPS, test.target_tps))
    for scenario in test.scenarios:
        if scenario.response_time_target is not None:
            limit = scenario.response_time_target / _MILLISECOND
            targets.append(Target(TargetMetric.RESPONSE_TIME_P95, limit, scenario.name))
        if scenario.error_ratio_target is not None:
            targets.append(Target(TargetMetric.ERROR_RATIO, scenario.error_ratio_target, scenario.name))
    return targets


def _final_figure(metric: TargetMetric, stats: ResultStats | None) -> float | None:
    """None where there is nothing to judge: without calls no response time was exceeded, but no rate reached."""
    if metric is TargetMetric.TPS:
        return stats.tps.avg if stats and stats.tps else 0.0
    if stats is None:
        return None
    if metric is TargetMetric.ERROR_RATIO:
        return stats.error_ratio.avg if stats.error_ratio else None
    return _time(metric, stats.response_time)


def _time(metric: TargetMetric, times: ResponseTimes | None) -> float | None:
    if times is None:
        return None
    return {
        TargetMetric.RESPONSE_TIME_P50: times.p50_ms,
        TargetMetric.RESPONSE_TIME_P90: times.p90_ms,
        TargetMetric.RESPONSE_TIME_P95: times.p95_ms,
        TargetMetric.RESPONSE_TIME_P99: times.p99_ms,
        TargetMetric.RESPONSE_TIME_AVG: times.avg_ms,
        TargetMetric.RESPONSE_TIME_MAX: times.max_ms,
    }[metric]


def _beyond(target: Target, actual: float) -> bool:
    if target.metric is TargetMetric.TPS:
        return actual < target.limit * (1 - TPS_TOLERANCE)
    return actual > target.limit


def _missed(target: Target, actual: float) -> MissedTarget:
    return MissedTarget(in_words(target), target.scenario, target.limit, actual)
