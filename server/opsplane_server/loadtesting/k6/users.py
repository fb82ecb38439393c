"""Load by simulated users as a readable k6 script."""

from __future__ import annotations

import re
from datetime import timedelta
from importlib import resources
from itertools import accumulate

from pydantic import JsonValue

from opsplane_server.loadtesting.definitions import LoadTest, Stage
from opsplane_server.loadtesting.k6 import loads, users_tasks
from opsplane_server.loadtesting.k6.literals import Raw, literal, string
from opsplane_server.loadtesting.k6.script import FLUSH_WAIT_SECONDS, SUMMARY, SYSTEM_TAGS
from opsplane_server.loadtesting.k6.users_values import Place, Values, draws, plain_number, rows_of
from opsplane_server.loadtesting.users import shares
from opsplane_server.loadtesting.users.holes import Part, UserField, parse
from opsplane_server.loadtesting.users.model import DataPool, Script, UserClass, UserLoad, WaitRule, WaitTime

# How long users that have to go may still take for the task that they are in.
_GRACE = timedelta(seconds=30)


def generate_users(test: LoadTest, load: UserLoad) -> str:
    """The script of a load by users. `test` says where to, with which credentials and targets; it has no scenarios.

    Every class is a k6 scenario of its name; calls of its on-start steps carry the scenario tag `CLASS:on_start` and
    names that end in ` (on start)`. The rows of every pool are read from the file `data_file(pool)` beside the
    script, a JSON array of objects. `load` and `test` have passed `checks.check` and `templates.check`. Raises
    InvalidArgument as `shares.stages`.
    """
    stages = shares.stages(load)
    names = _identifiers(load)
    values = Values()
    classes = [_class(test, one, index, names[one.name], values) for index, one in enumerate(load.classes)]
    own_code = any(_has_own_code(one) for one in load.classes)
    length = max(sum((stage.duration for stage in course), timedelta()) for course in stages.values())
    imports = [
        'import exec from "k6/execution";',
        'import http from "k6/http";',
        'import { check, randomSeed, sleep } from "k6";',
        'import { SharedArray } from "k6/data";',
    ]
    parts = [
        f"// Load test {string(test.title)}: simulated users\n" + "\n".join(imports) + "\n",
        f"const BASE_URL = {string(test.base_url.rstrip('/'))};\n"
        f"const SEED = {string(str(load.seed))};\n"
        f"const LOAD_MILLISECONDS = {length // timedelta(milliseconds=1)};\n",
        f"export const options = {literal(_options(test, load, stages, names))};\n",
        _pools(load.pools),
        "".join(f"const {name} = {constant};\n" for constant, name in values.constants.items()),
        *classes,
        "// Gives k6 time to send its last metrics.\n"
        f"export function teardown() {{\n  sleep({FLUSH_WAIT_SECONDS});\n}}\n",
        _runtime("users_own_code.js") if own_code else "",
        _runtime("users_runtime.js"),
    ]
    return "\n".join(part for part in parts if part)


def data_file(pool: str) -> str:
    """Name of the file with a pool's rows, beside the script."""
    return f"pool-{pool}.json"


def _runtime(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _identifiers(load: UserLoad) -> dict[str, str]:
    """A name for each class that can start a JavaScript identifier, all different."""
    names: dict[str, str] = {}
    for one in load.classes:
        plain = re.sub(r"[^A-Za-z0-9_]", "_", one.name)
        name, count = plain, 2
        while name in names.values():
            name, count = f"{plain}_{count}", count + 1
        names[one.name] = name
    return names


def _options(test: LoadTest, load: UserLoad, stages: shares.Stages, names: dict[str, str]) -> dict[str, JsonValue]:
    # Without a user, k6 does not take a scenario.
    scenarios: dict[str, JsonValue] = {
        one.name: _scenario(stages[one.name], names[one.name])
        for one in load.classes
        if any(stage.target for stage in stages[one.name])
    }
    options: dict[str, JsonValue] = {"scenarios": scenarios}
    if limits := loads.thresholds(test):
        options["thresholds"] = limits
    return options | {
        "systemTags": SYSTEM_TAGS,
        "summaryTrendStats": SUMMARY,
        "discardResponseBodies": True,
        "userAgent": "opsplane (k6)",
    }


def _scenario(stages: tuple[Stage, ...], name: str) -> dict[str, JsonValue]:
    return {
        "executor": "ramping-vus",
        "startVUs": 0,
        "stages": [{"duration": loads.duration(stage.duration), "target": stage.target} for stage in stages],
        "gracefulStop": loads.duration(_GRACE),
        "gracefulRampDown": loads.duration(_GRACE),
        "exec": f"{name}_scenario",
    }


def _pools(pools: tuple[DataPool, ...]) -> str:
    members: dict[str, JsonValue] = {
        each.name: Raw(f"pool({string(each.name)}, {each.rows_per_user}, {_step(each)})") for each in pools
    }
    return f"const pools = {literal(members)};\n"


def _step(pool: DataPool) -> int:
    """By how many rows a user's part begins after that of the user before."""
    return max(1, round(pool.rows_per_user * (1 - pool.overlap_ratio)))


def _has_own_code(user_class: UserClass) -> bool:
    return any(isinstance(task.action, Script) for task in (*user_class.tasks, *user_class.on_start))


def _class(test: LoadTest, one: UserClass, index: int, name: str, values: Values) -> str:
    """A class as an object, and the function of its scenario."""
    own_code = _has_own_code(one)
    # Own code can give its user other ids.
    ids = zip((UserField.ID, UserField.SESSION_ID), _ids(one), strict=True)
    values.plain_ids = frozenset(() if own_code else (name for name, parts in ids if values.is_plain(parts)))
    weights: list[float] = list(accumulate(task.weight or 1.0 for task in one.tasks))
    members = [
        f"  name: {string(one.name)},\n",
        f"  index: {index},\n",
        "  keep_cookies: true,\n" if one.keep_cookies else "",
        _identify(one, values),
        "  equip,\n" if own_code else "",
        users_tasks.calls(test, one, values) if own_code else "",
        f"  rest: {_rest(one.wait_time)},\n",
        _tasks(test, one, values, on_start=True),
        _tasks(test, one, values, on_start=False),
        f"  weights: {literal([plain_number(weight) for weight in weights], '  ')},\n",
    ]
    return (
        f"const {name}_users = {{\n{''.join(members)}}};\n"
        "\n"
        f"export function {name}_scenario() {{\n  turn({name}_users);\n}}\n"
    )


def _tasks(test: LoadTest, one: UserClass, values: Values, *, on_start: bool) -> str:
    name, tasks = ("on_start", one.on_start) if on_start else ("tasks", one.tasks)
    if not tasks:
        return f"  {name}: [],\n"
    written = (
        users_tasks.task(test, one, task, values, on_start=on_start, index=index) for index, task in enumerate(tasks)
    )
    return f"  {name}: [\n{''.join(written)}  ],\n"


def _ids(one: UserClass) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    return parse(one.user_id or f"{one.name}-{{{{user.number}}}}"), parse(one.session_id or "{{hex 32}}")


def _identify(one: UserClass, values: Values) -> str:
    """The member that gives a user its ids, of one row of every pool that they take."""
    user_id, session_id = _ids(one)
    return (
        "  identify(user) {\n"
        f"{draws(rows_of([user_id, session_id]), '    ')}"
        f"    user.id = {values.concatenation(user_id, Place.TEXT)};\n"
        f"    user.session_id = {values.concatenation(session_id, Place.TEXT)};\n"
        "  },\n"
    )


def _rest(wait: WaitTime) -> str:
    """The function of the time at which a task began that says how many seconds the user rests after it."""
    low, high = plain_number(wait.low), plain_number(wait.high)
    match wait.rule:
        case WaitRule.NONE:
            return "() => 0"
        case WaitRule.BETWEEN:
            return f"() => between({low}, {high})"
        case WaitRule.CONSTANT:
            return f"() => {low}"
        case WaitRule.CONSTANT_PACING:
            return f"(began) => pacing(began, {low})"
        case WaitRule.CONSTANT_THROUGHPUT:
            return f"(began) => pacing(began, 1 / {low})"
        case WaitRule.POISSON:
            return f"() => poisson({low})"
