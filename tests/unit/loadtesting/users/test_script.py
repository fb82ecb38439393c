"""Scripts of users: k6 accepts them, and what they send is what templates say, as k6's own engine makes it."""

from __future__ import annotations

import ipaddress
import json
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from opsplane_server.loadtesting.definitions import (
    ApiKey,
    BearerToken,
    Credentials,
    Endpoint,
    LoadTest,
    Parameter,
    ParameterLocation,
    ParameterStyle,
    RequestBody,
    Stage,
    Target,
    TargetMetric,
)
from opsplane_server.loadtesting.k6.inspect import inspect
from opsplane_server.loadtesting.k6.users import data_file, generate_users
from opsplane_server.loadtesting.users.model import (
    EndpointCall,
    RequestTemplate,
    Script,
    UserClass,
    UserLoad,
    UserTask,
    WaitRule,
    WaitTime,
)

from tests.unit.loadtesting.k6.k6_binary import K6, evaluate
from tests.unit.loadtesting.k6.test_literals import NASTY
from tests.unit.loadtesting.users.loads import BROWSE, SECOND, TEST, load, pool, user_class

ROWS = [{"id": n, "text": text, "more": {"a": [n]}, "none": None} for n, text in enumerate(NASTY)]
OWN = UserTask(Script('user.request("GET", "/own");\ncheck(1, { ok: (one) => one === 1 });'), name="own")


def post(body: str, **fields: Any) -> UserTask:
    return UserTask(RequestTemplate("POST", "/", body=body, **fields))


class Made:
    """A script, and what its functions give for one user."""

    def __init__(self, folder: Path, *classes: UserClass, rows: list[Any] | None = None, **fields: Any) -> None:
        self.folder = folder
        self.load = load(*classes, **({"pools": (pool("rows"),)} | fields))
        for each in self.load.pools:
            (folder / data_file(each.name)).write_text(json.dumps(ROWS if rows is None else rows))
        self.script = generate_users(TEST, self.load)

    def values(self, expression: str, times: int = 1, **user: Any) -> list[Any]:
        """What an expression in `user` gives, so many times."""
        (found,) = self.of_users(f"Array.from(Array({times}), () => {expression})", [user])
        return list(found)

    def of_users(self, expression: str, users: list[dict[str, Any]]) -> list[Any]:
        common = {"number": 1, "id": "u", "session_id": "s", "captured": {}, "counts": [], "rows": {}}
        literals = ", ".join(json.dumps(common | user) for user in users)
        found = evaluate(self.script, self.folder, {"all": f"JSON.stringify([{literals}].map((user) => {expression}))"})
        answer: list[Any] = json.loads(found["all"])
        return answer

    def requests(self, times: int = 1, *, task: int = 0, **user: Any) -> list[dict[str, Any]]:
        """The requests of a task of the first class."""
        return self.values(f"Visitor_users.tasks[{task}].request(user)", times, **user)


WAITS = [
    WaitTime(),
    WaitTime(WaitRule.BETWEEN, 0.5, 1.0),
    WaitTime(WaitRule.CONSTANT, 2.0),
    WaitTime(WaitRule.CONSTANT_PACING, 1.5),
    WaitTime(WaitRule.CONSTANT_THROUGHPUT, 4.0),
    WaitTime(WaitRule.POISSON, 2.0),
]
LOADS = {
    "one class": load(),
    "odd names": load(*map(user_class, ["check", "a-b", "a_b", "a_b_2", "options", "turn", "_", "class", "__proto__"])),
    "waits": load(*(user_class(f"w{n}", wait_time=wait) for n, wait in enumerate(WAITS))),
    "no users": load(user_class("most", weight=1000.0), user_class("few", weight=1.0)),
    "stages": load(users=0, spawn_rate=0.0, run_time=None, stages=(Stage(SECOND, 5), Stage(SECOND / 3, 0))),
    "nasty texts": load(
        *(
            user_class(
                f"c{n}",
                UserTask(
                    RequestTemplate("POST", f"/{text}".replace("{", "").replace("\n", ""), {text: text}), name=text
                ),
                post(text, content_type="text/plain", headers={"X": text.replace("\n", "").replace("\r", "")}),
                UserTask(Script(f"const x = {json.dumps(text)}; // {json.dumps(text)}"), name=text),
            )
            for n, text in enumerate(NASTY)
        )
    ),
    "odd pools": load(
        user_class("a", post("[{{pool.__proto__.__proto__}}, {{captured.__proto__}}]"), OWN),
        pools=(pool("__proto__"), pool("constructor", part=3, overlap=0.5)),
    ),
    "own code": load(user_class("a", OWN, on_start=(OWN,))),
}


@pytest.mark.parametrize("name", LOADS)
async def test_k6_accepts_every_script(name: str, tmp_path: Path) -> None:
    for each in LOADS[name].pools:
        (tmp_path / data_file(each.name)).write_text('[{"__proto__": 1}]')
    script = tmp_path / "script.js"
    script.write_text(generate_users(TEST, LOADS[name]), encoding="utf-8")
    found = await inspect(K6, script)
    users = {scenario: options["stages"] for scenario, options in found.options["scenarios"].items()}
    for stage in range(len(users[next(iter(users))])):
        assert sum(stages[stage]["target"] for stages in users.values()) in (10, 5, 0)
    assert len({options["exec"] for options in found.options["scenarios"].values()}) == len(users)


async def test_options(tmp_path: Path) -> None:
    test = LoadTest("t", "http://h", (), targets=(Target(TargetMetric.RESPONSE_TIME_P95, 500.0, scenario="b"),))
    (tmp_path / "script.js").write_text(
        generate_users(test, load(user_class("a", weight=1.0), user_class("b", weight=3.0)))
    )
    options = (await inspect(K6, tmp_path / "script.js")).options
    assert options["discardResponseBodies"] is True
    assert list(options["thresholds"]) == ["http_req_duration{scenario:b}"]
    assert options["scenarios"]["b"] == options["scenarios"]["b"] | {
        "executor": "ramping-vus",
        "startVUs": 0,
        "stages": [{"duration": "2s", "target": 7}, {"duration": "58s", "target": 7}],
        "gracefulStop": "30s",
        "gracefulRampDown": "30s",
        "exec": "b_scenario",
    }


def test_the_same_load_gives_the_same_script() -> None:
    assert generate_users(TEST, LOADS["nasty texts"]) == generate_users(TEST, LOADS["nasty texts"])


def test_own_code_comes_only_where_it_is_used() -> None:
    assert "new Function" not in generate_users(TEST, load())
    assert "new Function" in generate_users(TEST, LOADS["own code"])


# --- what is sent ---


def test_bodies_stay_json_with_any_value(tmp_path: Path) -> None:
    body = '{"in": "<{{pool.rows.text}}>", "bare": {{pool.rows.text}}, "id": {{pool.rows.id}}, "{{pool.rows.text}}": 0,'
    body += '"more": {{pool.rows.more}}, "none": {{pool.rows.none}}, "missing": {{pool.rows.missing}}}'
    found = [json.loads(sent["body"]) for sent in Made(tmp_path, user_class("Visitor", post(body))).requests(400)]
    assert {sent["id"] for sent in found} == set(range(len(ROWS)))
    for sent in found:
        row = ROWS[sent["id"]]
        assert sent == {
            "in": f"<{row['text']}>",
            "bare": row["text"],
            "id": row["id"],
            row["text"]: 0,
            "more": row["more"],
            "none": None,
            "missing": None,
        }


def test_values_that_are_made_up(tmp_path: Path) -> None:
    body = """{"uuid": {{uuid}}, "hex": {{hex 31}}, "int": {{int -2 2}}, "big": {{int 0 9007199254740991}},
        "word": "{{choice a 'b "c' 3}}", "value": {{choice 20 true null "20" x}}, "odds": {{weighted 9 1 1 2 0 3}},
        "ip": {{private_ip}}, "at": {{timestamp -2h -1h}}, "soon": "{{timestamp 0s 1d}}", "now": {{now}},
        "first": {{sequence}}, "second": "{{sequence 10}}"}"""
    started = datetime.now(UTC)
    found = [json.loads(sent["body"]) for sent in Made(tmp_path, user_class("Visitor", post(body))).requests(1000)]
    ended = datetime.now(UTC)

    assert {uuid.UUID(sent["uuid"]).version for sent in found} == {4}
    assert {uuid.UUID(sent["uuid"]).variant for sent in found} == {uuid.RFC_4122}
    assert len({sent["uuid"] for sent in found}) == 1000
    assert {len(sent["hex"]) for sent in found} == {31}
    assert set("".join(sent["hex"] for sent in found)) == set("0123456789abcdef")
    assert set(Counter(sent["int"] for sent in found)) == {-2, -1, 0, 1, 2}
    assert all(0 <= sent["big"] < 2**53 for sent in found)
    assert max(sent["big"] for sent in found) > 2**52
    assert {sent["word"] for sent in found} == {"a", 'b "c', "3"}
    assert {json.dumps(sent["value"]) for sent in found} == {"20", "true", "null", '"20"', '"x"'}
    odds = Counter(sent["odds"] for sent in found)
    assert set(odds) == {1, 2}
    assert 50 < odds[2] < 160
    assert all(ipaddress.IPv4Address(sent["ip"]).is_private for sent in found)
    assert {sent["ip"].split(".")[0] for sent in found} == {"10", "172", "192"}
    for sent in found:
        ago = (started - datetime.fromisoformat(sent["at"])).total_seconds()
        assert 3600 - (ended - started).total_seconds() - 1 <= ago <= 7201
        assert (datetime.fromisoformat(sent["soon"]) - started).total_seconds() >= -1
    assert [sent["first"] for sent in found] == list(range(1, 1001))
    assert [sent["second"] for sent in found] == [str(n) for n in range(10, 1010)]


def test_several_rows_are_different_ones_of_the_users_part(tmp_path: Path) -> None:
    made = Made(
        tmp_path,
        user_class("Visitor", post("[{{pool.rows.id 0 5}}]")),
        rows=[{"id": n} for n in range(100)],
        pools=(pool("rows", part=8),),
    )
    found = [json.loads(sent["body"]) for sent in made.requests(500, number=2)]
    assert {len(sent) for sent in found} == set(range(6))
    assert all(len(set(sent)) == len(sent) for sent in found)
    assert {row for sent in found for row in sent} == set(range(8, 16))


def test_no_more_rows_than_there_are(tmp_path: Path) -> None:
    made = Made(tmp_path, user_class("Visitor", post("[{{pool.rows.id 5}}]")), rows=[{"id": 1}, {"id": 2}])
    assert sorted(json.loads(made.requests()[0]["body"])) == [1, 2]


@pytest.mark.parametrize(
    ("part", "overlap", "starts"), [(50, 0.3, [0, 35, 70, 105]), (20, 0.0, [0, 20, 40, 60]), (1, 0.9, [0, 1, 2, 3])]
)
def test_parts_of_users(part: int, overlap: float, starts: list[int], tmp_path: Path) -> None:
    made = Made(
        tmp_path,
        user_class("Visitor", post("{{pool.rows.id}}")),
        rows=[{"id": n} for n in range(120)],
        pools=(pool("rows", part=part, overlap=overlap),),
    )
    users = [{"number": number} for number in (1, 2, 3, 4)]
    found = made.of_users("Array.from(Array(pools.rows.size), (_, n) => row(user, pools.rows, n).id)", users)
    assert found == [[(start + n) % 120 for n in range(part)] for start in starts]
    drawn = made.of_users(f"Array.from(Array({part * 12}), () => draw(user, pools.rows).id)", users)
    assert all(set(ids) <= set(whole) for ids, whole in zip(drawn, found, strict=True))
    assert len(set(drawn[3])) > part / 2


def test_a_part_is_not_larger_than_the_pool(tmp_path: Path) -> None:
    made = Made(tmp_path, rows=[{"id": n} for n in range(3)], pools=(pool("rows", part=50, overlap=0.3),))
    assert made.values("pools.rows.size") == [3]


def test_paths_and_queries_are_encoded(tmp_path: Path) -> None:
    request = RequestTemplate(
        "GET",
        "/a b/{{pool.rows.text}}/{{captured.x}}?p={{pool.rows.text}}",
        {"q&": "<{{pool.rows.text}}&{{choice 'x y'}}>"},
    )
    made = Made(tmp_path, user_class("Visitor", UserTask(request)))
    seen = set()
    for sent in made.requests(300, captured={"x": {"a": "/"}}):
        url = urlsplit(sent["url"])
        assert (url.netloc, url.fragment) == ("127.0.0.1:1", "")
        *base, path, captured = url.path.split("/")
        pairs = dict(parse_qsl(url.query, keep_blank_values=True, strict_parsing=True))
        text = unquote(path)
        assert (base, unquote(captured)) == (["", "base", "a%20b"], '{"a":"/"}')
        assert pairs == {"p": text, "q&": f"<{text}&x y>"}
        seen.add(text)
    assert seen == set(NASTY)


def test_half_characters_do_not_stop_a_user(tmp_path: Path) -> None:
    made = Made(tmp_path, user_class("Visitor", UserTask(RequestTemplate("GET", "/{{captured.x}}"))))
    assert made.values(r'url("a\ud800b\udc00\ud83d\ude00")') == ["a%EF%BF%BDb%EF%BF%BD%F0%9F%98%80"]


def test_headers_are_one_line(tmp_path: Path) -> None:
    visitor = user_class(
        "Visitor",
        UserTask(RequestTemplate("GET", "/", headers={"x-own": "{{pool.rows.text}}", "X-Class": "own {{user.id}}"})),
        headers={"X-CLASS": "no", "Authorization": "Bearer {{user.id}}"},
        session_header="X-Session-Id",
    )
    for sent in Made(tmp_path, visitor).requests(200):
        text = sent["headers"].pop("x-own")
        assert not any(ord(character) < 32 or ord(character) == 127 for character in text)
        assert sent["headers"] == {"Authorization": "Bearer u", "X-Class": "own u", "X-Session-Id": "s"}


def test_ids_that_rows_give_cannot_break_headers(tmp_path: Path) -> None:
    visitor = user_class("Visitor", headers={"X": "{{user.id}}"}, user_id="{{pool.rows.text}}")
    (sent,) = Made(tmp_path, visitor).requests(1, id="a\r\nb\0")
    assert sent["headers"] == {"X": "a b "}


def test_ids_come_of_the_same_row(tmp_path: Path) -> None:
    visitor = user_class(
        "Visitor", user_id="{{pool.rows.id}}-{{user.number}}", session_id="{{pool.rows.id}}/{{user.id}}"
    )
    made = Made(tmp_path, visitor, rows=[{"id": n} for n in range(50)])
    found = made.of_users("(Visitor_users.identify(user), user)", [{"number": number} for number in range(1, 40)])
    assert len({user["id"] for user in found}) > 10
    for user in found:
        row = user["id"].split("-")[0]
        assert (user["id"], user["session_id"]) == (f"{row}-{user['number']}", f"{row}/{user['id']}")


def test_users_have_seeds_of_their_own(tmp_path: Path) -> None:
    def seeds(number: int) -> list[int]:
        made = Made(tmp_path, *(user_class(f"c{n}") for n in range(50)), users=100, seed=number)
        kinds = ", ".join(f"c{n}_users" for n in range(50))
        found = made.values(f"[{kinds}].map((kind) => [1, 2, 3, 50000, 100000].map((n) => seed(kind, n)))")
        return [seed for kind in found[0] for seed in kind]

    few, negative = seeds(7), seeds(-(2**63))
    assert len({*few, *negative}) == 500
    assert all(0 <= seed < 2**31 - 1 for seed in few + negative)


def test_first_draws_of_users_are_spread(tmp_path: Path) -> None:
    made = Made(tmp_path)
    expression = "(randomSeed(seed(Visitor_users, user.number)), Math.floor(Math.random() * 10))"
    found = Counter(made.of_users(expression, [{"number": number} for number in range(1, 1001)]))
    assert all(60 < found[digit] < 145 for digit in range(10))


@pytest.mark.parametrize(
    ("fields", "content_type", "body"),
    [
        ({}, "application/json", '"a \\"b"'),
        ({"content_type": "application/x-www-form-urlencoded"}, "application/x-www-form-urlencoded", "a%20%22b"),
        ({"content_type": "text/plain"}, "text/plain", 'a "b'),
        ({"headers": {"content-type": "text/x"}}, "text/x", 'a "b'),
    ],
)
def test_bodies_are_written_as_their_type_asks(
    fields: dict[str, Any], content_type: str, body: str, tmp_path: Path
) -> None:
    made = Made(tmp_path, user_class("Visitor", post("{{captured.x}}", **fields)))
    (sent,) = made.requests(captured={"x": 'a "b'})
    assert sent["body"] == body
    assert {name.lower(): value for name, value in sent["headers"].items()} == {"content-type": content_type}


def test_a_type_of_the_task_goes_before_that_of_the_class(tmp_path: Path) -> None:
    visitor = user_class(
        "Visitor", post("x", content_type="text/plain"), post("{}"), BROWSE, headers={"Content-Type": "text/html"}
    )
    made = Made(tmp_path, visitor)
    types = [made.requests(task=task)[0]["headers"]["Content-Type"] for task in range(3)]
    assert types == ["text/plain", "text/html", "text/html"]


def test_numbers_alone_are_sent_as_text(tmp_path: Path) -> None:
    made = Made(tmp_path, user_class("Visitor", post("{{int 1 1}}{{user.number}}", content_type="text/plain")))
    assert made.requests(number=2)[0]["body"] == "12"


def test_endpoints_with_templates(tmp_path: Path) -> None:
    def parameter(location: ParameterLocation, name: str, sample: Any = "s") -> Parameter:
        return Parameter(location, name, True, sample, ParameterStyle.SIMPLE, False)

    endpoint = Endpoint(
        "PUT",
        "/pets/{id}/{kind}",
        parameters=(
            parameter(ParameterLocation.PATH, "id"),
            parameter(ParameterLocation.PATH, "kind", "cat"),
            parameter(ParameterLocation.QUERY, "q", ["a", "{{b}}"]),
            parameter(ParameterLocation.QUERY, "r"),
            parameter(ParameterLocation.HEADER, "X-H"),
            parameter(ParameterLocation.COOKIE, "c"),
        ),
        body=RequestBody("application/json", True, '{"sample": "{{kept}}"}'),
        success_statuses=(201,),
    )
    parameters = {
        "id": "{{pool.rows.id}} {{user.id}}",
        "r": "{{captured.x}}",
        "X-H": "h {{user.number}}",
        "c": "{{user.id}}",
    }
    call = EndpointCall("e", endpoint, "http://pets.example/v1/", parameters)
    test = LoadTest("t", "http://other.example", ())
    tasks = (
        UserTask(call, expected_statuses=(404,)),
        UserTask(EndpointCall("e", endpoint, "", parameters, '{"a": {{user.id}}}')),
    )
    made = Made(tmp_path, user_class("Visitor", *tasks), rows=[{"id": "/"}])
    made.script = generate_users(test, made.load)
    (sent,) = made.requests(captured={"x": "&"}, id="u")
    assert sent == {
        "url": "http://pets.example/v1/pets/%2F%20u/cat?q=a,%7B%7Bb%7D%7D&r=%26",
        "body": '{"sample":"{{kept}}"}',
        "headers": {"X-H": "h 1", "Content-Type": "application/json"},
        "cookies": {"c": "u"},
    }
    (other,) = made.requests(task=1, captured={"x": "&"}, id="u")
    assert other["body"] == '{"a": "u"}'
    assert made.values("Visitor_users.tasks.map((task) => Object.keys(task.checks))") == [
        [["status is 404"], ["status is 201"]]
    ]


@pytest.mark.parametrize(
    ("credentials", "part", "name"),
    [
        (BearerToken("s3cret"), "Authorization: __ENV.OPSPLANE_AUTHORIZATION", "headers"),
        (ApiKey(ParameterLocation.HEADER, "X-Key", "s3cret"), '"X-Key": __ENV.OPSPLANE_API_KEY', "headers"),
        (ApiKey(ParameterLocation.COOKIE, "key", "s3cret"), "key: __ENV.OPSPLANE_API_KEY", "cookies"),
        (ApiKey(ParameterLocation.QUERY, "k", "s3cret"), '"k=" + encodeURIComponent(__ENV.OPSPLANE_API_KEY)', "url"),
    ],
)
def test_credentials_come_from_the_environment(credentials: Credentials, part: str, name: str) -> None:
    test = LoadTest("t", "http://h", (), credentials=credentials)
    script = generate_users(test, load(user_class("a", BROWSE, OWN)))
    assert "s3cret" not in script
    assert script.count(part) == 2  # of the task, and of the calls of own code
    assert name in script


def test_a_header_of_the_class_replaces_the_credentials() -> None:
    test = LoadTest("t", "http://h", (), credentials=BearerToken("s3cret"))
    script = generate_users(test, load(user_class("a", headers={"authorization": "Bearer {{user.id}}"})))
    assert "OPSPLANE_AUTHORIZATION" not in script


# --- what is counted ---


def test_names_weights_and_checks(tmp_path: Path) -> None:
    visitor = user_class(
        "Visitor",
        UserTask(RequestTemplate("GET", "/cases/{{pool.rows.id}}/{{ choice a b }}?of={{uuid}}"), weight=0.5),
        UserTask(RequestTemplate("GET", "/"), name="front page", expected_statuses=(200, 404)),
        UserTask(Script("user.x = 1")),
        UserTask(EndpointCall("e", Endpoint("GET", "/pets/{id}"), "http://h"), weight=3.0, expected_statuses=(302,)),
        on_start=(UserTask(RequestTemplate("POST", "/login"), captures={"token": "a.b[0]"}),),
    )
    made = Made(tmp_path, visitor)
    (kind,) = made.values("Visitor_users")
    assert [task["name"] for task in kind["tasks"]] == [
        "GET /cases/{pool.rows.id}/{choice a b}",
        "front page",
        "Visitor 3",
        "GET /pets/{id}",
    ]
    assert [task.get("params", {}).get("tags") for task in kind["tasks"]] == [
        {"name": "GET /cases/{pool.rows.id}/{choice a b}"},
        {"name": "front page"},
        None,
        {"name": "GET /pets/{id}"},
    ]
    assert kind["weights"] == [0.5, 1.5, 2.5, 5.5]
    assert kind["tasks"][3]["params"]["redirects"] == 0
    assert "responseType" not in kind["tasks"][0]["params"]
    (login,) = kind["on_start"]
    assert login["name"] == "POST /login (on start)"
    assert login["params"]["tags"] == {"name": "POST /login (on start)"}
    assert login["params"]["responseType"] == "text"
    assert login["captures"] == [{"name": "token", "path": ["a", "b", 0]}]


@pytest.mark.parametrize(
    ("wait", "least", "most", "mean"),
    [
        (WAITS[0], 0, 0, 0),
        (WAITS[1], 0.5, 1.0, 0.75),
        (WAITS[2], 2, 2, 2),
        (WAITS[3], 1.2, 1.3, 1.25),
        (WAITS[4], 0, 0.05, 0.02),
        (WAITS[5], 0, 10, 0.5),
    ],
)
def test_rests(wait: WaitTime, least: float, most: float, mean: float, tmp_path: Path) -> None:
    made = Made(tmp_path, user_class("Visitor", wait_time=wait))
    made.script += "\nDate.now = () => 1250;\n"
    found = made.values("Visitor_users.rest(1000)", 2000)
    assert all(least - 1e-9 <= rest <= most + 1e-9 for rest in found)
    assert sum(found) / len(found) == pytest.approx(mean, rel=0.15, abs=0.03)


def test_rows_of_odd_names(tmp_path: Path) -> None:
    made = Made(
        tmp_path,
        user_class("Visitor", post("[{{pool.__proto__.__proto__}}, {{pool.constructor.toString}}]")),
        rows=[{"x": 1}],
        pools=(pool("__proto__"), pool("constructor")),
    )
    for name in ("__proto__", "constructor"):
        (tmp_path / data_file(name)).write_text('[{"__proto__": "a", "toString": "b"}]')
    assert json.loads(made.requests()[0]["body"]) == ["a", "b"]


def test_a_load_of_users_is_one_file_and_its_rows() -> None:
    assert data_file("rows") == "pool-rows.json"
    assert "open(`./pool-${name}.json`)" in generate_users(
        TEST, UserLoad(load().classes, (pool("rows"),), users=1, spawn_rate=1, run_time=SECOND)
    )
