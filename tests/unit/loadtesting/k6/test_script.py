"""Scripts: readable, accepted by k6, and faithful to what users typed."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from asyncio.subprocess import DEVNULL
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.definitions import (
    ApiKey,
    BasicCredentials,
    BearerToken,
    Credentials,
    Endpoint,
    Executor,
    LoadTest,
    Parameter,
    ParameterLocation,
    ParameterStyle,
    RequestBody,
    Scenario,
    Stage,
)
from opsplane_server.loadtesting.k6.inspect import inspect
from opsplane_server.loadtesting.k6.requests import credential_environment
from opsplane_server.loadtesting.k6.script import generate

from tests.unit.loadtesting.k6.k6_binary import K6, evaluate
from tests.unit.loadtesting.k6.test_literals import NASTY, TEXT
from tests.unit.loadtesting.openapi.local_server import local_server

QUERY, PATH = ParameterLocation.QUERY, ParameterLocation.PATH
HEADER, COOKIE = ParameterLocation.HEADER, ParameterLocation.COOKIE
STAGES = (Stage(timedelta(seconds=30), 10),)


def parameter(
    location: ParameterLocation,
    name: str,
    sample: Any,
    style: ParameterStyle = ParameterStyle.FORM,
    *,
    explode: bool = False,
    required: bool = True,
) -> Parameter:
    return Parameter(location, name, required, sample, style, explode)


def load_test(endpoint: Endpoint, *, credentials: Credentials | None = None, **scenario: Any) -> LoadTest:
    only = Scenario("s", endpoint, Executor.CONSTANT_VUS, STAGES, **scenario)
    return LoadTest("t", "http://127.0.0.1:8080/v1/", (only,), credentials=credentials)


def request(test: LoadTest, folder: Path) -> dict[str, Any]:
    """The parts of the first scenario's request as k6 sees them."""
    name = test.scenarios[0].name.replace("-", "_")
    parts = {
        "url": f"{name}_request.url",
        "body": f"String({name}_request.body)",
        "params": f"JSON.stringify({name}_request.params)",
    }
    found = evaluate(generate(test), folder, parts)
    return {"url": found["url"], "body": found["body"], **json.loads(found["params"])}


def test_the_request_of_the_seed(tmp_path: Path) -> None:
    """`constant-vus` with one stage is a number of users for a time; the script is written to be read."""
    endpoint = Endpoint(
        "POST",
        "/login/{tenant}",
        parameters=(parameter(PATH, "tenant", "acme inc", ParameterStyle.SIMPLE),),
        body=RequestBody("application/json", True, '{"user": "ann", "ids": [1, 2.5]}'),
        success_statuses=(200, 201),
    )
    scenario = Scenario(
        "login_test",
        endpoint,
        Executor.CONSTANT_VUS,
        STAGES,
        think_time=timedelta(seconds=1),
        response_time_target=timedelta(milliseconds=500),
        error_ratio_target=0.01,
    )
    test = LoadTest("API 성능 테스트", "https://api.example.com", (scenario,), target_tps=100)
    assert generate(test) == (
        """\
// Load test "API 성능 테스트"
import http from "k6/http";
import { check, sleep } from "k6";

const BASE_URL = "https://api.example.com";

export const options = {
  scenarios: {
    login_test: { executor: "constant-vus", vus: 10, duration: "30s", exec: "login_test_scenario" },
  },
  thresholds: {
    "http_req_duration{scenario:login_test}": ["p(95)<=500"],
    "http_req_failed{scenario:login_test}": ["rate<=0.01"],
  },
  systemTags: ["name", "scenario", "status"],
  summaryTrendStats: ["avg", "min", "med", "max", "p(90)", "p(95)", "p(99)", "count"],
  discardResponseBodies: true,
  userAgent: "opsplane (k6)",
};

// Scenario login_test: "POST /login/{tenant}"
const login_test_request = {
  url: BASE_URL + "/login/acme%20inc",
  body: JSON.stringify({ user: "ann", ids: [1, 2.5] }),
  params: {
    headers: { "Content-Type": "application/json" },
    tags: { name: "POST /login/{tenant}" },
    responseCallback: http.expectedStatuses(200, 201),
  },
  checks: { "status is one of 200, 201": (response) => [200, 201].includes(response.status) },
};

export function login_test_scenario() {
  const { url, body, params, checks } = login_test_request;
  check(http.request("POST", url, body, params), checks);
  sleep(1);
}

// Gives k6 time to send its last metrics.
export function teardown() {
  sleep(1.2);
}
"""
    )


async def test_all_executors_together_are_accepted(tmp_path: Path) -> None:
    ramp = (*STAGES, Stage(timedelta(seconds=5), 0))
    scenarios = (
        Scenario("a-b", Endpoint("GET", "/"), Executor.CONSTANT_VUS, STAGES),
        Scenario("a_b", Endpoint("GET", "/"), Executor.RAMPING_VUS, ramp, graceful_stop=timedelta()),
        Scenario("default", Endpoint("GET", "/"), Executor.CONSTANT_ARRIVAL_RATE, STAGES),
        Scenario("http", Endpoint("GET", "/"), Executor.RAMPING_ARRIVAL_RATE, ramp, timeout=timedelta(seconds=2)),
        Scenario("options", Endpoint("GET", "/"), Executor.PER_VU_ITERATIONS, iterations=3, vus=2),
        Scenario("_", Endpoint("GET", "/"), Executor.SHARED_ITERATIONS, iterations=3, vus=3),
        Scenario(
            "share",
            Endpoint("GET", "/"),
            Executor.CONSTANT_ARRIVAL_RATE,
            (Stage(timedelta(seconds=1), 0),),
            start_time=timedelta(seconds=2),
        ),
    )
    script = tmp_path / "script.js"
    script.write_text(generate(LoadTest("t", "http://127.0.0.1:1", scenarios, target_tps=10.5)))
    found = await inspect(K6, script)
    assert set(found.options["scenarios"]) == {scenario.name for scenario in scenarios}
    execs = {options["exec"] for options in found.options["scenarios"].values()}
    assert len(execs) == len(scenarios)
    assert found.total_duration == timedelta(hours=24, seconds=30)


def test_a_test_that_cannot_be_makes_no_script() -> None:
    with pytest.raises(InvalidArgument, match=r"run\.scenarios"):
        generate(LoadTest("t", "http://127.0.0.1:1", ()))


@pytest.mark.parametrize(
    ("style", "explode", "sample", "query"),
    [
        (ParameterStyle.FORM, True, ["a", "b&c"], "p=a&p=b%26c"),
        (ParameterStyle.FORM, False, ["a", "b,c"], "p=a,b%2Cc"),
        (ParameterStyle.SPACE_DELIMITED, False, ["a", "b"], "p=a%20b"),
        (ParameterStyle.PIPE_DELIMITED, False, ["a", "b"], "p=a|b"),
        (ParameterStyle.FORM, True, {"x": 1, "y": True}, "x=1&y=true"),
        (ParameterStyle.FORM, False, {"x": 1, "y": None}, "p=x,1,y,"),
        (ParameterStyle.DEEP_OBJECT, True, {"x": "1"}, "p%5Bx%5D=1"),
        (ParameterStyle.JSON, False, {"x": [1]}, "p=%7B%22x%22%3A%5B1%5D%7D"),
        (ParameterStyle.FORM, True, "ä/?#", "p=%C3%A4%2F%3F%23"),
        (ParameterStyle.FORM, True, 1.5, "p=1.5"),
    ],
)
def test_styles_of_query_parameters(
    tmp_path: Path, style: ParameterStyle, explode: bool, sample: Any, query: str
) -> None:
    endpoint = Endpoint("GET", "/q", parameters=(parameter(QUERY, "p", sample, style, explode=explode),))
    assert request(load_test(endpoint), tmp_path)["url"] == f"http://127.0.0.1:8080/v1/q?{query}"


@pytest.mark.parametrize(
    ("style", "explode", "sample", "path"),
    [
        (ParameterStyle.SIMPLE, False, "a/b c", "a%2Fb%20c"),
        (ParameterStyle.SIMPLE, False, [1, 2], "1,2"),
        (ParameterStyle.SIMPLE, True, {"a": 1, "b": 2}, "a=1,b=2"),
        (ParameterStyle.LABEL, False, [1, 2], ".1,2"),
        (ParameterStyle.LABEL, True, [1, 2], ".1.2"),
        (ParameterStyle.MATRIX, False, [1, 2], ";p=1,2"),
        (ParameterStyle.MATRIX, True, [1, 2], ";p=1;p=2"),
        (ParameterStyle.MATRIX, True, {"a": 1, "b": 2}, ";a=1;b=2"),
    ],
)
def test_styles_of_path_parameters(
    tmp_path: Path, style: ParameterStyle, explode: bool, sample: Any, path: str
) -> None:
    endpoint = Endpoint("GET", "/x/{p}/y", parameters=(parameter(PATH, "p", sample, style, explode=explode),))
    assert request(load_test(endpoint), tmp_path)["url"] == f"http://127.0.0.1:8080/v1/x/{path}/y"


def test_only_what_is_required_or_given_is_sent(tmp_path: Path) -> None:
    endpoint = Endpoint(
        "DELETE",
        "/a/{undeclared}?fixed=1#name",
        parameters=(
            parameter(QUERY, "optional", 1, required=False),
            parameter(QUERY, "given", 1, required=False),
            parameter(HEADER, "X-List", [1, "b\r\nc"]),
            parameter(HEADER, "bad name", 1),
            parameter(HEADER, "X-Hidden", 1, required=False),
            parameter(COOKIE, "session", {"a": 1}),
        ),
        body=RequestBody("application/json", False, "{}"),
    )
    test = load_test(endpoint, parameters={"given": "x y", "undeclared": "é"}, timeout=timedelta(seconds=3))
    assert request(test, tmp_path) == {
        "url": "http://127.0.0.1:8080/v1/a/%C3%A9?fixed=1&given=x%20y",
        "body": "null",
        "headers": {"X-List": "1,b c"},
        "cookies": {"session": "a,1"},
        "timeout": "3s",
        "tags": {"name": endpoint.label},
        "responseCallback": {},
    }


@pytest.mark.parametrize(
    ("body", "typed", "kind", "sent", "header"),
    [
        (RequestBody("application/json", True, '{"a": 1}'), "", "", '{"a":1}', "application/json"),
        (
            RequestBody("application/json", True, '{"a": 9007199254740993}'),
            "",
            "",
            '{"a": 9007199254740993}',
            "application/json",
        ),
        (RequestBody("application/json", True, '"text"'), "", "", '"text"', "application/json"),
        (RequestBody("application/json", True, '{"a": 1}'), '{ "b" : 2 }', "", '{ "b" : 2 }', "application/json"),
        (RequestBody("application/json", True, "{}"), "<a/>", "application/xml", "<a/>", "application/xml"),
        (None, "x", "text/plain", "x", "text/plain"),
        (None, "[]", "", "[]", "application/json"),
        (RequestBody("text/csv", False, "a\r\nb"), "", "", "a\r\nb", "text/csv"),
    ],
)
def test_bodies(tmp_path: Path, body: RequestBody | None, typed: str, kind: str, sent: str, header: str) -> None:
    found = request(load_test(Endpoint("POST", "/", body=body), body=typed, content_type=kind), tmp_path)
    assert (found["body"], found["headers"]) == (sent, {"Content-Type": header})


@pytest.mark.parametrize(
    ("described", "asked", "callback", "check"),
    [
        ((), (), "{ min: 200, max: 399 }", "response.status >= 200 && response.status <= 399"),
        ((204,), (), "204", "response.status === 204"),
        ((200,), (404, 500), "404, 500", "[404, 500].includes(response.status)"),
    ],
)
def test_expected_statuses(described: tuple[int, ...], asked: tuple[int, ...], callback: str, check: str) -> None:
    script = generate(load_test(Endpoint("GET", "/", success_statuses=described), expected_statuses=asked))
    assert f"http.expectedStatuses({callback})" in script
    assert f"(response) => {check} }}" in script


def test_a_redirect_that_is_expected_is_not_followed(tmp_path: Path) -> None:
    assert request(load_test(Endpoint("GET", "/", success_statuses=(302,))), tmp_path)["redirects"] == 0
    assert "redirects" not in request(load_test(Endpoint("GET", "/", success_statuses=(200, 304))), tmp_path)


class TestCredentials:
    @pytest.mark.parametrize(
        ("credentials", "environment"),
        [
            (None, {}),
            (BearerToken("s3cret"), {"OPSPLANE_AUTHORIZATION": "Bearer s3cret"}),
            (BasicCredentials("ann", "s3cret"), {"OPSPLANE_AUTHORIZATION": "Basic YW5uOnMzY3JldA=="}),
            (ApiKey(HEADER, "X-Key", "s3cret"), {"OPSPLANE_API_KEY": "s3cret"}),
        ],
    )
    def test_travel_in_the_environment_and_are_in_no_script(
        self, credentials: Credentials | None, environment: dict[str, str]
    ) -> None:
        assert credential_environment(credentials) == environment
        assert "s3cret" not in generate(load_test(Endpoint("GET", "/"), credentials=credentials))
        assert "s3cret" not in repr(credentials)

    @pytest.mark.parametrize(
        ("credentials", "where"),
        [
            (BearerToken("t"), "headers: { Authorization: __ENV.OPSPLANE_AUTHORIZATION }"),
            (ApiKey(HEADER, "X-Key", "v"), 'headers: { "X-Key": __ENV.OPSPLANE_API_KEY }'),
            (ApiKey(COOKIE, "key", "v"), "cookies: { key: __ENV.OPSPLANE_API_KEY }"),
            (ApiKey(QUERY, "a&b", "v"), 'BASE_URL + "/" + "?" + "a%26b=" + encodeURIComponent(__ENV.OPSPLANE_API_KEY)'),
        ],
    )
    def test_go_where_they_belong(self, credentials: Credentials, where: str) -> None:
        assert where in generate(load_test(Endpoint("GET", "/"), credentials=credentials))

    def test_give_way_to_a_header_that_was_asked_for(self) -> None:
        test = load_test(Endpoint("GET", "/"), credentials=BearerToken("t"), headers={"authorization": "mine"})
        assert 'headers: { authorization: "mine" }' in generate(test)


def test_an_operations_own_server_is_called_unless_the_caller_named_one() -> None:
    endpoint = Endpoint("GET", "/a", server_url="https://production.example.com/")
    scenario = Scenario("s", endpoint, Executor.CONSTANT_VUS, STAGES)
    free = LoadTest("t", "https://example.com", (scenario,))
    assert 'url: "https://production.example.com" + "/a"' in generate(free)
    bound = LoadTest("t", "https://staging.example.com", (scenario,), base_url_overridden=True)
    assert "production" not in generate(bound)


async def test_a_run_sends_what_the_script_says_and_judges_the_answers(tmp_path: Path) -> None:
    endpoint = Endpoint(
        "POST",
        "/pets/{id}",
        parameters=(parameter(PATH, "id", "a/b", ParameterStyle.SIMPLE), parameter(COOKIE, "c", "d")),
        body=RequestBody("application/json", True, '{"name": "Réx"}'),
    )
    good = Scenario("good", endpoint, Executor.SHARED_ITERATIONS, iterations=7, expected_statuses=(404,))
    bad = Scenario("bad", Endpoint("GET", "/x"), Executor.PER_VU_ITERATIONS, iterations=3, error_ratio_target=0.5)
    credentials = BearerToken("t0ken")
    async with local_server() as server:
        test = LoadTest("t", server.url("/v1"), (good, bad), credentials=credentials)
        (tmp_path / "script.js").write_text(generate(test))
        process = await asyncio.create_subprocess_exec(
            K6, "run", "--quiet", "--summary-export", "summary.json", "--address", "", "script.js",
            cwd=tmp_path, env={**os.environ, **credential_environment(credentials)}, stdout=DEVNULL, stderr=DEVNULL,
        )  # fmt: skip
        assert await process.wait() == 99  # a threshold was crossed
    posts = [asked for asked in server.asked if asked.method == "POST"]
    assert len(posts) == 7
    assert {(post.path, post.body.decode(), post.headers["cookie"]) for post in posts} == {
        ("/v1/pets/a%2Fb", '{"name":"Réx"}', "c=d")
    }
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer t0ken"}
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert metrics["http_reqs"]["count"] == 10
    assert (metrics["checks"]["passes"], metrics["checks"]["fails"]) == (7, 3)
    assert metrics["http_req_failed"]["value"] == 0.3
    assert metrics["http_req_failed{scenario:bad}"]["thresholds"] == {"rate<=0.5": True}


@settings(
    max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT, TEXT), min_size=40, max_size=40))
def test_nothing_that_is_typed_breaks_out(rows: list[tuple[str, str, str, str, str]]) -> None:
    """Whatever the titles, names, paths, values, headers and bodies: k6 accepts the script, and it says the same."""
    rows += [(text, text, text, text, text) for text in NASTY]
    scenarios = []
    for n, (path, name, value, header, body) in enumerate(rows):
        endpoint = Endpoint(
            "POST",
            f"/{path}",
            parameters=(
                parameter(QUERY, f"{n}{name}", value),
                parameter(COOKIE, f"{n}{name}", value),
                parameter(HEADER, "X-Value", header),
            ),
        )
        scenarios.append(
            Scenario(
                f"s{n}",
                endpoint,
                Executor.CONSTANT_VUS,
                STAGES,
                headers={f"X-{n}": header},
                body=body,
                content_type=header,
                parameters={f"{n}{name}": value},
            )
        )
    test = LoadTest(rows[0][0] + rows[1][1], "http://127.0.0.1:8080", tuple(scenarios))
    script = generate(test)
    expressions = {f"b{n}": f"String(s{n}_request.body)" for n in range(len(rows))}
    expressions |= {f"p{n}": f"JSON.stringify(s{n}_request.params)" for n in range(len(rows))}
    with tempfile.TemporaryDirectory() as folder:
        found = evaluate(script, Path(folder), expressions)
        script_file = Path(folder, "script.js")
        script_file.write_text(script, encoding="utf-8")
        asyncio.run(inspect(K6, script_file))
    for n, (_, name, value, header, body) in enumerate(rows):
        params = json.loads(found[f"p{n}"])
        one_line = header.replace("\r", "\n").replace("\0", "\n")
        assert found[f"b{n}"] == (body or "null")
        assert params["cookies"] == {f"{n}{name}": value}
        assert params["tags"] == {"name": test.scenarios[n].endpoint.label}
        assert params["headers"][f"X-{n}"].split() == one_line.split()
        assert not set(params["headers"][f"X-{n}"]) & set("\r\n\0")
