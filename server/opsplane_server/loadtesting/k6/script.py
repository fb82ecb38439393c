"""A load test as a readable k6 script."""

from __future__ import annotations

import re

from pydantic import JsonValue

from opsplane_server.loadtesting.definitions import LoadTest, Scenario
from opsplane_server.loadtesting.k6 import loads, requests
from opsplane_server.loadtesting.k6.literals import Raw, literal, string
from opsplane_server.loadtesting.k6.requests import Request, StatusRange

# Seconds that a script waits at its end. k6 1.1 shuts its OpenTelemetry output down before the last flush, so what
# was measured since the flush before (at most a second) would be lost: while this lasts, it is sent.
FLUSH_WAIT_SECONDS = 1.2

# Each tag costs k6 time for every sample; these are the ones that results are told apart by.
SYSTEM_TAGS: list[JsonValue] = ["name", "scenario", "status"]
SUMMARY: list[JsonValue] = ["avg", "min", "med", "max", "p(90)", "p(95)", "p(99)", "count"]


def generate(test: LoadTest) -> str:
    """The script of a load test. Raises InvalidArgument naming every field that cannot be.

    Every scenario has a function of its own, named in `exec`. Requests are tagged with `name`, method and path
    template, so that values in URLs make no series of their own. Credentials are read from the environment
    variables of `requests.credential_environment`.
    """
    loads.check(test)
    names = _identifiers(test.scenarios)
    parts = [
        f"// Load test {string(test.title)}\n"
        'import http from "k6/http";\n'
        'import { check, sleep } from "k6";\n'
        "\n"
        f"const BASE_URL = {string(test.base_url.rstrip('/'))};\n",
        f"export const options = {literal(_options(test, names))};\n",
    ]
    parts += [_scenario(test, scenario, name) for scenario, name in zip(test.scenarios, names, strict=True)]
    parts.append(
        "// Gives k6 time to send its last metrics.\n"
        f"export function teardown() {{\n  sleep({FLUSH_WAIT_SECONDS});\n}}\n"
    )
    return "\n".join(parts)


def _identifiers(scenarios: tuple[Scenario, ...]) -> list[str]:
    """A name for each scenario that can start a JavaScript identifier, all different."""
    names: list[str] = []
    for scenario in scenarios:
        plain = re.sub(r"[^A-Za-z0-9_]", "_", scenario.name)
        name, count = plain, 2
        while name in names:
            name, count = f"{plain}_{count}", count + 1
        names.append(name)
    return names


def _options(test: LoadTest, names: list[str]) -> dict[str, JsonValue]:
    scenarios: dict[str, JsonValue] = {
        scenario.name: {**loads.executor_options(test, scenario), "exec": f"{name}_scenario"}
        for scenario, name in zip(test.scenarios, names, strict=True)
    }
    options: dict[str, JsonValue] = {"scenarios": scenarios}
    if limits := loads.thresholds(test):
        options["thresholds"] = limits
    options |= {
        "systemTags": SYSTEM_TAGS,
        "summaryTrendStats": SUMMARY,
        "discardResponseBodies": True,
        "userAgent": "opsplane (k6)",
    }
    return options


def _scenario(test: LoadTest, scenario: Scenario, name: str) -> str:
    request = requests.build(test, scenario)
    params: dict[str, JsonValue] = {}
    if request.headers:
        params["headers"] = request.headers
    if request.cookies:
        params["cookies"] = request.cookies
    if scenario.timeout is not None:
        params["timeout"] = loads.duration(scenario.timeout)
    params |= redirects(request)
    params["tags"] = {"name": scenario.endpoint.label}
    params["responseCallback"] = expected_statuses(request)
    rest = f"  sleep({scenario.think_time.total_seconds():g});\n" if scenario.think_time else ""
    return (
        f"// Scenario {scenario.name}: {string(scenario.endpoint.label)}\n"
        f"const {name}_request = {{\n"
        f"  url: {request.url},\n"
        f"  body: {request.body},\n"
        f"  params: {literal(params, '  ')},\n"
        f"  checks: {{ {status_check(request)} }},\n"
        "};\n"
        "\n"
        f"export function {name}_scenario() {{\n"
        f"  const {{ url, body, params, checks }} = {name}_request;\n"
        f"  check(http.request({string(scenario.endpoint.method)}, url, body, params), checks);\n"
        f"{rest}"
        "}\n"
    )


def redirects(request: Request) -> dict[str, JsonValue]:
    """The parameter that keeps k6 from following a redirect, where the redirect itself is the answer expected."""
    if any(isinstance(code, int) and 300 <= code <= 399 and code != 304 for code in request.expected):
        return {"redirects": 0}
    return {}


def expected_statuses(request: Request) -> Raw:
    """The expression that tells k6 which answers are no failures."""
    codes = (
        f"{{ min: {code.low}, max: {code.high} }}" if isinstance(code, StatusRange) else str(code)
        for code in request.expected
    )
    return Raw(f"http.expectedStatuses({', '.join(codes)})")


def status_check(request: Request) -> str:
    """The member of an object of k6 checks that checks the status: its title and its function."""
    match request.expected:
        case [StatusRange(low, high)]:
            title, condition = f"{low} to {high}", f"response.status >= {low} && response.status <= {high}"
        case [code]:
            title, condition = str(code), f"response.status === {code}"
        case codes:
            listed = ", ".join(str(code) for code in codes)
            title, condition = f"one of {listed}", f"[{listed}].includes(response.status)"
    return f"{string(f'status is {title}')}: (response) => {condition}"
