from pathlib import Path

import click
import pytest
from opsplane.cli.endpoints import Catalog
from opsplane.cli.run_files import read_run_file, resolve_endpoints, unresolved_endpoints
from opsplane.loadtesting.v1 import runs_pb2, scenarios_pb2, specs_pb2, users_pb2
from protovalidate import Validator

SPEC = "projects/shop/specs/v1"
CATALOG = Catalog(
    [
        specs_pb2.Endpoint(name=f"{SPEC}/endpoints/e1", method="GET", path="/pets", operation_id="listPets"),
        specs_pb2.Endpoint(name=f"{SPEC}/endpoints/e2", method="GET", path="/pets/{petId}"),
        specs_pb2.Endpoint(name=f"{SPEC}/endpoints/e3", method="GET", path="/offers", operation_id="listOffers"),
    ]
)
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "petstore.yaml"


def read(tmp_path: Path, text: str, **environ: str) -> runs_pb2.Run:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return read_run_file(file, environ)


def test_words_of_people(tmp_path: Path) -> None:
    run = read(
        tmp_path,
        """
        title: Ramp of ${WHO:-nobody}
        targetTps: "${TPS:-12.5}"
        timeout: 1h30m
        labels: {team: "${WHO:-}", literal: "$${WHO}"}
        scenarios:
          - name: a
            endpoint: get /pets
            executor: ramping-vus
            stages: [{duration: 1m30s, target: 5}, {duration: 500ms, target: 0}]
            headers: {X-Team: "${WHO:-nobody}"}
            error_ratio_target: 0
        """,
        WHO="shop",
    )
    assert run.title == "Ramp of shop"
    assert run.target_tps == 12.5
    assert run.timeout.seconds == 5400
    assert dict(run.labels) == {"team": "shop", "literal": "${WHO}"}
    [scenario] = run.scenarios
    assert scenario.executor == scenarios_pb2.EXECUTOR_RAMPING_VUS
    assert [stage.duration.ToMilliseconds() for stage in scenario.stages] == [90_000, 500]
    assert scenario.headers["X-Team"] == "shop"
    assert scenario.HasField("error_ratio_target")


def test_json_is_yaml_and_choices_may_be_spelled_out(tmp_path: Path) -> None:
    run = read(
        tmp_path,
        '{"title": "x", "userLoad": {"preset": "LOAD_PRESET_SMOKE", "classes": [{"name": "u", "tasks": '
        '[{"endpoint": "listPets"}]}]}, "targets": [{"metric": "response-time-p95", "limit": 5}]}',
    )
    assert run.user_load.preset == users_pb2.LOAD_PRESET_SMOKE
    assert run.targets[0].metric == scenarios_pb2.TARGET_METRIC_RESPONSE_TIME_P95
    resolve_endpoints(run, CATALOG)
    assert run.user_load.classes[0].tasks[0].endpoint == f"{SPEC}/endpoints/e1"


def test_variables_of_javascript_are_left_alone(tmp_path: Path) -> None:
    script = "export default function () { console.log(`${__VU} ${HOME}`) }"
    assert read(tmp_path, f"title: x\nscript: '{script}'", HOME="/root").script == script


def test_a_value_can_not_become_structure(tmp_path: Path) -> None:
    run = read(tmp_path, "title: ${T}", T='x"\nscript: evil')
    assert run.title == 'x"\nscript: evil'
    assert run.script == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: ${NOT_SET}", "NOT_SET is not set"),
        ("title: [", "while parsing"),
        ("- title: x", "no run"),
        ("titel: x", "titel"),
        ("scenarios: [{executor: fast}]", "ramping-vus"),
        ("timeout: soon", "no duration"),
        ("timeout: 30", "run.yaml"),
        ("title: 2024-01-01", "run.yaml"),
        ("scenarios: {a: 1}", "run.yaml"),
        ("scenarios: [3]", "run.yaml"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        read(tmp_path, text)
    assert said in caught.value.message


def test_scenarios_without_a_name_get_one(tmp_path: Path) -> None:
    run = read(
        tmp_path,
        """
        title: x
        scenarios:
          - {endpoint: listPets, name: listPets}
          - {endpoint: GET /pets}
          - {endpoint: "GET /pets/{petId}"}
        """,
    )
    assert len(unresolved_endpoints(run)) == 3
    resolve_endpoints(run, CATALOG)
    assert unresolved_endpoints(run) == []
    assert [scenario.name for scenario in run.scenarios] == ["listPets", "listPets_2", "get_pets_petId"]


def test_unknown_endpoint_names_what_is_close(tmp_path: Path) -> None:
    run = read(tmp_path, "title: x\nscenarios: [{endpoint: GET /pet}]")
    with pytest.raises(click.UsageError, match=r"GET /pets"):
        resolve_endpoints(run, CATALOG)


def test_the_example_is_a_valid_run() -> None:
    run = read_run_file(EXAMPLE, {"PETSTORE_URL": "http://127.0.0.1:9"})
    resolve_endpoints(run, CATALOG)
    assert run.base_url == "http://127.0.0.1:9"
    request = runs_pb2.CreateRunRequest(parent="projects/shop", run=run)
    assert [str(violation) for violation in Validator().collect_violations(request)] == []
