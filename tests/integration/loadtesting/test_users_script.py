"""Scripts of users under a real k6: what an API sees of them, and what k6 counts."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opsplane_server.loadtesting.definitions import LoadTest, Stage
from opsplane_server.loadtesting.k6.users import data_file, generate_users
from opsplane_server.loadtesting.users.model import (
    DataPool,
    Generator,
    RequestTemplate,
    Script,
    UserClass,
    UserLoad,
    UserTask,
    WaitRule,
    WaitTime,
)

from tests.unit.loadtesting.k6.k6_binary import K6
from tests.unit.loadtesting.users.loads import SECOND

NASTY = [
    "plain",
    'q"uote',
    "two\nlines",
    "b\\ack",
    "ü 😀",
    "\u2028",
    "</script>",
    "{{uuid}}",
    "__proto__",
    "a/b?c#d&e=f",
]
ROWS = [{"id": n, "text": f"{NASTY[n % len(NASTY)]}"} for n in range(60)]
SESSION = "x-session-id"
REST = WaitTime(WaitRule.BETWEEN, 0.01, 0.03)


@dataclass
class Call:
    method: str
    path: str
    headers: dict[str, str]
    body: str

    @property
    def session(self) -> str:
        return self.headers[SESSION]


@dataclass
class Api:
    """Keeps every call. `/status/404` answers 404, `/slow` late; answers are JSON and set a cookie."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split(" ")
                call = Call(method, path, headers, body.decode())
                self.calls.append(call)
                if call.path.startswith("/slow"):
                    await asyncio.sleep(2)
                answer = json.dumps({"data": {"tokens": [f"token {headers.get(SESSION)}"], "odd": None}}).encode()
                status = call.path.split("/")[2] if call.path.startswith("/status/") else "200"
                cookie = f"set-cookie: last={len(self.calls)}; Path=/\r\n"
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(answer)}\r\n{cookie}\r\n".encode() + answer)
                await writer.drain()
        writer.close()

    def to(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path.startswith(path)]


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    api = Api()
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0)
    api.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield api
    server.close()
    for writer in api.writers:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@dataclass
class Outcome:
    """What k6 said, and every sample that it counted: metric, tags, value."""

    output: str
    samples: list[tuple[str, dict[str, str], float]]

    def count(self, metric: str, *tags: str) -> Counter[tuple[str, ...]]:
        return Counter(tuple(found.get(tag, "") for tag in tags) for name, found, _ in self.samples if name == metric)

    def failed_checks(self) -> set[str]:
        return {tags["check"] for name, tags, value in self.samples if name == "checks" and value == 0}


def write(folder: Path, api: Api, load: UserLoad, rows: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    script = generate_users(LoadTest("t", api.url, (), base_url_overridden=True), load)
    (folder / "script.js").write_text(script, encoding="utf-8")
    for pool in load.pools:
        (folder / data_file(pool.name)).write_text(json.dumps(rows))


async def run(folder: Path, api: Api, load: UserLoad, *arguments: str, rows: list[Any] | None = None) -> Outcome:
    write(folder, api, load, ROWS if rows is None else rows)
    samples = folder / "samples.json"
    process = await asyncio.create_subprocess_exec(
        K6,
        "run",
        "--no-color",
        "--address=",
        f"--out=json={samples}",
        "--system-tags=name,scenario,check",
        *arguments,
        "script.js",
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "K6_NO_USAGE_REPORT": "true"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(120):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    points = [json.loads(line) for line in samples.read_text().splitlines()]
    found = [
        (point["metric"], point["data"]["tags"], point["data"]["value"]) for point in points if point["type"] == "Point"
    ]
    return Outcome(output.decode(), found)


def get(path: str, **fields: Any) -> UserTask:
    return UserTask(RequestTemplate("GET", path), **fields)


def post(path: str, body: str, **fields: Any) -> UserTask:
    return UserTask(RequestTemplate("POST", path, body=body), **fields)


def pool(name: str, *, part: int = 0, overlap: float = 0.0) -> DataPool:
    return DataPool(name, Generator(1, ()), rows_per_user=part, overlap_ratio=overlap)


def load(*classes: UserClass, users: int = 4, seconds: int = 2, **fields: Any) -> UserLoad:
    """All users at once."""
    stages = (Stage(0 * SECOND, users), Stage(seconds * SECOND, users))
    numbers: dict[str, Any] = {"stages": stages, "seed": 7}
    return UserLoad(classes, **(numbers | fields))


async def test_users_of_two_classes(api: Api, tmp_path: Path) -> None:
    heavy = UserClass(
        "Heavy",
        (
            post(
                "/search",
                '{"ids": [{{pool.rows.id 2 3}}], "text": "{{pool.rows.text}}", "n": {{sequence}}}',
                weight=3.0,
            ),
            get("/cases/{{pool.rows.text}}?of={{pool.rows.id}}&token={{captured.token}}"),
            get("/status/404", expected_statuses=(200, 404)),
        ),
        weight=1.0,
        wait_time=REST,
        on_start=(get("/login", captures={"token": "data.tokens[0]"}),),
        headers={"Authorization": "Bearer mock-{{user.id}}"},
        session_header="X-Session-Id",
        keep_cookies=True,
        user_id="user_{{user.number}}",
    )
    light = UserClass("Light", (get("/light"),), weight=3.0, wait_time=REST, session_header="X-Session-Id")
    outcome = await run(
        tmp_path, api, load(heavy, light, users=8, seconds=4, pools=(pool("rows", part=20, overlap=0.5),))
    )

    users = defaultdict(list)
    for call in api.calls:
        users[call.session].append(call)
    assert all(len(session) == 32 and set(session) <= set("0123456789abcdef") for session in users)
    heavies = {session: calls for session, calls in users.items() if calls[0].path == "/login"}
    assert (len(heavies), len(users)) == (2, 8)
    for session, calls in heavies.items():
        (authorization,) = {call.headers["authorization"] for call in calls}
        number = int(authorization.removeprefix("Bearer mock-user_"))
        part = {(number - 1) * 10 % 60 + place for place in range(20)}
        assert [call.path for call in calls].count("/login") == 1
        assert all("cookie" in call.headers for call in calls[1:])
        searches = [json.loads(call.body) for call in calls if call.path == "/search"]
        assert [search["n"] for search in searches] == list(range(1, len(searches) + 1))
        for search in searches:
            assert len(set(search["ids"])) == len(search["ids"]) in (2, 3)
            assert {place % 60 for place in part} >= set(search["ids"])
            assert search["text"] in NASTY
        for call in calls:
            if call.path.startswith("/cases/"):
                assert call.path.count("/") == 2
                assert call.path.endswith(f"&token=token%20{session}")
    for session, calls in users.items():
        if session not in heavies:
            assert {call.path for call in calls} == {"/light"}
            assert not any("cookie" in call.headers for call in calls)

    assert outcome.failed_checks() == set()
    names = outcome.count("http_reqs", "scenario", "name")
    assert names == {
        ("Heavy:on_start", "GET /login (on start)"): 2,
        ("Heavy", "POST /search"): len(api.to("/search")),
        ("Heavy", "GET /cases/{pool.rows.text}"): len(api.to("/cases/")),
        ("Heavy", "GET /status/404"): len(api.to("/status/404")),
        ("Light", "GET /light"): len(api.to("/light")),
    }
    assert outcome.count("iterations", "scenario")["Heavy:on_start",] == 2
    assert len(api.to("/search")) > len(api.to("/cases/")) > 0


async def test_the_same_seed_gives_the_same_data(api: Api, tmp_path: Path) -> None:
    tasks = (
        post("/a", '{"a": {{uuid}}, "b": [{{pool.rows.id 1 3}}], "c": "{{choice x y z}}", "d": {{private_ip}}}'),
        get("/b/{{pool.rows.id}}/{{hex 8}}/{{int 1 1000000}}", weight=2.0),
    )
    visitor = UserClass("Visitor", tasks, wait_time=REST, session_header="X-Session-Id")

    async def data(seed: int, folder: str) -> dict[str, list[tuple[str, str]]]:
        api.calls.clear()
        await run(tmp_path / folder, api, load(visitor, pools=(pool("rows", part=10),), seed=seed))
        found = defaultdict(list)
        for call in api.calls:
            found[call.session].append((call.path, call.body))
        return found

    first, again, other = await data(7, "a"), await data(7, "b"), await data(8, "c")
    assert len(first) == 4
    assert set(first) == set(again)
    assert not set(first) & set(other)
    for session, calls in first.items():
        both = min(len(calls), len(again[session]))
        assert both > 1
        assert calls[:both] == again[session][:both]


async def test_generators_share_the_users(api: Api, tmp_path: Path) -> None:
    visitor = UserClass(
        "Visitor", (get("/{{pool.rows.id}}/{{user.number}}"),), wait_time=REST, session_header="X-Session-Id"
    )
    shared = load(visitor, users=6, pools=(pool("rows", part=5),))
    await asyncio.gather(
        *(
            run(
                tmp_path / str(half),
                api,
                shared,
                f"--execution-segment={half}/2:{half + 1}/2",
                "--execution-segment-sequence=0,1/2,1",
            )
            for half in (0, 1)
        )
    )
    rows = defaultdict(set)
    for call in api.calls:
        row, user = call.path.removeprefix("/").split("/")
        rows[call.session, int(user)].add(int(row))
    assert sorted(number for _, number in rows) == [1, 2, 3, 4, 5, 6]
    assert len({session for session, _ in rows}) == 6
    for (_, number), drawn in rows.items():
        assert drawn <= set(range((number - 1) * 5, number * 5))


async def test_users_with_ids_from_rows(api: Api, tmp_path: Path) -> None:
    rows = [{"user": f"u{n}", "session": f"{n:032x}"} for n in range(4)]
    visitor = UserClass(
        "Visitor",
        (get("/{{user.id}}/{{user.session_id}}"),),
        wait_time=REST,
        session_header="X-Session-Id",
        user_id="{{pool.people.user}}",
        session_id="{{pool.people.session}}",
    )
    await run(tmp_path, api, load(visitor, pools=(pool("people", part=1),)), rows=rows)
    assert {call.path for call in api.calls} == {f"/u{n}/{n:032x}" for n in range(4)}
    assert all(call.path.endswith(call.session) for call in api.calls)


async def test_own_code(api: Api, tmp_path: Path) -> None:
    code = """
const row = user.pool("rows");
const answer = user.request("POST", "/own?a=1", {
  name: "own call",
  body: { row: row.id, r: user.random(), id: user.id, number: user.number },
  headers: { "X-Own": user.session_id },
  query: { "ä": "ö&" },
});
check(answer, { "the answer has a token": (answer) => answer.json("data.tokens")[0] === `token ${user.session_id}` });
user.captured.mine = answer.json("data");
user.request("PUT", "/status/404", { body: "text", contentType: "text/plain", expected: [404] });
"""
    broken = "user.request('GET', '/before');\nthrow new Error('on purpose');"
    visitor = UserClass(
        "Visitor",
        (
            UserTask(Script(code), name="mine"),
            UserTask(Script(broken), name="broken"),
            post("/after", '{"mine": {{captured.mine}}}'),
        ),
        wait_time=REST,
        headers={"X-Class": "of {{user.id}}"},
        session_header="X-Session-Id",
        on_start=(UserTask(Script("user.pool('none')"), name="start"),),
    )
    outcome = await run(tmp_path, api, load(visitor, users=2, seconds=4, pools=(pool("rows"),)))

    own = api.to("/own")
    assert own
    assert {call.path for call in own} == {"/own?a=1&%C3%A4=%C3%B6%26"}
    for call in own:
        body = json.loads(call.body)
        assert (call.headers["x-own"], call.headers["x-class"]) == (call.session, f"of {body['id']}")
        assert call.headers["content-type"] == "application/json"
        assert 0 <= body["row"] < 60
        assert 0 <= body["r"] < 1
    assert {(call.method, call.body, call.headers["content-type"]) for call in api.to("/status/404")} == {
        ("PUT", "text", "text/plain")
    }
    assert any(
        json.loads(call.body)["mine"] == {"tokens": [f"token {call.session}"], "odd": None} for call in api.to("/after")
    )
    assert outcome.failed_checks() == {"broken runs without errors", "start (on start) runs without errors"}
    assert "on purpose" in outcome.output
    assert "there is no pool none" in outcome.output
    names = outcome.count("http_reqs", "name")
    assert names["own call",] == len(own)
    assert names["GET /before",] == len(api.to("/before"))


async def test_what_answers_do_not_have(api: Api, tmp_path: Path) -> None:
    visitor = UserClass(
        "Visitor",
        (
            get("/first", captures={"none": "data.tokens[1]", "odd": "data.odd"}, name="first"),
            get("/status/503", captures={"kept": "data.tokens[0]"}, name="bad"),
            post(
                "/after",
                '{"none": {{captured.none}}, "odd": "{{captured.odd}}", "kept": {{captured.kept}}}',
                name="after",
            ),
        ),
        wait_time=REST,
    )
    outcome = await run(tmp_path, api, load(visitor, users=2, seconds=4))
    assert {call.body for call in api.to("/after")} == {'{"none": null, "odd": "", "kept": null}'}
    assert outcome.failed_checks() == {"first has none", "status is 200 to 399"}
    assert 1 <= outcome.output.count("first: the answer has no data.tokens.1") <= 6
    failed = Counter(tags["name"] for name, tags, value in outcome.samples if name == "http_req_failed" and value)
    assert failed == {"bad": len(api.to("/status/503"))}


async def test_users_that_rest_end_with_the_load_and_others_finish(api: Api, tmp_path: Path) -> None:
    tired = UserClass("Tired", (get("/tired"),), wait_time=WaitTime(WaitRule.CONSTANT, 3600.0))
    slow = UserClass("Slow", (get("/slow"),), wait_time=REST)
    outcome = await run(tmp_path, api, load(tired, slow, users=4))
    assert len(api.to("/tired")) == 2
    assert len(api.to("/slow")) >= 2
    assert outcome.count("http_reqs", "scenario") == {("Tired",): 2, ("Slow",): len(api.to("/slow"))}
    assert "and 0 interrupted iterations" in outcome.output
