import asyncio
import json
import signal
from pathlib import Path

import grpc
import pytest
from opsplane.loadtesting.v1 import runs_pb2, scenarios_pb2

from tests.unit.cli.commands import opsplane_command, start
from tests.unit.cli.fake_servicer import FakeLoadTesting, script, serving

RUN = ("loadtest", "run", "-p", "shop")


async def test_no_server_is_one_clear_line() -> None:
    outcome = await opsplane_command("loadtest", "projects", "list")
    assert outcome.status == 1
    assert outcome.err == "Error: no server answers at 127.0.0.1:1 (UNAVAILABLE); `opsplane serve` starts one\n"


async def test_a_refusal_names_every_bad_field() -> None:
    async with serving(FakeLoadTesting()) as address:
        outcome = await opsplane_command("loadtest", "projects", "create", "shop", address=address)
    assert outcome.status == 1
    assert outcome.err == "Error: project.title: too long; project.summary: two lines (INVALID_ARGUMENT)\n"


async def test_lists_read_all_pages_up_to_the_limit() -> None:
    async with serving(FakeLoadTesting()) as address:
        whole = await opsplane_command("-o", "json", "loadtest", "projects", "list", address=address)
        cut = await opsplane_command("loadtest", "projects", "list", "--limit", "3", address=address)
    assert [project["name"] for project in json.loads(whole.out)["projects"]] == [f"projects/p{i}" for i in range(5)]
    assert len(cut.out.splitlines()) == 1 + 3
    assert "--limit" in cut.err
    assert "\x1b" not in cut.out


async def test_the_alias_and_a_token() -> None:
    servicer = FakeLoadTesting()
    async with serving(servicer) as address:
        outcome = await opsplane_command(
            "load", "projects", "list", address=address, environment={"OPSPLANE_TOKEN": "abc"}
        )
    assert outcome.status == 0
    assert set(servicer.tokens) == {"Bearer abc"}


@pytest.mark.parametrize(
    ("verdict", "status"), [(runs_pb2.VERDICT_PASSED, 0), (runs_pb2.VERDICT_FAILED, 3), (runs_pb2.VERDICT_INVALID, 3)]
)
async def test_watch_prints_each_window_once_and_ends_with_the_verdict(
    verdict: runs_pb2.Verdict.ValueType, status: int
) -> None:
    losses: list[tuple[int, grpc.StatusCode | None]] = [(2, grpc.StatusCode.UNAVAILABLE)]
    async with serving(FakeLoadTesting(updates=script(verdict), losses=losses)) as address:
        outcome = await opsplane_command("loadtest", "watch", "shop/nightly", address=address)
    assert outcome.status == status
    totals = [line.rpartition("total ")[2] for line in outcome.out.splitlines() if "tps " in line and "vus" in line]
    assert totals[:4] == ["10", "20", "30", "40"]
    assert runs_pb2.Verdict.Name(verdict).removeprefix("VERDICT_") in outcome.out


async def test_watch_as_json_is_a_line_an_update() -> None:
    async with serving(FakeLoadTesting()) as address:
        outcome = await opsplane_command("-o", "json", "loadtest", "watch", "shop/nightly", address=address)
    updates = [json.loads(line) for line in outcome.out.splitlines()]
    assert [update["window"]["index"] for update in updates if "window" in update] == ["1", "2", "3", "4"]
    assert updates[-1]["run"]["verdict"] == "VERDICT_PASSED"


async def test_run_of_options_on_the_newest_specification() -> None:
    servicer = FakeLoadTesting()
    async with serving(servicer) as address:
        outcome = await opsplane_command(
            "-o", "json", *RUN, "-e", "GET /pets", "-e", "get /pets/{petId}", "--vus", "7", "--duration", "1m30s",
            "--think-time", "100ms", "--target-p95", "300ms", "--target-errors", "1%", address=address,
        )  # fmt: skip
    assert outcome.status == 0
    assert json.loads(outcome.out)["verdict"] == "VERDICT_PASSED"
    assert "tps 10.0" in outcome.err
    [request] = servicer.created
    assert request.parent == "projects/shop"
    assert request.request_id
    assert [scenario.name for scenario in request.run.scenarios] == ["listPets", "get_pets_petId"]
    first = request.run.scenarios[0]
    assert first.endpoint == "projects/shop/specs/new/endpoints/e1"
    assert first.executor == scenarios_pb2.EXECUTOR_CONSTANT_VUS
    assert [(stage.target, stage.duration.seconds) for stage in first.stages] == [(7, 90)]
    assert first.think_time.ToMilliseconds() == 100
    assert first.response_time_target.ToMilliseconds() == 300
    assert first.error_ratio_target == 0.01


@pytest.mark.parametrize(
    ("options", "executor", "stages", "vus"),
    [
        (("--stage", "10s:5", "--stage", "5s:0"), scenarios_pb2.EXECUTOR_RAMPING_VUS, [(5, 10), (0, 5)], 0),
        (("--rate", "50", "--vus", "9"), scenarios_pb2.EXECUTOR_CONSTANT_ARRIVAL_RATE, [(50, 30)], 9),
        (("--stage", "10s:50/s"), scenarios_pb2.EXECUTOR_RAMPING_ARRIVAL_RATE, [(50, 10)], 0),
        ((), scenarios_pb2.EXECUTOR_CONSTANT_VUS, [(1, 30)], 0),
    ],
)
async def test_shapes_of_load(
    options: tuple[str, ...], executor: scenarios_pb2.Executor.ValueType, stages: list[tuple[int, int]], vus: int
) -> None:
    servicer = FakeLoadTesting()
    async with serving(servicer) as address:
        outcome = await opsplane_command(*RUN, "-e", "listPets", "--detach", *options, address=address)
    assert outcome.status == 0
    [scenario] = servicer.created[0].run.scenarios
    assert scenario.executor == executor
    assert [(stage.target, stage.duration.seconds) for stage in scenario.stages] == stages
    assert scenario.vus == vus


async def test_run_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "title: old\nbase_url: ${URL}\nscenarios: [{endpoint: GET /pets, stages: [{duration: 2s, target: 1}]}]"
    )
    servicer = FakeLoadTesting()
    async with serving(servicer) as address:
        outcome = await opsplane_command(
            *RUN, "-f", str(file), "--title", "new", "--spec", "new", "-d",
            address=address, environment={"URL": "http://127.0.0.1:9"},
        )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert servicer.created[0].run.title == "new"
    assert servicer.created[0].run.base_url == "http://127.0.0.1:9"
    assert servicer.created[0].run.scenarios[0].name == "listPets"


@pytest.mark.parametrize(
    "arguments",
    [
        (*RUN,),
        (*RUN, "-e", "listPets", "-f", __file__),
        (*RUN, "-f", __file__, "--vus", "3"),
        (*RUN, "-e", "x", "--stage", "10s:5", "--duration", "3s"),
        (*RUN, "-e", "x", "--stage", "10s:5", "--stage", "10s:5/s"),
        (*RUN, "-e", "x", "--stage", "10s:5", "--vus", "2"),
        (*RUN, "-e", "x", "--rate", "5", "--think-time", "1s"),
        (*RUN, "-e", "x", "--duration", "soon"),
        (*RUN, "-e", "x", "--target-errors", "101%"),
        ("loadtest", "show", "nightly"),
        ("loadtest", "show", "a/b/c/d"),
        ("loadtest", "endpoints", "-p", "No Project"),
        ("loadtest", "script"),
        ("--cert", "x.pem", "loadtest", "history"),
        ("--plaintext", "--ca", "x.pem", "loadtest", "history"),
        ("nothing",),
    ],
)
async def test_wrong_usage_is_status_2_before_any_call(arguments: tuple[str, ...]) -> None:
    outcome = await opsplane_command(*arguments)
    assert outcome.status == 2
    assert "Error: " in outcome.err


async def test_an_unknown_endpoint_is_wrong_usage() -> None:
    async with serving(FakeLoadTesting()) as address:
        outcome = await opsplane_command(*RUN, "-e", "GET /pet", address=address)
    assert outcome.status == 2
    assert "did you mean GET /pets" in outcome.err


async def test_filters_are_quoted() -> None:
    servicer = FakeLoadTesting()
    async with serving(servicer) as address:
        await opsplane_command(
            "loadtest", "endpoints", "-p", "shop", "--tag", 'a" \\ b', "--method", "get", address=address
        )
    assert servicer.filters == ['tag="a\\" \\\\ b" AND method="GET"']


async def test_an_unknown_run_fails_with_the_reason() -> None:
    async with serving(FakeLoadTesting()) as address:
        outcome = await opsplane_command("loadtest", "show", "other", "-p", "shop", address=address)
    assert outcome.status == 1
    assert outcome.err == "Error: projects/shop/runs/other does not exist (NOT_FOUND)\n"


async def test_a_broken_plug_in_costs_a_line_of_warning(tmp_path: Path) -> None:
    folder = tmp_path / "broken-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[opsplane.commands]\nbroken = no_such_module:command\nodd = plain_module:value\ngood = plain_module:good\n"
        "loadtest = plain_module:good\n"
    )
    (tmp_path / "plain_module.py").write_text(
        "import click\nvalue = 3\n@click.command()\ndef good():\n    '''A good one.'''\n    click.echo('good')\n"
    )
    environment = {"PYTHONPATH": str(tmp_path)}
    listed = await opsplane_command("--help", environment=environment)
    assert listed.status == 0
    assert "A good one." in listed.out
    assert "Load-test HTTP APIs." in listed.out
    warnings = [line for line in listed.err.splitlines() if line.startswith("warning: ")]
    assert [line.split("'")[1] for line in warnings] == ["broken", "odd"]
    assert (await opsplane_command("good", environment=environment)).out == "good\n"
    assert (await opsplane_command("broken", environment=environment)).status == 2


async def test_every_command_has_help_with_an_example() -> None:
    for command in (
        "analyze", "cancel", "delete", "endpoints", "history", "jobs", "logs", "run", "script", "show", "watch",
        "projects list", "projects create", "projects show", "projects delete", "specs list", "specs delete",
    ):  # fmt: skip
        outcome = await opsplane_command("loadtest", *command.split(), "--help")
        assert outcome.status == 0
        assert f"opsplane loadtest {command}" in outcome.out.replace("-o json ", "")


async def test_a_second_ctrl_c_leaves_a_run_that_does_not_end() -> None:
    servicer = FakeLoadTesting(updates=script()[:3], endless=True)
    async with serving(servicer) as address, asyncio.timeout(60):
        process = await start(*RUN, "-e", "listPets", address=address)
        assert process.stdout is not None
        assert process.stderr is not None
        async for line in process.stdout:
            if b"total 20" in line:
                break
        process.send_signal(signal.SIGINT)
        async for line in process.stderr:  # the fake can not cancel
            if b"could not be cancelled" in line:
                break
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 130
