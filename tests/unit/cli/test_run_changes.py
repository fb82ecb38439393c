"""`opsplane loadtest run -f FILE` with options that change what the file says."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from opsplane.cli.run_changes import RunChanges, change_options
from opsplane.cli.run_files import read_run_file
from opsplane.loadtesting.v1 import runs_pb2, users_pb2

from tests.unit.cli.commands import opsplane_command
from tests.unit.cli.fake_servicer import FakeLoadTesting, serving

FILE = """
variables: {AGENT: old}
title: Users
labels: {team.name: a}
targets: [{metric: tps, limit: 5}]
user_load:
  preset: load
  users: 7
  spawn_rate: 2
  run_time: 10m
  classes:
    - &heavy
      name: Heavy
      weight: 1
      wait_time: {between: 1s..2s}
      headers: {User-Agent: "${AGENT}", X.Y: z}
      tasks:
        - request: POST /orders
          expected_statuses: [200]
          body: {a: 1}
        - name: look
          request: GET /orders?page=1
    - <<: *heavy
      name: Light
      weight: 3
  pools:
    - name: ids
      data_set: ${DATA:+ids}
      limit: 7
      fallback: {rows: 5, fields: [{name: id, sequence: 1}]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def changes(*options: str) -> RunChanges:
    """What the command line makes of options; UsageError as it says it."""
    made: list[RunChanges] = []

    @click.command()
    @change_options
    def command(changes: RunChanges) -> None:
        made.append(changes)

    command.main(list(options), standalone_mode=False)
    return made[0]


def changed(file: Path, *options: str, **environ: str) -> runs_pb2.Run:
    return read_run_file(file, environ, changes(*options))


def refused(file: Path, *options: str) -> str:
    with pytest.raises(click.UsageError) as caught:
        changed(file, *options)
    return caught.value.message.removeprefix(f"{file}: ")


def test_without_options_nothing_changes(file: Path) -> None:
    assert changed(file) == read_run_file(file, {})


def test_users_spawn_rate_and_run_time(file: Path) -> None:
    load = changed(file, "-u", "50", "-r", "2.5", "-t", "300s").user_load
    assert (load.users, load.spawn_rate, load.run_time.seconds) == (50, 2.5, 300)
    assert load.preset == users_pb2.LOAD_PRESET_LOAD
    load = changed(file, "--run-time", "1h30m").user_load
    assert (load.users, load.spawn_rate, load.run_time.seconds) == (7, 2, 5400)


def test_a_preset_replaces_the_numbers_of_the_file(file: Path) -> None:
    load = changed(file, "--preset", "SMOKE", "-u", "6").user_load
    assert (load.preset, load.users, load.spawn_rate) == (users_pb2.LOAD_PRESET_SMOKE, 6, 0)
    assert not load.HasField("run_time")
    load = changed(file, "--set", "user_load.stages=[{duration: 5s, users: 3}]", "--preset", "soak").user_load
    assert load.stages[0].users == 3, "settings go last"


def test_a_value_is_yaml(file: Path) -> None:
    assert changed(file, "--set", "title='New: one'").title == "New: one"
    assert changed(file, "--set", "title=New ${WHO:-one}").title == "New one"
    assert "title: a text is needed" in refused(file, "--set", "title=New: one")


def test_settings_change_what_they_name_and_nothing_else(file: Path) -> None:
    expected = read_run_file(file, {})
    heavy, light = expected.user_load.classes
    light.weight = 5
    heavy.wait_time.constant.FromMilliseconds(500)
    heavy.headers["X-New"] = "3"
    heavy.headers["X.Y"] = "w"
    del light.tasks[0].expected_statuses[:]
    light.tasks[0].expected_statuses.extend([200, 404])
    light.tasks[0].request.body = '{"b": {{uuid}}}'
    light.tasks[1].request.query["page"] = "2"
    heavy.tasks[1].weight = 4
    expected.user_load.pools[0].generator.fields[0].integer.min = 1
    expected.user_load.pools[0].generator.fields[0].integer.max = 9
    expected.targets[0].limit = 6
    expected.labels["team.name"] = "b"
    made = changed(
        file,
        *("--set", "user_load.classes[Light].weight=5"),
        *("--set", "user_load.classes[0].wait_time.constant=500ms"),
        *("--set", "userLoad.classes[Heavy].headers.X-New=3"),
        *("--set", "user_load.classes[Heavy].headers[X.Y]=w"),
        *("--set", "user_load.classes[1].tasks[POST /orders].expected_statuses=[200, 404]"),
        *("--set", "user_load.classes[1].tasks[0].body={b: '{{uuid}}'}"),
        *("--set", "user_load.classes[1].tasks[look].request.query.page=2"),
        *("--set", "user_load.classes[0].tasks[look].weight=4"),
        *("--set", "user_load.pools[ids].fallback.fields[id].integer=1..9"),
        *("--set", "targets[0].limit=6"),
        *("--set", "labels[team.name]=b"),
    )
    assert made == expected


def test_a_choice_replaces_the_others(file: Path) -> None:
    load = changed(
        file,
        *("--set", "user_load.classes[Light].fixed_count=2"),
        *("--set", "user_load.pools[ids].data_set=others"),
        *("--set", "user_load.classes[Heavy].tasks[look].script=user.random()"),
    ).user_load
    assert load.classes[1].WhichOneof("share") == "fixed_count"
    assert (load.pools[0].data_set, load.pools[0].limit, load.pools[0].fallback.rows) == ("others", 7, 5)
    assert load.classes[0].tasks[1].WhichOneof("action") == "script"


def test_a_request_in_words_and_a_class_left_out(file: Path) -> None:
    load = changed(
        file,
        *("--set", "user_load.classes[Light].tasks[look].request=put /other?full=true"),
        *("--set", "user_load.classes[Heavy].weight=0"),
    ).user_load
    [light] = load.classes
    assert (light.tasks[1].request.method, light.tasks[1].request.path) == ("PUT", "/other")
    assert dict(light.tasks[1].request.query) == {"full": "true"}


def test_a_setting_without_a_value_takes_away(file: Path) -> None:
    run = changed(file, "--set", "user_load.classes[Heavy].wait_time=", "--set", "labels[team.name]=")
    assert not run.user_load.classes[0].HasField("wait_time")
    assert dict(run.labels) == {"team.name": ""}


def test_variables_of_the_file_are_set_before_the_environment(file: Path) -> None:
    run = changed(file, "--set", "variables.AGENT=new", AGENT="env")
    assert {one.headers["User-Agent"] for one in run.user_load.classes} == {"new"}
    assert changed(file, AGENT="env").user_load.classes[0].headers["User-Agent"] == "env"
    assert refused(file, "--set", "variables.AGENTS=x") == "variables.AGENTS: the file declares AGENT"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("user_load.classes[Hevy].weight=5", "user_load.classes has no 'Hevy'; it has 2: Heavy, Light"),
        ("user_load.classes[2].weight=5", "user_load.classes has no '2'; it has 2: Heavy, Light"),
        ("user_load.classes.weight=5", "user_load.classes is a list; write user_load.classes[Heavy].weight"),
        ("user_load.classes[0].wieght=5", "user_load.classes[0] has no field 'wieght'; did you mean weight?"),
        ("user_load.classes[0].tasks[nix].weight=5",
         "user_load.classes[0].tasks has no 'nix'; it has 2: POST /orders, look"),
        ("user_load.stages[0].users=5", "user_load.stages is empty"),
        ("user_load.users.x=5", "user_load.users is a single value"),
        ("user_load.users=many", "user_load.users: 'many' is no number"),
        ("labels.a.b=5", "labels.a is a single value"),
        ("user_load.classes[0].tasks[0].expected_statuses[0].x=5",
         "user_load.classes[0].tasks[0].expected_statuses[0] is a single value"),
        ("user_load.classes[0].tasks[0].expected_statuses[0]=",
         "user_load.classes[0].tasks[0].expected_statuses[0]: a value is needed"),
        ("load.users=5", "a run has no field 'load'; did you mean user_load?"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_said_with_what_does(file: Path, setting: str, said: str) -> None:
    assert refused(file, "--set", setting) == f"--set {setting}: {said}"


@pytest.mark.parametrize("text", ["user_load", "=5", ".a=5", "a..b=5", "a[=5", "a[0]b=5", "[0].a=5", "a=[", "a.=1"])
def test_what_is_no_setting(text: str) -> None:
    with pytest.raises(click.BadParameter):
        changes("--set", text)


def test_options_for_users_need_users(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("title: x\nscenarios: []")
    assert refused(other, "-u", "5", "-t", "5m") == "there is no user_load for --users, --run-time"
    file.write_text("title: x\nuser_load: {stages: [{duration: 5s, users: 3}]}")
    assert refused(file, "-r", "5") == "the stages say how many users; they do not go with --spawn-rate"


async def test_the_command_sends_what_was_changed(file: Path) -> None:
    servicer = FakeLoadTesting()
    async with serving(servicer) as address:
        outcome = await opsplane_command(
            "loadtest", "run", "-p", "shop", "-f", str(file), "-d", "-u", "9", "--set",
            "user_load.classes[Light].weight=2", address=address, environment={"DATA": "yes"},
        )  # fmt: skip
    assert outcome.status == 0, outcome.err
    load = servicer.created[0].run.user_load
    assert (load.users, load.classes[1].weight) == (9, 2)
    assert load.pools[0].data_set == "projects/shop/dataSets/ids"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "-p", "shop", "-e", "listPets", "-u", "5"),
        ("run", "-p", "shop", "-e", "listPets", "--set", "title=x"),
        ("script", "shop/nightly", "--preset", "smoke"),
    ],
)
async def test_options_that_change_a_file_need_one(arguments: tuple[str, ...]) -> None:
    outcome = await opsplane_command("loadtest", *arguments)
    assert outcome.status == 2
    assert "changes what a --file says" in " ".join(outcome.err.split())
