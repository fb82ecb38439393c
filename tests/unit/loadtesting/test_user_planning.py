"""Loads by users become scripts, or it is said which field keeps them from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import pytest
from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.datasets.preparing import PreparedRows
from opsplane_server.loadtesting.definitions import Endpoint, LoadTest, Parameter, ParameterLocation, ParameterStyle
from opsplane_server.loadtesting.k6.inspect import Inspection
from opsplane_server.loadtesting.users import checks
from opsplane_server.loadtesting.users.model import (
    DataPool,
    EndpointCall,
    RequestTemplate,
    Script,
    UserClass,
    UserLoad,
    UserTask,
)
from opsplane_server.loadtesting.users.planning import UserScripts

PARENT = "projects/shop"
TEST = LoadTest("Users", "http://127.0.0.1:1", (), base_url_overridden=True)
LOOK = UserTask(RequestTemplate("GET", "/pets"))


class NoRows:
    """A `RowSource` of which nothing is known."""

    async def fields(self, parent: str, pools: Sequence[DataPool]) -> Mapping[str, Sequence[str]]:
        return {}

    async def prepare(
        self, pools: Sequence[DataPool], *, seed: int, now: datetime, needed: Mapping[str, Sequence[str]]
    ) -> PreparedRows:
        return PreparedRows({})


class Compiler:
    """Stands in for k6: it can not read scripts with one of these texts in them."""

    def __init__(self, *broken: str) -> None:
        self._broken = broken
        self.scripts: list[tuple[str, Mapping[str, str], str]] = []

    async def __call__(
        self, script: str, files: Mapping[str, str] | None = None, *, field: str = "run.script"
    ) -> Inspection:
        self.scripts.append((script, files or {}, field))
        for text in self._broken:
            if text in script:
                raise InvalidArgument.of(field, f"{text} at <eval>:5:7\n\tat script.js", reason="SCRIPT_ERROR")
        return Inspection({}, 1, timedelta(), None)


def load(*tasks: UserTask, on_start: Sequence[UserTask] = (), pools: Sequence[DataPool] = ()) -> UserLoad:
    """A load of two classes; the second one has these tasks."""
    classes = UserClass("First", (LOOK,)), UserClass("Second", tasks, on_start=tuple(on_start))
    return UserLoad(classes, tuple(pools), users=2, spawn_rate=1.0, run_time=timedelta(seconds=10))


def own(code: str) -> UserTask:
    return UserTask(Script(code))


async def refused(users: UserLoad, compiler: Compiler, *, allow_scripts: bool = True) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as refusal:
        await UserScripts(NoRows(), compiler, allow_scripts=allow_scripts).generate(PARENT, TEST, users)
    return refusal.value


async def test_scripts_can_be_forbidden() -> None:
    compiler = Compiler()
    error = await refused(load(LOOK, on_start=[own("1;")]), compiler, allow_scripts=False)
    assert error.reason == "SCRIPTS_FORBIDDEN"
    assert [violation.field for violation in error.violations] == ["run.user_load.classes[1].on_start[0].script"]
    assert not compiler.scripts
    assert await UserScripts(NoRows(), compiler, allow_scripts=False).generate(PARENT, TEST, load(LOOK))


async def test_only_own_code_is_compiled_and_finds_its_rows() -> None:
    compiler = Compiler()
    scripts = UserScripts(NoRows(), compiler, allow_scripts=True)
    await scripts.generate(PARENT, TEST, load(LOOK))
    assert not compiler.scripts
    pool = DataPool("pets", "projects/shop/dataSets/pets")
    script = await scripts.generate(PARENT, TEST, load(own("1;"), pools=[pool]))
    assert [(text, list(files), field) for text, files, field in compiler.scripts] == [
        (script, ["pool-pets.json"], "run.user_load")
    ]


@pytest.mark.parametrize("broken", range(7))
async def test_broken_task_is_found(broken: int) -> None:
    tasks = [own(f"task_{number}();") for number in range(7)]
    error = await refused(load(LOOK, *tasks), Compiler(f"task_{broken}()"))
    [violation] = error.violations
    assert violation.field == f"run.user_load.classes[1].tasks[{broken + 1}].script"
    assert violation.description == f"task_{broken}() at line 2:7"


async def test_script_that_is_broken_as_a_whole_is_of_no_task() -> None:
    error = await refused(load(own("1;")), Compiler("export const options"))
    assert [violation.field for violation in error.violations] == ["run.user_load"]


async def test_code_cannot_leave_its_literal() -> None:
    compiler = Compiler("`${evil}")
    error = await refused(load(own('"\n</script>\u2028`${evil}')), compiler)
    assert error.violations[0].field == "run.user_load.classes[1].tasks[0].script"
    module = compiler.scripts[-1][0]
    assert len(module.splitlines()) == 2


# --- rules --------------------------------------------------------------------------------------------------------


def call(base_url: str, **parameters: str) -> UserTask:
    given = Parameter(ParameterLocation.PATH, "id", True, 1, ParameterStyle.SIMPLE, explode=False)
    endpoint = Endpoint("GET", "/pets/{id}", parameters=(given,))
    return UserTask(EndpointCall("projects/shop/specs/pets/endpoints/e1", endpoint, base_url, parameters))


def fields(test: LoadTest, users: UserLoad) -> list[str]:
    with pytest.raises(InvalidArgument) as refusal:
        checks.check(test, users)
    return [violation.field for violation in refusal.value.violations]


NOWHERE = LoadTest("Users", "", ())


@pytest.mark.parametrize("base_url", ["", "/v1", "ftp://host", "http://host/?a=b", "http://[", "http://host#a"])
def test_calls_need_a_base_url(base_url: str) -> None:
    first = load(call("http://host")).classes[1:]
    users = UserLoad((*first, UserClass("Other", (call(base_url),))))
    assert fields(NOWHERE, users) == ["run.base_url"]
    checks.check(TEST, users)
    assert fields(LoadTest("", base_url, (), base_url_overridden=True), users) == ["run.base_url"]


def test_paths_alone_need_that_of_the_run() -> None:
    assert fields(NOWHERE, load(call("http://host"))) == ["run.base_url"]
    checks.check(NOWHERE, UserLoad((UserClass("A", (call("http://host"), own("1;"))),)))


def test_parameters_are_those_of_the_endpoint() -> None:
    users = load(call("", colour="red"), on_start=[call("", id="")])
    assert fields(TEST, users) == [
        "run.user_load.classes[1].tasks[0].parameters['colour']",
        "run.user_load.classes[1].on_start[0].parameters['id']",
    ]
    checks.check(TEST, load(call("", id="{{user.number}}")))


def test_all_that_is_wrong_is_named_at_once() -> None:
    pool = DataPool("pets", "projects/shop/dataSets/pets")
    one = UserClass("A", (call("", colour="red"),))
    assert fields(TEST, UserLoad((one, one), (pool, pool))) == [
        "run.user_load.classes[1].name",
        "run.user_load.pools[1].name",
        "run.user_load.classes[0].tasks[0].parameters['colour']",
        "run.user_load.classes[1].tasks[0].parameters['colour']",
    ]
