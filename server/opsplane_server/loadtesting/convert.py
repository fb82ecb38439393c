"""proto <-> domain: projects, specifications, what a run is asked to do. `convert_runs` has runs and their figures."""

from __future__ import annotations

import json

from opsplane.loadtesting.v1 import projects_pb2, runs_pb2, scenarios_pb2, specs_pb2

from opsplane_server.loadtesting import definitions
from opsplane_server.loadtesting.definitions import Executor, ParameterLocation, TargetMetric
from opsplane_server.loadtesting.model import Endpoint, Project, Spec
from opsplane_server.rpc import etags
from opsplane_server.rpc.times import duration, timestamp

EXECUTORS = {
    scenarios_pb2.EXECUTOR_CONSTANT_VUS: Executor.CONSTANT_VUS,
    scenarios_pb2.EXECUTOR_RAMPING_VUS: Executor.RAMPING_VUS,
    scenarios_pb2.EXECUTOR_CONSTANT_ARRIVAL_RATE: Executor.CONSTANT_ARRIVAL_RATE,
    scenarios_pb2.EXECUTOR_RAMPING_ARRIVAL_RATE: Executor.RAMPING_ARRIVAL_RATE,
    scenarios_pb2.EXECUTOR_PER_VU_ITERATIONS: Executor.PER_VU_ITERATIONS,
    scenarios_pb2.EXECUTOR_SHARED_ITERATIONS: Executor.SHARED_ITERATIONS,
}
EXECUTOR_NUMBERS = {executor: number for number, executor in EXECUTORS.items()}

METRICS = {
    scenarios_pb2.TARGET_METRIC_RESPONSE_TIME_P50: TargetMetric.RESPONSE_TIME_P50,
    scenarios_pb2.TARGET_METRIC_RESPONSE_TIME_P90: TargetMetric.RESPONSE_TIME_P90,
    scenarios_pb2.TARGET_METRIC_RESPONSE_TIME_P95: TargetMetric.RESPONSE_TIME_P95,
    scenarios_pb2.TARGET_METRIC_RESPONSE_TIME_P99: TargetMetric.RESPONSE_TIME_P99,
    scenarios_pb2.TARGET_METRIC_RESPONSE_TIME_AVG: TargetMetric.RESPONSE_TIME_AVG,
    scenarios_pb2.TARGET_METRIC_RESPONSE_TIME_MAX: TargetMetric.RESPONSE_TIME_MAX,
    scenarios_pb2.TARGET_METRIC_ERROR_RATIO: TargetMetric.ERROR_RATIO,
    scenarios_pb2.TARGET_METRIC_TPS: TargetMetric.TPS,
}
METRIC_NUMBERS = {metric: number for number, metric in METRICS.items()}


def project_from_proto(message: projects_pb2.Project, name: str) -> Project:
    """What the caller may set of a project."""
    return Project(name=name, title=message.title, summary=message.summary, description=message.description)


def project_to_proto(project: Project) -> projects_pb2.Project:
    """The whole project."""
    return projects_pb2.Project(
        name=project.name,
        title=project.title,
        summary=project.summary,
        description=project.description,
        create_time=timestamp(project.create_time),
        update_time=timestamp(project.update_time),
        etag=etags.etag(project.name, project.revision),
        spec_count=project.spec_count,
        run_count=project.run_count,
    )


def spec_to_proto(spec: Spec) -> specs_pb2.Spec:
    """The whole specification, without its endpoints."""
    about = spec.specification
    return specs_pb2.Spec(
        name=spec.name,
        title=about.title,
        version=about.version,
        description=about.description,
        openapi_version=about.openapi_version,
        base_url=about.base_url,
        servers=about.servers,
        source_url=about.source_url,
        tags=[
            specs_pb2.Tag(name=t.name, description=t.description, endpoint_count=spec.tag_counts.get(t.name, 0))
            for t in about.tags
        ],
        endpoint_count=spec.endpoint_count,
        security_schemes=[
            specs_pb2.SecurityScheme(id=s.id, type=s.type, scheme=s.scheme, parameter_name=s.parameter_name)
            for s in about.security_schemes
        ],
        warnings=about.warnings,
        create_time=timestamp(spec.create_time),
        size_bytes=about.size_bytes,
    )


def endpoint_to_proto(endpoint: Endpoint) -> specs_pb2.Endpoint:
    """The whole endpoint."""
    found = endpoint.definition
    return specs_pb2.Endpoint(
        name=endpoint.name,
        method=found.method,
        path=found.path,
        operation_id=found.operation_id,
        summary=found.summary,
        description=found.description,
        tags=found.tags,
        deprecated=found.deprecated,
        parameters=[
            specs_pb2.Parameter(
                name=p.name,
                location=p.location.value,
                required=p.required,
                sample_json="" if p.sample is None else json.dumps(p.sample, ensure_ascii=False),
                description=p.description,
            )
            for p in found.parameters
        ],
        request_body=specs_pb2.RequestBody(
            content_type=found.body.content_type, required=found.body.required, sample=found.body.sample
        )
        if found.body
        else None,
        success_statuses=found.success_statuses,
        security=found.security,
    )


def scenario_from_proto(message: scenarios_pb2.Scenario, endpoint: definitions.Endpoint) -> definitions.Scenario:
    """A scenario with its endpoint looked up. Without an executor the number of stages chooses one."""
    fallback = Executor.RAMPING_VUS if len(message.stages) > 1 else Executor.CONSTANT_VUS
    return definitions.Scenario(
        name=message.name,
        endpoint=endpoint,
        executor=EXECUTORS.get(message.executor, fallback),
        stages=tuple(definitions.Stage(s.duration.ToTimedelta(), s.target) for s in message.stages),
        think_time=message.think_time.ToTimedelta(),
        iterations=message.iterations,
        vus=message.vus,
        max_vus=message.max_vus,
        start_time=message.start_time.ToTimedelta(),
        graceful_stop=message.graceful_stop.ToTimedelta() if message.HasField("graceful_stop") else None,
        timeout=message.timeout.ToTimedelta() if message.HasField("timeout") else None,
        parameters=dict(message.parameters),
        headers=dict(message.headers),
        body=message.body,
        content_type=message.content_type,
        expected_statuses=tuple(message.expected_statuses),
        response_time_target=message.response_time_target.ToTimedelta()
        if message.HasField("response_time_target")
        else None,
        error_ratio_target=message.error_ratio_target if message.HasField("error_ratio_target") else None,
    )


def scenario_to_proto(scenario: definitions.Scenario, endpoint: str) -> scenarios_pb2.Scenario:
    """A scenario as it was asked for; `endpoint` is the resource name."""
    return scenarios_pb2.Scenario(
        name=scenario.name,
        endpoint=endpoint,
        executor=EXECUTOR_NUMBERS[scenario.executor],
        stages=[scenarios_pb2.Stage(duration=duration(s.duration), target=s.target) for s in scenario.stages],
        think_time=duration(scenario.think_time or None),
        iterations=scenario.iterations,
        vus=scenario.vus,
        max_vus=scenario.max_vus,
        start_time=duration(scenario.start_time or None),
        graceful_stop=duration(scenario.graceful_stop),
        timeout=duration(scenario.timeout),
        parameters=scenario.parameters,
        headers=scenario.headers,
        body=scenario.body,
        content_type=scenario.content_type,
        expected_statuses=scenario.expected_statuses,
        response_time_target=duration(scenario.response_time_target),
        error_ratio_target=scenario.error_ratio_target,
    )


def target_from_proto(message: scenarios_pb2.Target) -> definitions.Target:
    """A target of a run."""
    return definitions.Target(
        metric=METRICS[message.metric],
        limit=message.limit,
        scenario=message.scenario,
        sustained=message.sustained.ToTimedelta() if message.HasField("sustained") else None,
        abort_on_fail=message.abort_on_fail,
    )


def target_to_proto(target: definitions.Target) -> scenarios_pb2.Target:
    """A target of a run."""
    return scenarios_pb2.Target(
        metric=METRIC_NUMBERS[target.metric],
        limit=target.limit,
        scenario=target.scenario,
        sustained=duration(target.sustained),
        abort_on_fail=target.abort_on_fail,
    )


def credentials_from_proto(message: runs_pb2.Credentials) -> definitions.Credentials | None:
    """The caller's credentials for the API under test; None when none were given."""
    match message.WhichOneof("kind"):
        case "bearer_token":
            return definitions.BearerToken(message.bearer_token)
        case "basic":
            return definitions.BasicCredentials(message.basic.user, message.basic.password)
        case "api_key":
            key = message.api_key
            return definitions.ApiKey(ParameterLocation(key.location), key.parameter_name, key.value)
        case _:
            return None
