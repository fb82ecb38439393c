"""proto <-> domain: simulated users."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from datetime import timedelta

from opsplane.loadtesting.v1 import users_pb2

from opsplane_server.errors import FieldViolation, InvalidArgument
from opsplane_server.loadtesting import definitions
from opsplane_server.loadtesting.users import model
from opsplane_server.rpc.times import duration

PRESETS = {preset: users_pb2.LoadPreset.Value(f"LOAD_PRESET_{preset.value}") for preset in model.Preset}
PRESET_NAMES = {number: preset for preset, number in PRESETS.items()}

# A seed that the server chooses is one that people can type.
_SEEDS = 2**31 - 1

_SECOND = timedelta(seconds=1)


def task_endpoints(message: users_pb2.UserLoad) -> dict[str, str]:
    """Names of the endpoints that tasks call, by the field of a request that has them."""
    return {f"{field}.endpoint": task.endpoint for field, task in _tasks(message) if task.endpoint}


def user_load_from_proto(
    message: users_pb2.UserLoad, endpoints: Mapping[str, tuple[definitions.Endpoint, str]]
) -> model.UserLoad:
    """A load with its endpoints looked up, each with the base URL of its specification, and a seed.

    Raises InvalidArgument naming every field that a task has and its action has no use for.
    """
    _require_used(message)
    return model.UserLoad(
        classes=tuple(_class_from(one, endpoints) for one in message.classes),
        pools=tuple(_pool_from(pool) for pool in message.pools),
        preset=PRESET_NAMES.get(message.preset),
        users=message.users,
        spawn_rate=message.spawn_rate,
        run_time=message.run_time.ToTimedelta() if message.HasField("run_time") else None,
        stages=tuple(definitions.Stage(stage.duration.ToTimedelta(), stage.users) for stage in message.stages),
        seed=message.seed or secrets.randbelow(_SEEDS) + 1,
        seed_given=message.seed != 0,
    )


def user_load_to_proto(load: model.UserLoad) -> users_pb2.UserLoad:
    """A load as it was asked for, with its seed."""
    return users_pb2.UserLoad(
        preset=PRESETS[load.preset] if load.preset else users_pb2.LOAD_PRESET_UNSPECIFIED,
        users=load.users,
        spawn_rate=load.spawn_rate,
        run_time=duration(load.run_time),
        stages=[users_pb2.UserStage(duration=duration(stage.duration), users=stage.target) for stage in load.stages],
        classes=[_class_to(one) for one in load.classes],
        pools=[_pool_to(pool) for pool in load.pools],
        seed=load.seed,
    )


def _tasks(message: users_pb2.UserLoad) -> Iterator[tuple[str, users_pb2.UserTask]]:
    """Every task and step with its field in a request."""
    for i, one in enumerate(message.classes):
        at = f"run.user_load.classes[{i}]"
        yield from ((f"{at}.tasks[{j}]", task) for j, task in enumerate(one.tasks))
        yield from ((f"{at}.on_start[{j}]", step) for j, step in enumerate(one.on_start))


def _require_used(message: users_pb2.UserLoad) -> None:
    violations = []
    for field, task in _tasks(message):
        if not task.endpoint:
            of_endpoints = {"parameters": task.parameters, "body": task.body}
            violations += [
                FieldViolation(f"{field}.{name}", "replaces a part of an endpoint's samples, and there is no endpoint")
                for name, value in of_endpoints.items()
                if value
            ]
        if task.script:
            of_calls = {"expected_statuses": task.expected_statuses, "captures": task.captures}
            violations += [
                FieldViolation(f"{field}.{name}", "is for a single call; a script says it of each of its own")
                for name, value in of_calls.items()
                if value
            ]
    if violations:
        raise InvalidArgument(f"{violations[0].field}: {violations[0].description}", violations)


# --- classes and tasks --------------------------------------------------------------------------------------------


def _class_from(
    message: users_pb2.UserClass, endpoints: Mapping[str, tuple[definitions.Endpoint, str]]
) -> model.UserClass:
    share = message.WhichOneof("share")
    return model.UserClass(
        name=message.name,
        tasks=tuple(_task_from(task, endpoints) for task in message.tasks),
        weight=message.weight if share == "weight" else None,
        fixed_count=message.fixed_count if share == "fixed_count" else None,
        wait_time=_wait_from(message.wait_time),
        on_start=tuple(_task_from(step, endpoints) for step in message.on_start),
        headers=dict(message.headers),
        session_header=message.session_header,
        keep_cookies=message.keep_cookies,
        user_id=message.user_id,
        session_id=message.session_id,
    )


def _class_to(one: model.UserClass) -> users_pb2.UserClass:
    message = users_pb2.UserClass(
        name=one.name,
        tasks=[_task_to(task) for task in one.tasks],
        wait_time=_wait_to(one.wait_time),
        on_start=[_task_to(step) for step in one.on_start],
        headers=one.headers,
        session_header=one.session_header,
        keep_cookies=one.keep_cookies,
        user_id=one.user_id,
        session_id=one.session_id,
    )
    if one.weight is not None:
        message.weight = one.weight
    elif one.fixed_count is not None:
        message.fixed_count = one.fixed_count
    return message


def _wait_from(message: users_pb2.WaitTime) -> model.WaitTime:
    match message.WhichOneof("rule"):
        case "between":
            between = message.between
            low, high = between.min.ToTimedelta() / _SECOND, between.max.ToTimedelta() / _SECOND
            return model.WaitTime(model.WaitRule.BETWEEN, low, high)
        case "constant":
            return model.WaitTime(model.WaitRule.CONSTANT, message.constant.ToTimedelta() / _SECOND)
        case "constant_pacing":
            return model.WaitTime(model.WaitRule.CONSTANT_PACING, message.constant_pacing.ToTimedelta() / _SECOND)
        case "constant_throughput":
            return model.WaitTime(model.WaitRule.CONSTANT_THROUGHPUT, message.constant_throughput)
        case "poisson_rate":
            return model.WaitTime(model.WaitRule.POISSON, message.poisson_rate)
        case _:
            return model.WaitTime()


def _wait_to(wait: model.WaitTime) -> users_pb2.WaitTime | None:
    low, high = timedelta(seconds=wait.low), timedelta(seconds=wait.high)
    match wait.rule:
        case model.WaitRule.NONE:
            return None
        case model.WaitRule.BETWEEN:
            return users_pb2.WaitTime(between=users_pb2.DurationRange(min=duration(low), max=duration(high)))
        case model.WaitRule.CONSTANT:
            return users_pb2.WaitTime(constant=duration(low))
        case model.WaitRule.CONSTANT_PACING:
            return users_pb2.WaitTime(constant_pacing=duration(low))
        case model.WaitRule.CONSTANT_THROUGHPUT:
            return users_pb2.WaitTime(constant_throughput=wait.low)
        case model.WaitRule.POISSON:
            return users_pb2.WaitTime(poisson_rate=wait.low)


def _task_from(
    message: users_pb2.UserTask, endpoints: Mapping[str, tuple[definitions.Endpoint, str]]
) -> model.UserTask:
    action: model.EndpointCall | model.RequestTemplate | model.Script
    match message.WhichOneof("action"):
        case "endpoint":
            endpoint, base_url = endpoints[message.endpoint]
            action = model.EndpointCall(message.endpoint, endpoint, base_url, dict(message.parameters), message.body)
        case "script":
            action = model.Script(message.script)
        case _:
            request = message.request
            action = model.RequestTemplate(
                method=request.method,
                path=request.path,
                query=dict(request.query),
                headers=dict(request.headers),
                body=request.body,
                content_type=request.content_type,
            )
    return model.UserTask(
        action=action,
        name=message.name,
        weight=message.weight,
        expected_statuses=tuple(message.expected_statuses),
        captures=dict(message.captures),
    )


def _task_to(task: model.UserTask) -> users_pb2.UserTask:
    message = users_pb2.UserTask(
        name=task.name, weight=task.weight, expected_statuses=task.expected_statuses, captures=task.captures
    )
    match task.action:
        case model.EndpointCall(name=name, parameters=parameters, body=body):
            message.MergeFrom(users_pb2.UserTask(endpoint=name, parameters=parameters, body=body))
        case model.RequestTemplate() as request:
            message.request.CopyFrom(
                users_pb2.RequestTemplate(
                    method=request.method,
                    path=request.path,
                    query=request.query,
                    headers=request.headers,
                    body=request.body,
                    content_type=request.content_type,
                )
            )
        case model.Script(code=code):
            message.script = code
    return message


# --- data ---------------------------------------------------------------------------------------------------------


def _pool_from(message: users_pb2.DataPool) -> model.DataPool:
    return model.DataPool(
        name=message.name,
        source=message.data_set or generator_from_proto(message.generator),
        rows_per_user=message.rows_per_user,
        overlap_ratio=message.overlap_ratio,
        limit=message.limit,
        fallback=generator_from_proto(message.fallback) if message.HasField("fallback") else None,
    )


def _pool_to(pool: model.DataPool) -> users_pb2.DataPool:
    message = users_pb2.DataPool(
        name=pool.name,
        rows_per_user=pool.rows_per_user,
        overlap_ratio=pool.overlap_ratio,
        limit=pool.limit,
        fallback=generator_to_proto(pool.fallback) if pool.fallback else None,
    )
    if isinstance(pool.source, str):
        message.data_set = pool.source
    else:
        message.generator.CopyFrom(generator_to_proto(pool.source))
    return message


def generator_from_proto(message: users_pb2.Generator) -> model.Generator:
    """What makes up rows."""
    return model.Generator(
        rows=message.rows, fields=tuple(model.GeneratedField(one.name, _kind_from(one)) for one in message.fields)
    )


def generator_to_proto(generator: model.Generator) -> users_pb2.Generator:
    """What makes up rows."""
    return users_pb2.Generator(rows=generator.rows, fields=[_field_to(field) for field in generator.fields])


def _kind_from(
    message: users_pb2.GeneratedField,
) -> (
    model.IntegerRange | model.Sequence | model.Made | model.Hex | model.TimestampRange | model.Choice | model.Template
):
    match message.WhichOneof("kind"):
        case "integer":
            return model.IntegerRange(message.integer.min, message.integer.max)
        case "sequence":
            return model.Sequence(message.sequence)
        case "uuid":
            return model.Made.UUID
        case "private_ip":
            return model.Made.PRIVATE_IP
        case "hex":
            return model.Hex(message.hex)
        case "timestamp":
            span = message.timestamp
            return model.TimestampRange(span.from_ago.ToTimedelta(), span.to_ago.ToTimedelta())
        case "choice":
            return model.Choice(tuple(message.choice.values), tuple(message.choice.weights))
        case _:
            return model.Template(message.template)


def _field_to(field: model.GeneratedField) -> users_pb2.GeneratedField:
    message = users_pb2.GeneratedField(name=field.name)
    match field.kind:
        case model.IntegerRange(min=least, max=most):
            message.integer.CopyFrom(users_pb2.IntegerRange(min=least, max=most))
        case model.Sequence(start=start):
            message.sequence = start
        case model.Made.UUID:
            message.uuid = True
        case model.Made.PRIVATE_IP:
            message.private_ip = True
        case model.Hex(digits=digits):
            message.hex = digits
        case model.TimestampRange(from_ago=start, to_ago=end):
            message.timestamp.CopyFrom(
                users_pb2.RelativeTimeRange(from_ago=duration(start), to_ago=duration(end or None))
            )
        case model.Choice(values=values, weights=weights):
            message.choice.CopyFrom(users_pb2.WeightedChoice(values=values, weights=weights))
        case model.Template(text=text):
            message.template = text
    return message
