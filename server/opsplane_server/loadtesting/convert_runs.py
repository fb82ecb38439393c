"""proto <-> domain: runs, their windows and results."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp
from opsplane.loadtesting.v1 import metrics_pb2, reports_pb2, runs_pb2

from opsplane_server.loadtesting import definitions
from opsplane_server.loadtesting.convert import (
    credentials_from_proto,
    scenario_from_proto,
    scenario_to_proto,
    target_from_proto,
    target_to_proto,
)
from opsplane_server.loadtesting.convert_users import task_endpoints, user_load_from_proto, user_load_to_proto
from opsplane_server.loadtesting.k6.loads import target_rate
from opsplane_server.loadtesting.metrics.figures import CallStats, ResponseTimes
from opsplane_server.loadtesting.metrics.results import MissedTarget, Range, ResultStats, RunResults, Verdict
from opsplane_server.loadtesting.metrics.windows import SeriesStats, Window
from opsplane_server.loadtesting.model import LogLine, Run, RunPlan, RunState
from opsplane_server.loadtesting.watch import RunUpdate
from opsplane_server.rpc.times import duration, timestamp


def endpoint_fields(message: runs_pb2.Run) -> dict[str, str]:
    """Names of the endpoints that the load calls, by the field of a request that has them."""
    scenarios = {f"run.scenarios[{i}].endpoint": scenario.endpoint for i, scenario in enumerate(message.scenarios)}
    return scenarios | task_endpoints(message.user_load)


def request_from_proto(message: runs_pb2.Run, endpoints: Mapping[str, tuple[definitions.Endpoint, str]]) -> RunPlan:
    """What the caller asks for; `endpoints` are those that its load names, with their specifications' base URLs.

    Calls go to the run's base URL, else to that of the specification of each endpoint. Raises InvalidArgument as
    `convert_users.user_load_from_proto`.
    """
    first = next(iter(endpoint_fields(message).values()), "")
    base_url = message.base_url or (endpoints[first][1] if first else "")
    scenarios = []
    for scenario in message.scenarios:
        endpoint, its_base_url = endpoints[scenario.endpoint]
        if its_base_url != base_url and not endpoint.server_url:
            endpoint = replace(endpoint, server_url=its_base_url)
        scenarios.append(scenario_from_proto(scenario, endpoint))
    return RunPlan(
        test=definitions.LoadTest(
            title=message.title,
            base_url=base_url,
            scenarios=tuple(scenarios),
            target_tps=message.target_tps,
            targets=tuple(target_from_proto(target) for target in message.targets),
            credentials=credentials_from_proto(message.credentials),
            base_url_overridden=bool(message.base_url),
        ),
        endpoints=tuple(scenario.endpoint for scenario in message.scenarios),
        users=user_load_from_proto(message.user_load, endpoints) if message.HasField("user_load") else None,
        script=message.script,
        generators=message.generators or 1,
        timeout=message.timeout.ToTimedelta() if message.HasField("timeout") else None,
        labels=dict(message.labels),
    )


def asked_for(run: Run) -> runs_pb2.Run:
    """The run as it was asked for, without credentials: what CreateRun takes to run it again."""
    plan = run.plan
    return runs_pb2.Run(
        title=run.title,
        description=run.description,
        target_tps=plan.test.target_tps,
        scenarios=[
            scenario_to_proto(scenario, endpoint)
            for scenario, endpoint in zip(plan.test.scenarios, plan.endpoints, strict=True)
        ],
        user_load=user_load_to_proto(plan.users) if plan.users else None,
        script=plan.script,
        base_url=plan.test.base_url if plan.test.base_url_overridden else "",
        targets=[target_to_proto(target) for target in plan.test.targets],
        generators=plan.generators,
        timeout=duration(plan.timeout),
        labels=plan.labels,
    )


def script_to_proto(run: Run, script: str) -> runs_pb2.GetRunScriptResponse:
    """What a run executed."""
    return runs_pb2.GetRunScriptResponse(
        script=script, sha256=hashlib.sha256(script.encode()).hexdigest(), run=asked_for(run)
    )


def job_to_proto(run: Run, generator: str, *, overdue: bool) -> reports_pb2.Job:
    """A load generator at work."""
    return reports_pb2.Job(
        job=generator,
        run=run.name,
        title=run.title,
        provider="local",
        start_time=timestamp(run.start_time),
        overdue=overdue,
    )


def log_line_to_proto(line: LogLine) -> runs_pb2.RunLogLine:
    """A line of a run's log."""
    return runs_pb2.RunLogLine(
        log_time=timestamp(line.time), source=line.source, level=line.level, message=line.message
    )


STATES = {state: runs_pb2.RunState.Value(f"RUN_STATE_{state.value}") for state in RunState}
VERDICTS = {verdict: runs_pb2.Verdict.Value(f"VERDICT_{verdict.value}") for verdict in Verdict}


def run_to_proto(run: Run, *, full: bool = True) -> runs_pb2.Run:
    """The run; in brief without its load, and with results of the whole alone."""
    message = asked_for(run) if full else runs_pb2.Run(title=run.title, target_tps=run.plan.test.target_tps)
    message.MergeFrom(
        runs_pb2.Run(
            name=run.name,
            state=STATES[run.state],
            verdict=VERDICTS[run.verdict] if run.verdict else runs_pb2.VERDICT_UNSPECIFIED,
            failure_message=run.failure_message,
            failure_reason=run.failure_reason,
            create_time=timestamp(run.create_time),
            start_time=timestamp(run.start_time),
            end_time=timestamp(run.end_time),
            planned_duration=duration(run.plan.planned_duration),
            creator=run.creator,
            notes=run.notes,
            generator_version=run.generator_version,
            trace_id=run.trace_id,
        )
    )
    if run.outcome is not None:
        message.missed_targets.extend(_missed(target) for target in run.outcome.missed_targets)
        message.results.CopyFrom(_results(run, run.outcome.results, full=full))
    return message


def _missed(target: MissedTarget) -> metrics_pb2.MissedTarget:
    return metrics_pb2.MissedTarget(
        target=target.target, scenario=target.scenario, limit=target.limit, actual=target.actual
    )


def _results(run: Run, results: RunResults, *, full: bool) -> metrics_pb2.RunResults:
    rates = {scenario.name: target_rate(run.plan.test, scenario) for scenario in run.plan.test.scenarios}
    endpoints = {
        scenario.name: endpoint for scenario, endpoint in zip(run.plan.test.scenarios, run.plan.endpoints, strict=True)
    }
    return metrics_pb2.RunResults(
        duration=duration(results.duration),
        total=_result_stats(results.total),
        scenarios=[
            metrics_pb2.ScenarioResults(
                name=one.name,
                endpoint=endpoints.get(one.name, ""),
                duration=duration(one.duration),
                stats=_result_stats(one.stats),
                target_tps=rates.get(one.name, 0.0),
            )
            for one in results.scenarios
            if full
        ],
        endpoints=[
            metrics_pb2.EndpointResults(name=one.name, stats=_result_stats(one.stats))
            for one in results.endpoints
            if full
        ],
        vus=_range(results.vus),
        iterations=results.iterations,
        dropped_iterations=results.dropped_iterations,
        received_bytes=results.received_bytes,
        sent_bytes=results.sent_bytes,
        checks_passed=results.checks_passed,
        checks_failed=results.checks_failed,
        incomplete_reason=results.incomplete_reason,
        percentile_error_ratio=results.percentile_error_ratio,
    )


def _result_stats(stats: ResultStats) -> metrics_pb2.ResultStats:
    return metrics_pb2.ResultStats(
        requests=stats.requests,
        failed_requests=stats.failed_requests,
        tps=_range(stats.tps),
        response_time=_response_times(stats.response_time),
        error_ratio=_range(stats.error_ratio),
    )


def _range(figures: Range | None) -> metrics_pb2.Range | None:
    return None if figures is None else metrics_pb2.Range(min=figures.min, avg=figures.avg, max=figures.max)


def update_to_proto(update: RunUpdate) -> runs_pb2.WatchRunResponse:
    """A message of WatchRun."""
    if update.window is not None:
        return runs_pb2.WatchRunResponse(window=window_to_proto(update.window), cursor=update.cursor)
    assert update.run is not None
    return runs_pb2.WatchRunResponse(run=run_to_proto(update.run), cursor=update.cursor)


def window_to_proto(window: Window) -> metrics_pb2.Window:
    """A window."""
    return metrics_pb2.Window(
        index=window.index,
        start_time=_moment(window.start_unix_nano),
        end_time=_moment(window.end_unix_nano),
        generators=window.generators,
        total=_call_stats(window.total),
        scenarios=[_series(series) for series in window.scenarios],
        endpoints=[_series(series) for series in window.endpoints],
        vus=window.vus,
        iterations=window.iterations,
        dropped_iterations=window.dropped_iterations,
        received_bytes_per_second=window.received_bytes_per_second,
        sent_bytes_per_second=window.sent_bytes_per_second,
        total_requests=window.total_requests,
        total_failed_requests=window.total_failed_requests,
        gap_seconds=window.gap_seconds,
    )


def _series(series: SeriesStats) -> metrics_pb2.SeriesStats:
    return metrics_pb2.SeriesStats(name=series.name, stats=_call_stats(series.stats))


def _call_stats(stats: CallStats) -> metrics_pb2.CallStats:
    return metrics_pb2.CallStats(
        requests=stats.requests,
        failed_requests=stats.failed_requests,
        tps=stats.tps,
        error_ratio=stats.error_ratio,
        response_time=_response_times(stats.response_time),
    )


def _response_times(times: ResponseTimes | None) -> metrics_pb2.ResponseTimes | None:
    if times is None:
        return None
    return metrics_pb2.ResponseTimes(
        min_ms=times.min_ms,
        avg_ms=times.avg_ms,
        max_ms=times.max_ms,
        p50_ms=times.p50_ms,
        p90_ms=times.p90_ms,
        p95_ms=times.p95_ms,
        p99_ms=times.p99_ms,
    )


def _moment(unix_nano: int) -> Timestamp:
    moment = Timestamp()
    moment.FromNanoseconds(unix_nano)
    return moment
