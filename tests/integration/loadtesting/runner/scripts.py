"""k6 scripts to test with. They call the API at `__ENV.API`."""

from opsplane_server.loadtesting.runners.port import Exporter, GeneratorSpec, Segment

_HEAD = """
import http from "k6/http";
import { check, sleep } from "k6";
"""
_TEARDOWN = """
export function teardown() { sleep(1.2) }
"""


def constant(duration: str, *, vus: int = 3) -> str:
    """Virtual users that call all the time."""
    return (
        _HEAD
        + f'export const options = {{ vus: {vus}, duration: "{duration}", discardResponseBodies: true }};'
        + 'const params = { tags: { name: "GET /ok" } };'
        + "export default function () { http.get(`${__ENV.API}/ok`, params); sleep(0.002) }"
        + _TEARDOWN
    )


TWO_SCENARIOS = (
    _HEAD
    + """
export const options = {
  scenarios: {
    good: { executor: "constant-vus", vus: 2, duration: "2s", exec: "good" },
    bad: { executor: "constant-arrival-rate", rate: 50, preAllocatedVUs: 1, maxVUs: 1, duration: "2s", exec: "bad" },
  },
};
export function good() {
  const answer = http.get(`${__ENV.API}/ok?${Math.random()}`, { tags: { name: "GET /ok" } });
  check(answer, { "status is 200": (r) => r.status === 200 });
  sleep(0.01);
}
export function bad() {
  const answer = http.get(`${__ENV.API}/bad`, { tags: { name: "GET /bad" } });
  check(answer, { "status is 200": (r) => r.status === 200 });
  sleep(0.1);
}
"""
    + _TEARDOWN
)

SHARED_ITERATIONS = (
    _HEAD
    + """
export const options = { scenarios: { load: { executor: "shared-iterations", vus: 4, iterations: 2001 } } };
export default function () { http.get(`${__ENV.API}/ok`, { tags: { name: "GET /ok" } }); sleep(0.001 * Math.random()) }
"""
    + _TEARDOWN
)


def spec(
    script: str,
    exporter: Exporter,
    *,
    api: str = "http://127.0.0.1:9",
    name: str = "run-1",
    segment: Segment | None = None,
    thresholds: bool = False,
) -> GeneratorSpec:
    return GeneratorSpec(
        name=name,
        files={"main.js": script},
        main="main.js",
        instance=name,
        exporter=exporter,
        environment={"API": api},
        segment=segment,
        thresholds=thresholds,
    )
