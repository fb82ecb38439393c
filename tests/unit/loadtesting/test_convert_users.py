"""Loads by users keep all that was said of them, in messages and in what is stored."""

from __future__ import annotations

import pytest
from google.protobuf import json_format
from hypothesis import given
from opsplane.loadtesting.v1 import users_pb2
from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.convert_users import task_endpoints, user_load_from_proto, user_load_to_proto
from opsplane_server.loadtesting.definitions import LoadTest
from opsplane_server.loadtesting.model import RunPlan
from opsplane_server.loadtesting.users.model import UserLoad
from pydantic import TypeAdapter

from tests.unit.loadtesting.user_loads import ENDPOINTS, loads

_plan = TypeAdapter(RunPlan)

# Everything that there is to say, as the API's JSON.
WHOLE = {
    "preset": "LOAD_PRESET_STRESS",
    "users": 12,
    "spawnRate": 2.5,
    "runTime": "90s",
    "stages": [{"duration": "30s", "users": 5}, {"duration": "0s", "users": 7}],
    "seed": "-5",
    "classes": [
        {
            "name": "Heavy",
            "weight": 1.5,
            "waitTime": {"between": {"min": "0.500s", "max": "1s"}},
            "headers": {"X-Team": "{{choice a b}}"},
            "sessionHeader": "X-Session-Id",
            "keepCookies": True,
            "userId": "{{pool.sessions.user}}",
            "sessionId": "{{pool.sessions.id}}",
            "onStart": [
                {
                    "name": "login",
                    "request": {"method": "POST", "path": "/login", "body": "{}", "contentType": "text/plain"},
                    "expectedStatuses": [201, 409],
                    "captures": {"token": "data.token"},
                }
            ],
            "tasks": [
                {
                    "endpoint": "projects/shop/specs/pets/endpoints/e1",
                    "weight": 3.0,
                    "parameters": {"id": "{{pool.pets.id}}"},
                    "body": "{{captured.token}}",
                },
                {"endpoint": "projects/shop/specs/toys/endpoints/e1"},
                {"script": "user.request('GET', '/pets');", "name": "own"},
                {"request": {"method": "GET", "path": "/a", "query": {"q": "1"}, "headers": {"A": "b"}}},
            ],
        },
        {"name": "Light", "fixedCount": 2, "waitTime": {"constant": "2s"}, "tasks": [{"script": "1"}]},
        {"name": "Paced", "waitTime": {"constantPacing": "2s"}, "tasks": [{"script": "1"}]},
        {"name": "Steady", "waitTime": {"constantThroughput": 0.5}, "tasks": [{"script": "1"}]},
        {"name": "Random", "waitTime": {"poissonRate": 4.0}, "tasks": [{"script": "1"}]},
        {"name": "Busy", "waitTime": {"constant": "0s"}, "tasks": [{"script": "1"}]},
    ],
    "pools": [
        {
            "name": "pets",
            "generator": {
                "rows": 200,
                "fields": [
                    {"name": "id", "integer": {"min": "800", "max": "1000"}},
                    {"name": "n", "sequence": "0"},
                    {"name": "u", "uuid": True},
                    {"name": "h", "hex": 32},
                    {"name": "t", "timestamp": {"fromAgo": "86400s", "toAgo": "60s"}},
                    {"name": "ip", "privateIp": True},
                    {"name": "level", "choice": {"values": ["info", "warn"], "weights": [3.0, 1.0]}},
                    {"name": "path", "template": "/users/{{row.u}}"},
                ],
            },
            "rowsPerUser": 50,
            "overlapRatio": 0.3,
        },
        {
            "name": "sessions",
            "dataSet": "projects/shop/dataSets/sessions",
            "limit": 1000,
            "fallback": {"rows": 10, "fields": [{"name": "id", "hex": 32}, {"name": "user", "template": "u"}]},
        },
    ],
}


def parsed(load: dict[str, object]) -> users_pb2.UserLoad:
    return json_format.ParseDict(load, users_pb2.UserLoad())


def test_message_comes_back_as_it_was() -> None:
    message = parsed(WHOLE)
    assert set(json_format.MessageToDict(message)) == set(WHOLE)
    domain = user_load_from_proto(message, ENDPOINTS)
    assert user_load_to_proto(domain) == message
    assert json_format.MessageToDict(user_load_to_proto(domain)) == WHOLE


@given(loads())
def test_any_load_is_kept_by_messages_and_by_the_store(load: UserLoad) -> None:
    message = user_load_to_proto(load)
    assert user_load_from_proto(users_pb2.UserLoad.FromString(message.SerializeToString()), ENDPOINTS) == load
    plan = RunPlan(LoadTest("", "", ()), users=load)
    assert _plan.validate_json(_plan.dump_json(plan)) == plan


def test_seed_is_chosen_where_none_is_given_and_shown() -> None:
    message = parsed({"classes": [{"name": "A", "tasks": [{"script": "1"}]}]})
    chosen = [user_load_from_proto(message, {}) for _ in range(20)]
    assert not any(load.seed_given for load in chosen)
    assert len({load.seed for load in chosen}) > 1
    assert [user_load_to_proto(load).seed for load in chosen] == [load.seed for load in chosen]
    assert all(0 < load.seed < 2**31 for load in chosen)
    message.seed = 7
    assert (user_load_from_proto(message, {}).seed, user_load_from_proto(message, {}).seed_given) == (7, True)


def test_endpoints_are_found_with_their_fields() -> None:
    message = parsed(WHOLE)
    message.classes[1].on_start.add(endpoint="projects/shop/specs/pets/endpoints/e2")
    assert task_endpoints(message) == {
        "run.user_load.classes[0].tasks[0].endpoint": "projects/shop/specs/pets/endpoints/e1",
        "run.user_load.classes[0].tasks[1].endpoint": "projects/shop/specs/toys/endpoints/e1",
        "run.user_load.classes[1].on_start[0].endpoint": "projects/shop/specs/pets/endpoints/e2",
    }


def test_what_a_task_has_no_use_for_is_refused() -> None:
    request = {"request": {"method": "GET", "path": "/"}, "parameters": {"id": "1"}, "body": "x"}
    script = {"script": "1", "expectedStatuses": [200], "captures": {"a": "b"}}
    message = parsed({"classes": [{"name": "A", "tasks": [request], "onStart": [script]}]})
    with pytest.raises(InvalidArgument) as refusal:
        user_load_from_proto(message, {})
    assert [violation.field for violation in refusal.value.violations] == [
        "run.user_load.classes[0].tasks[0].parameters",
        "run.user_load.classes[0].tasks[0].body",
        "run.user_load.classes[0].on_start[0].expected_statuses",
        "run.user_load.classes[0].on_start[0].captures",
    ]
