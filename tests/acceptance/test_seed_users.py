"""The users of the Locust project that Opsplane replaces, as a run file, against an API with its endpoints.

What is checked comes from the access log of that API: who called what, when and with which data.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.server_process import ServerProcess, running_server
from tests.unit.cli.commands import opsplane_command
from tests.unit.cli.sample_api import panacea_api

pytestmark = pytest.mark.slow

RUN_FILE = Path(__file__).resolve().parents[2] / "examples" / "panacea.yaml"
USERS = 21
HEAVY, LIGHT = 5, 16  # 5.25 and 15.75: the larger remainder gets the user
HEAVY_WAIT = (0.01, 0.03)
LIGHT_WAIT = (0.2, 0.4)
WEIGHTS = {
    "POST /api/v1/logs/analyze": 3,
    "GET /api/v1/logs/info": 4,
    "POST /api/v1/logs/severity-count": 3,
    "POST /api/v1/logs/histogram": 2,
    "POST /api/v1/logs/heatmap": 2,
    "POST /api/v1/logs/search": 3,
    "GET /api/v1/logs/filter-options": 2,
    "GET /api/v1/events": 2,
    "GET /api/v1/ai/report_summary": 1,
    "POST /api/v1/ai/ask-ai": 1,
    "POST /api/v1/reports": 2,
    "GET /api/v1/log-bundle-paths/by-sfdc-case/{id}": 1,
}
IMPROBABLE = 1e-5
BUNDLES = range(800, 1001)
SHARED = 15  # 30 % of 50
PATH = re.compile(r"/users/[a-z]+\.[a-z]+/NTNX-Log-2024-01-1[567]-\d{5}-\d{10}-PE-(?P<ip>[\d.]+)\.zip")
PRIVATE = re.compile(r"(?:10|172\.(?:1[6-9]|2\d|3[01])|192\.168)(?:\.\d{1,3}){2,3}")


@dataclass(frozen=True, slots=True)
class Call:
    """A line of the access log."""

    time: float
    endpoint: str
    query: Mapping[str, str]
    session: str
    authorization: str
    agent: str
    body: Any
    status: int
    case: str

    @property
    def user(self) -> str:
        return self.agent.removeprefix("PanaceaLocust/1.0 User-")

    def bundles(self) -> list[int]:
        asked = {**self.query, **(self.body or {})}
        return [int(bundle) for bundle in asked.get("bundle_ids", [asked["bundle_id"]] if "bundle_id" in asked else [])]

    def combos(self) -> list[int]:
        return (
            [int(self.query["combo_id"])] if "combo_id" in self.query else list((self.body or {}).get("combo_ids", ()))
        )

    def cases(self) -> list[int]:
        return [int(case) for case in (self.case, (self.body or {}).get("sfdc_case_no")) if case]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that has ended, and what the API has seen of it."""

    run: Any
    calls: Sequence[Call]


def call(line: str) -> Call:
    seen = json.loads(line)
    parent, _, last = seen["path"].rpartition("/")
    of_case = parent.endswith("by-sfdc-case")
    return Call(
        seen["time"],
        f"{seen['method']} {parent}/{'{id}' if of_case else last}",
        seen["query"],
        seen["session_id"],
        seen["authorization"],
        seen["user_agent"],
        json.loads(seen["body"]) if seen["body"] else None,
        seen["status"],
        last if of_case else "",
    )


async def run_file(server: ServerProcess, folder: Path, *options: str, **environ: str) -> Outcome:
    """Runs the example with options and variables."""
    log = folder / "calls.jsonl"
    with panacea_api(log) as url:
        outcome = await opsplane_command(
            "-o", "json", "loadtest", "run", "-p", "panacea", "-f", str(RUN_FILE), *options,
            address=server.address, environment={**environ, "PANACEA_HOST": url},
        )  # fmt: skip
        assert outcome.status == 0, outcome.err
    return Outcome(json.loads(outcome.out), [call(line) for line in log.read_text(encoding="utf-8").splitlines()])


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def outcome(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run that most is checked of."""
    made = asyncio.run(opsplane_command("loadtest", "projects", "create", "panacea", address=server.address))
    assert made.status == 0, made.err
    waits = {
        "HEAVY_WAIT_MIN": HEAVY_WAIT[0],
        "HEAVY_WAIT_MAX": HEAVY_WAIT[1],
        "LIGHT_WAIT_MIN": LIGHT_WAIT[0],
        "LIGHT_WAIT_MAX": LIGHT_WAIT[1],
    }
    options = ("-u", str(USERS), "-r", "20", "-t", "25s", "--run-id", "users")
    environ = {name: str(value) for name, value in waits.items()}
    return asyncio.run(run_file(server, tmp_path_factory.mktemp("panacea"), *options, **environ))


@pytest.fixture(scope="module")
def by_user(outcome: Outcome) -> dict[str, list[Call]]:
    users: dict[str, list[Call]] = defaultdict(list)
    for one in outcome.calls:
        users[one.user].append(one)
    return users


@pytest.fixture(scope="module")
def heavy(by_user: dict[str, list[Call]]) -> set[str]:
    """The users who rested less than a light user ever does."""
    return {user for user, calls in by_user.items() if min(gaps(calls)) < LIGHT_WAIT[0] * 0.9}


def gaps(calls: Sequence[Call]) -> list[float]:
    return [later.time - earlier.time for earlier, later in pairwise(calls)]


def probability(observed: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """How probable it is that counts lie this far from shares by weight, or farther (Pearson's chi-square)."""
    total, whole = sum(observed.values()), sum(weights.values())
    half = sum(
        (observed.get(name, 0) - total * weight / whole) ** 2 / (total * weight / whole)
        for name, weight in weights.items()
    ) / 2  # fmt: skip
    free = len(weights) - 1
    # The survival function, by its recurrence over the degrees of freedom.
    tail, start = (math.erfc(math.sqrt(half)), 3) if free % 2 else (math.exp(-half), 4)
    for degrees in range(start, free + 1, 2):
        tail += math.pow(half, degrees / 2 - 1) * math.exp(-half) / math.gamma(degrees / 2)
    return tail


def test_what_probability_is() -> None:
    """Quantiles that any table has."""
    for free, quantile, expected in ((1, 3.841, 0.05), (2, 9.210, 0.01), (11, 19.675, 0.05), (11, 31.264, 0.001)):
        weights = dict.fromkeys((str(number) for number in range(free + 1)), 1.0)
        # Two counts off by the same, up and down, of a thousand each.
        off = math.sqrt(quantile * 1000 / 2)
        observed = dict.fromkeys(weights, 1000.0) | {"0": 1000 + off, "1": 1000 - off}
        assert probability(observed, weights) == pytest.approx(expected, rel=0.01)


def test_the_run_and_the_access_log_agree(outcome: Outcome, by_user: dict[str, list[Call]], heavy: set[str]) -> None:
    assert (outcome.run["state"], outcome.run["verdict"]) == ("RUN_STATE_COMPLETED", "VERDICT_PASSED")
    results = outcome.run["results"]
    assert int(results["total"]["requests"]) == len(outcome.calls)
    assert int(results["total"].get("failedRequests", 0)) == 0, "400 and 404 are accepted"
    assert results["vus"]["max"] == USERS
    counted = {part["name"]: int(part["stats"]["requests"]) for part in results["scenarios"]}
    of_heavy = sum(len(by_user[user]) for user in heavy)
    assert counted == {"HeavyUser": of_heavy, "LightUser": len(outcome.calls) - of_heavy}
    of_endpoints = {part["name"]: int(part["stats"]["requests"]) for part in results["endpoints"]}
    assert of_endpoints == Counter(one.endpoint for one in outcome.calls)
    assert outcome.run["userLoad"]["seed"] == "42"


def test_users_are_shared_one_to_three(by_user: dict[str, list[Call]], heavy: set[str]) -> None:
    assert len(by_user) == USERS
    assert (len(heavy), len(by_user) - len(heavy)) == (HEAVY, LIGHT)


def test_users_rest_as_their_class_says(by_user: dict[str, list[Call]], heavy: set[str]) -> None:
    for user, calls in by_user.items():
        least = HEAVY_WAIT[0] if user in heavy else LIGHT_WAIT[0]
        assert min(gaps(calls)) >= least * 0.9, f"{user} rested too little"


@pytest.mark.parametrize("group", ["all", "heavy", "light"])
def test_tasks_have_their_shares(by_user: dict[str, list[Call]], heavy: set[str], group: str) -> None:
    users = {"all": set(by_user), "heavy": heavy, "light": by_user.keys() - heavy}[group]
    counts = Counter(one.endpoint for user in users for one in by_user[user])
    assert counts.keys() <= WEIGHTS.keys()
    assert sum(counts.values()) > 300
    assert probability(counts, WEIGHTS) > IMPROBABLE, counts


def test_each_user_has_one_session_and_says_who_it_is(by_user: dict[str, list[Call]]) -> None:
    sessions = set()
    for user, calls in by_user.items():
        assert re.fullmatch(r"loadtest_user_\d{10}_\d{5}", user)
        assert {one.agent for one in calls} == {f"PanaceaLocust/1.0 User-{user}"}
        assert {one.authorization for one in calls} == {f"Bearer mock-token-{user}"}
        [session] = {one.session for one in calls}
        assert re.fullmatch(r"[0-9a-f]{32}", session)
        sessions.add(session)
    assert len(sessions) == USERS


def test_each_user_draws_from_its_part_of_the_pools(by_user: dict[str, list[Call]]) -> None:
    """Parts of combos and cases do not overlap, so they tell the number of the user; those of bundles do."""
    parts = {
        number: {BUNDLES[((number - 1) * 35 + row) % len(BUNDLES)] for row in range(50)}
        for number in range(1, USERS + 1)
    }
    assert {len(parts[number] & parts[number + 1]) for number in range(1, USERS)} == {SHARED}
    numbers: dict[int, set[int]] = {}
    for calls in by_user.values():
        drawn = [bundle for one in calls for bundle in one.bundles()]
        combos = {combo for one in calls for combo in one.combos()}
        cases = {case for one in calls for case in one.cases()}
        [number] = {(combo - 1) // 20 + 1 for combo in combos}
        assert {(case - 12345670) // 10 + 1 for case in cases} == {number}
        assert set(drawn) <= parts[number]
        numbers[number] = set(drawn)
        # All of the part is drawn from: of 50 rows, so many draws leave so many out; five deviations are allowed.
        assert len(numbers[number]) >= 50 * (1 - 0.98 ** len(drawn)) - 12
    assert numbers.keys() == set(range(1, USERS + 1))
    both = [numbers[number] & numbers[number + 1] for number in range(1, USERS)]
    assert all(len(one) <= SHARED for one in both)
    assert sum(len(one) for one in both) > 5 * USERS


def test_bodies_are_what_the_api_takes(outcome: Outcome) -> None:
    unknown = {bundle for bundle in BUNDLES if bundle % 97 == 0}
    for one in outcome.calls:
        expected = 404 if unknown & set(one.bundles()) else 200
        assert one.status == expected, one  # 400 for a field that lacks or is of another type
        assert len(set(one.bundles())) == len(one.bundles()) <= 3
    bodies = defaultdict(list)
    for one in outcome.calls:
        if one.body is not None:
            assert all(type(bundle) is int for bundle in one.body.get("bundle_ids", ()))
            bodies[one.endpoint].append(one.body)
    assert bodies.keys() == {name for name in WEIGHTS if name.startswith("POST")}
    for body in bodies["POST /api/v1/logs/analyze"]:
        path = PATH.fullmatch(body["remote_log_bundle_path"])
        assert path, body
        assert PRIVATE.fullmatch(path["ip"])
        assert re.fullmatch(r"0\d{8}", body["sfdc_case_no"])
    assert {body["is_retry"] for body in bodies["POST /api/v1/logs/analyze"]} == {True, False}
    for body in bodies["POST /api/v1/logs/search"]:
        filters = body["filters"]
        begin, end = datetime.fromisoformat(filters["start_time"]), datetime.fromisoformat(filters["end_time"])
        assert begin.tzinfo is not None
        assert begin <= end
        assert all(PRIVATE.fullmatch(ip) for ip in filters["cvm_ips"])
        assert re.fullmatch(r"[a-z]+ [a-z ]+ [\d.]+ after \d{1,3} s", filters["search_log_string"])
        assert isinstance(filters["is_curated"], bool)
    assert {body["page_size"] for body in bodies["POST /api/v1/logs/search"]} == {20, 50, 100}
    ids = [UUID(body["conversation_id"]) for body in bodies["POST /api/v1/ai/ask-ai"]]
    assert len(set(ids)) == len(ids)
    paths = {body["remote_log_bundle_path"] for body in bodies["POST /api/v1/logs/analyze"]}
    assert len(paths) > USERS


async def test_rows_of_data_sets_take_the_place_of_made_up_ones(
    server: ServerProcess, outcome: Outcome, tmp_path: Path
) -> None:
    rows: dict[str, list[dict[str, Any]]] = {
        "user-sessions": [{"id": f"person-{number}", "session_id": f"session-{number}"} for number in range(4)],
        "bundle-ids": [{"id": 5000 + number} for number in range(60)],
        "combo-ids": [{"id": 7000 + number} for number in range(90)],
    }
    for name, listed in rows.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in listed), encoding="utf-8")
        created = await opsplane_command(
            "loadtest", "data-sets", "create", name, "-p", "panacea", "--file", str(file), address=server.address
        )
        assert created.status == 0, created.err
    # There is no ClickHouse here: cases fall back to made-up ones, and the run says so.
    created = await opsplane_command(
        "loadtest", "data-sets", "create", "sfdc-cases", "-p", "panacea", "--query", "SELECT 1", "--host", "127.0.0.1",
        "--port", "1", "--timeout", "2s", address=server.address,
    )  # fmt: skip
    assert created.status == 0, created.err
    made = await run_file(
        server, tmp_path, "-u", "3", "-r", "3", "-t", "6s", "--set", "variables.HEAVY_WAIT_MIN=0",
        "--set", "user_load.classes[HeavyUser].weight=9", "--set", "user_load.classes[HeavyUser].wait_time=",
        USE_DATABASE_DATA="true", DB_BUNDLE_IDS_LIMIT="55",
    )  # fmt: skip
    assert made.run["verdict"] == "VERDICT_PASSED"
    [note] = made.run["notes"]
    assert "cases" in note
    assert {(one.user, one.session) for one in made.calls} == {(f"person-{n}", f"session-{n}") for n in range(3)}
    bundles = {bundle for one in made.calls for bundle in one.bundles()}
    assert bundles <= set(range(5000, 5055)), "up to its limit"
    assert {combo for one in made.calls for combo in one.combos()} <= set(range(7000, 7060)), "20 of each user"
    assert {case for one in made.calls for case in one.cases()} <= set(range(12345670, 12345700))
    assert {one.status for one in made.calls} <= {200, 404}
