"""Run files of user loads: people's words for requests, bodies, waits, pools and classes."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opsplane.cli.run_bodies import HOLE, json_text
from opsplane.cli.run_files import read_run_file, resolve_data_sets
from opsplane.cli.run_variables import Variables
from opsplane.loadtesting.v1 import runs_pb2, users_pb2
from protovalidate import Validator

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "panacea.yaml"


def read(tmp_path: Path, text: str, **environ: str) -> runs_pb2.Run:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return read_run_file(file, environ)


def load(tmp_path: Path, text: str, **environ: str) -> users_pb2.UserLoad:
    return read(tmp_path, f"title: x\nuser_load:\n{text}", **environ).user_load


def task(tmp_path: Path, text: str, **environ: str) -> users_pb2.UserTask:
    [user_class] = load(tmp_path, f"  classes: [{{name: u, tasks: [{text}]}}]", **environ).classes
    [only] = user_class.tasks
    return only


def refused(tmp_path: Path, text: str, **environ: str) -> str:
    with pytest.raises(click.UsageError) as caught:
        load(tmp_path, text, **environ)
    return caught.value.message.removeprefix(f"{tmp_path / 'run.yaml'}: ")


# --- values -------------------------------------------------------------------------------------------------------


def test_variables_stand_for_numbers_booleans_durations_and_choices(tmp_path: Path) -> None:
    text = """
      preset: ${PRESET:-smoke}
      users: ${USERS:-7}
      spawn_rate: ${RATE:-2.5}
      run_time: ${MINUTES:-5}m
      classes: [{name: u, weight: "${W}", keep_cookies: "${COOKIES:-yes}", tasks: [{request: GET /}]}]
    """
    made = load(tmp_path, text, W="3", USERS="12")
    assert (made.preset, made.users, made.spawn_rate) == (users_pb2.LOAD_PRESET_SMOKE, 12, 2.5)
    assert made.run_time.seconds == 300
    assert (made.classes[0].weight, made.classes[0].keep_cookies) == (3, True)


def test_what_is_empty_is_not_said(tmp_path: Path) -> None:
    text = """
      preset: "${PRESET:-}"
      users: ${USERS:-}
      run_time: ${TIME:-}
      stages:
      classes: [{name: u, tasks: [{request: GET /}]}]
    """
    made = load(tmp_path, text)
    assert [field.name for field, _ in made.ListFields()] == ["classes"]


def test_declared_variables_have_defaults_that_the_environment_replaces(tmp_path: Path) -> None:
    text = """
      variables: {HOST: "http://127.0.0.1:${PORT:-80}", USERS: 3, COOKIES: true, NONE:}
      title: ${HOST} ${USERS} ${NONE}.
      base_url: ${HOST}
      user_load: {users: "${USERS}", classes: [{name: u, keep_cookies: "${COOKIES}"}]}
    """
    run = read(tmp_path, text, USERS="9")
    assert run.title == "http://127.0.0.1:80 9 ."
    assert (run.base_url, run.user_load.users) == ("http://127.0.0.1:80", 9)
    assert run.user_load.classes[0].keep_cookies


@pytest.mark.parametrize(
    ("value", "expected"), [("true", "on"), ("1", "on"), ("", ""), ("false", ""), ("No", ""), ("0", "")]
)
def test_a_switch(tmp_path: Path, value: str, expected: str) -> None:
    assert read(tmp_path, "title: x${SWITCH:+on}", SWITCH=value).title == f"x{expected}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  users: many", "user_load.users: 'many' is no number"),
        ("  users: ${N:-1.5}", "user_load.users: '1.5' is no whole number"),
        ("  users: true", "user_load.users: True is no number"),
        ("  run_time: 30", "user_load.run_time: 30 is no duration; write it like 30s, 1m30s or 500ms"),
        ("  preset: huge", "user_load.preset: 'huge' is none of smoke, load, stress, analytics, soak"),
        ("  clases: []", "user_load has no field 'clases'; did you mean classes?"),
        ("  classes: {name: u}", "user_load.classes: a list is needed"),
        ("  classes: [u]", "user_load.classes[0]: a mapping is needed, with name, weight, "),
        ("  classes: [{wait_time: {between: 1s}}]", "user_load.classes[0].wait_time.between: '1s' is no range; "),
        ("  classes: [{keep_cookies: maybe}]", "user_load.classes[0].keep_cookies: 'maybe' is neither true nor false"),
        ("  classes: [{name: 5}]", "user_load.classes[0].name: a text is needed; quote 5"),
        ("  classes: [{tasks: [{request: POST}]}]", "user_load.classes[0].tasks[0].request: 'POST' is no request; "),
        ("  users: ${N}", "user_load.users: the environment variable N is not set"),
        ("  users: 1\n  Users: 2", "user_load has no field 'Users'; did you mean users?"),
        ("  run_time: 1s\n  runTime: 2s", "user_load: run_time is said twice"),
        (
            "  classes: [{name: u, tasks: [{request: POST /, body: &b [*b]}]}]",
            "an anchor stands for something that it is part of",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, text).startswith(said)


# --- waits and shares ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["'500ms..${HIGH:-1}s'", "0.5s .. 1s", "{min: 0.5s, max: 1s}"])
def test_ranges_in_words_and_in_fields(tmp_path: Path, between: str) -> None:
    [user_class] = load(tmp_path, f"  classes: [{{name: u, wait_time: {{between: {between}}}}}]").classes
    made = user_class.wait_time.between
    assert (made.min.ToMilliseconds(), made.max.ToMilliseconds()) == (500, 1000)


def test_a_class_of_weight_0_is_left_out(tmp_path: Path) -> None:
    made = load(tmp_path, "  classes: [{name: a, weight: 0}, {name: b, weight: '${B:-0.0}'}, {name: c}]")
    assert [user_class.name for user_class in made.classes] == ["c"]


# --- requests and bodies ------------------------------------------------------------------------------------------


def test_a_request_in_words(tmp_path: Path) -> None:
    made = task(
        tmp_path,
        "{request: 'put /orders/{{int 1 9}}?dry=true&q=a%20b+c&at={{choice \"?x&y\" z}}&who=${WHO:-a&b}', "
        "headers: {X-Try: 1}, query: {page: 2, full: true}, weight: 2, expected_statuses: [200, 404]}",
    )
    request = made.request
    assert (request.method, request.path) == ("PUT", "/orders/{{int 1 9}}")
    assert dict(request.query) == {
        "dry": "true",
        "q": "a b c",
        "at": '{{choice "?x&y" z}}',
        "who": "a&b",
        "page": "2",
        "full": "true",
    }
    assert dict(request.headers) == {"X-Try": "1"}
    assert (made.weight, list(made.expected_statuses)) == (2, [200, 404])


def test_a_body_beside_a_request_belongs_to_it(tmp_path: Path) -> None:
    made = task(tmp_path, "{request: {method: POST, path: /a}, body: {a: 1}, contentType: application/vnd.a+json}")
    assert made.body == ""
    assert (made.request.body, made.request.content_type) == ('{"a": 1}', "application/vnd.a+json")
    made = task(tmp_path, "{endpoint: createPet, body: {name: '{{uuid}}'}}")
    assert made.body == '{"name": {{uuid}}}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{request: {method: POST, path: /a, body: x}, body: y}", "body is said twice"),
        ("{request: 'GET /a?x=1&x=2'}", "the query parameter x is said twice"),
        ("{request: 5}", "write POST /path"),
        ("{request: POST /a, body: {at: 2024-01-01}}", "body.at: 2024-01-01 is nothing that JSON has; quote it"),
        ("{request: POST /a, body: [.inf]}", "body[0]: JSON has no inf"),
        ("{request: POST /a, body: {on: 1}}", "body: a key is read as True; quote it"),
        ("{request: POST /a, body: 5}", "a text is needed"),
    ],
)
def test_what_is_no_request(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, f"  classes: [{{name: u, tasks: [{text}]}}]")


def test_a_body_of_values_and_templates(tmp_path: Path) -> None:
    body = task(
        tmp_path,
        """{request: POST /a, body: {
            ids: ['{{pool.bundles.id 1 3}}'], name: '{{user.id}}', text: 'on {{now}} "{{choice "a b" c}}"',
            number: 5, real: 1.5, "yes": yes, nothing: , list: [], map: {}, "k\\n": é,
            size: "${SIZE:-20}", flag: "${FLAG:-false}", case: "${CASE:-012345678}", said: "n ${SIZE:-20}", js: "$${x}"
        }}""",
    ).request.body
    assert body == (
        '{"ids": [{{pool.bundles.id 1 3}}], "name": {{user.id}}, "text": "on {{now}} \\"{{choice "a b" c}}\\"", '
        '"number": 5, "real": 1.5, "yes": true, "nothing": null, "list": [], "map": {}, "k\\n": "é", '
        '"size": 20, "flag": false, "case": "012345678", "said": "n 20", "js": "${x}"}'
    )


def test_a_text_stays_a_text(tmp_path: Path) -> None:
    assert task(tmp_path, "{request: POST /a, body: '{\"a\": {{int 1 2}}}'}").request.body == '{"a": {{int 1 2}}}'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_a_body_without_templates_is_its_json(value: object) -> None:
    made = json_text(value, lambda text: text, "body")
    if not HOLE.search(made) and "${" not in made:
        assert json.loads(made) == value


@given(st.text())
def test_a_value_of_a_variable_can_not_change_the_structure(value: str) -> None:
    fill = Variables({"V": value}).fill
    made = json_text({"a": "x${V:-}", "b": "y"}, fill, "body")
    if not HOLE.search(made):
        assert json.loads(made) == {"a": f"x{value}", "b": "y"}


# --- pools --------------------------------------------------------------------------------------------------------


POOL = """
  pools:
    - name: p
      data_set: ${USE_DATABASE_DATA:+bundle-ids}
      limit: 500
      fallback: {fields: [{name: id, sequence: "${LOW:-800}..${HIGH:-1000}"}, {name: n, integer: -5..5},
                          {name: at, timestamp: 7d..1d}]}
"""


def test_a_pool_without_its_data_set_is_made_up(tmp_path: Path) -> None:
    [pool] = load(tmp_path, POOL).pools
    assert pool.WhichOneof("source") == "generator"
    assert not pool.HasField("fallback")
    assert pool.limit == 0
    assert pool.generator.rows == 201
    first, second, third = pool.generator.fields
    assert first.sequence == 800
    assert (second.integer.min, second.integer.max) == (-5, 5)
    assert (third.timestamp.from_ago.seconds, third.timestamp.to_ago.seconds) == (7 * 86400, 86400)


def test_a_pool_with_its_data_set_falls_back(tmp_path: Path) -> None:
    run = read(tmp_path, f"title: x\nuser_load:\n{POOL}", USE_DATABASE_DATA="true", HIGH="809")
    resolve_data_sets(run, "projects/shop")
    [pool] = run.user_load.pools
    assert (pool.data_set, pool.limit, pool.fallback.rows) == ("projects/shop/dataSets/bundle-ids", 500, 10)
    resolve_data_sets(run, "projects/other")
    assert pool.data_set == "projects/shop/dataSets/bundle-ids"


def test_rows_go_before_the_end_of_a_sequence(tmp_path: Path) -> None:
    [pool] = load(tmp_path, "  pools: [{name: p, generator: {rows: 5, fields: [{name: a, sequence: 1..9}]}}]").pools
    assert pool.generator.rows == 5


@pytest.mark.parametrize(("sequence", "said"), [("9..1", "1 is below 9"), ("a..b", "a..b is no range of numbers")])
def test_a_sequence_ends_after_it_begins(tmp_path: Path, sequence: str, said: str) -> None:
    text = f"  pools: [{{name: p, generator: {{fields: [{{name: a, sequence: {sequence}}}]}}}}]"
    assert refused(tmp_path, text) == f"user_load.pools[0].generator.fields[0].sequence: {said}"


# --- the example --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"USE_DATABASE_DATA": "true", "ANALYTICS_USER_WEIGHT": "5", "LOCUST_MAX_USERS": "100", "LOCUST_RUN_TIME": "9m"},
    ],
)
def test_the_example_is_a_valid_run(tmp_path: Path, environ: dict[str, str]) -> None:
    run = read_run_file(EXAMPLE, environ)
    resolve_data_sets(run, "projects/panacea")
    request = runs_pb2.CreateRunRequest(parent="projects/panacea", run=run)
    assert [str(violation) for violation in Validator().collect_violations(request)] == []
    # Its JSON form, as programs write it, is a run file too.
    file = tmp_path / "run.json"
    file.write_text(json_format.MessageToJson(run), encoding="utf-8")
    assert read_run_file(file, {}) == run


def test_the_example_has_the_shares_of_the_document() -> None:
    heavy, light = read_run_file(EXAMPLE, {}).user_load.classes
    assert (heavy.name, heavy.weight, light.name, light.weight) == ("HeavyUser", 1, "LightUser", 3)
    waits = [
        (one.wait_time.between.min.ToMilliseconds(), one.wait_time.between.max.ToMilliseconds())
        for one in (heavy, light)
    ]
    assert waits == [(500, 1000), (2000, 4000)]
    assert light.tasks == heavy.tasks
    weights: dict[str, float] = {}
    for one in heavy.tasks:
        called = f"{one.request.method} {one.request.path.removeprefix('/api/v1/')}"
        weights[called] = weights.get(called, 0) + one.weight
    assert weights == {
        "POST logs/analyze": 3,
        "GET logs/info": 4,
        "POST logs/severity-count": 3,
        "POST logs/histogram": 2,
        "POST logs/heatmap": 2,
        "POST logs/search": 3,
        "GET logs/filter-options": 2,
        "GET events": 2,
        "GET ai/report_summary": 1,
        "POST ai/ask-ai": 1,
        "POST reports": 2,
        "GET log-bundle-paths/by-sfdc-case/{{pool.cases.number}}": 1,
    }


def test_the_file_of_the_docs_is_a_valid_run(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "user-loads.md"
    [text] = [part.partition("```")[0] for part in page.read_text("utf-8").split("```yaml\n") if part[:5] == "title"]
    run = read(tmp_path, text)
    assert [one.request.body for one in run.user_load.classes[0].tasks][1] == (
        '{"items": [{{pool.items.id 1 3}}], "gift": {{choice true false}}, "note": "ordered at {{now}}"}'
    )
    run.user_load.classes[1].tasks[0].endpoint = "projects/p/specs/s/endpoints/e"
    request = runs_pb2.CreateRunRequest(parent="projects/panacea", run=run)
    assert [str(violation) for violation in Validator().collect_violations(request)] == []
