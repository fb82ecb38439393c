"""The users of examples/panacea.yaml for Locust, as it is commonly written: HttpUser, between, weighted tasks.

Run by Locust in a virtualenv of its own. Waits come from the variables that the run file has, in seconds.
"""

from __future__ import annotations

import os
import random
import uuid
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from locust import HttpUser, between

ACCEPTED = (200, 400, 404)
COMPONENTS = ("acropolis", "stargate", "cassandra", "curator", "prism")
PROBLEMS = ("failed to reach", "lost the heartbeat of", "retries its call to")
chance = random.Random()  # noqa: S311  # nothing here is a secret
_numbers = count()


def private_ip() -> str:
    return f"10.{chance.randint(0, 255)}.{chance.randint(0, 255)}.{chance.randint(1, 254)}"


def before_now(most_hours: int, least_hours: int) -> str:
    moment = datetime.now(UTC) - timedelta(seconds=chance.uniform(least_hours * 3600, most_hours * 3600))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def message() -> str:
    return f"{chance.choice(COMPONENTS)} {chance.choice(PROBLEMS)} {private_ip()} after {chance.randint(1, 300)} s"


def filters() -> dict[str, Any]:
    return {
        "components": [chance.choice(COMPONENTS)],
        "log_levels": [chance.choice(("fatal", "error")), chance.choices(("warn", "info"), (3, 1))[0]],
        "cvm_ips": [private_ip()],
        "start_time": before_now(48, 24),
        "end_time": before_now(24, 0),
    }


class PanaceaUser(HttpUser):  # type: ignore[misc]
    """What both kinds of users do, each with its own part of the data."""

    abstract = True

    def on_start(self) -> None:
        number = next(_numbers)
        self.bundles = [800 + (number * 35 + row) % 201 for row in range(50)]
        self.combos = [1 + (number * 20 + row) % 2000 for row in range(20)]
        self.cases = [f"0{12345670 + number * 10 + row}" for row in range(10)]
        self.paths = [
            f"/users/john.doe/NTNX-Log-2024-01-15-{chance.randint(10000, 99999)}-1705276800-PE-{private_ip()}.zip"
            for _ in range(15)
        ]
        user_id = f"loadtest_user_{chance.randint(10**9, 10**10 - 1)}_{chance.randint(10000, 99999)}"
        self.client.headers.update(
            {
                "X-Session-Id": uuid.uuid4().hex,
                "Authorization": f"Bearer mock-token-{user_id}",
                "User-Agent": f"PanaceaLocust/1.0 User-{user_id}",
                "Content-Type": "application/json",
            }
        )

    def make_request(self, method: str, path: str, *, name: str = "", **arguments: Any) -> None:
        with self.client.request(
            method, f"/api/v1/{path}", name=f"/api/v1/{name or path}", catch_response=True, **arguments
        ) as response:
            if response.status_code in ACCEPTED:
                response.success()
            else:
                response.failure(f"status {response.status_code}")

    def some_bundles(self) -> list[int]:
        return chance.sample(self.bundles, chance.randint(1, 3))

    def analyze(self) -> None:
        body = {
            "remote_log_bundle_path": chance.choice(self.paths),
            "sfdc_case_no": chance.choice(self.cases),
            "is_retry": chance.choice((True, False)),
        }
        self.make_request("POST", "logs/analyze", json=body)

    def info(self) -> None:
        self.make_request("GET", "logs/info", params={"bundle_id": chance.choice(self.bundles)})

    def severity_count(self) -> None:
        self.make_request("POST", "logs/severity-count", json={"bundle_ids": self.some_bundles(), "filters": filters()})

    def histogram(self) -> None:
        body = {"bundle_ids": self.some_bundles(), "interval": chance.choice(("1m", "5m", "1h")), "filters": filters()}
        self.make_request("POST", "logs/histogram", json=body)

    def heatmap(self) -> None:
        group_by = chance.choice(("component", "severity", "cvm_ip"))
        body = {"bundle_ids": self.some_bundles(), "group_by": group_by, "filters": filters()}
        self.make_request("POST", "logs/heatmap", json=body)

    def search(self) -> None:
        body = {
            "bundle_ids": self.some_bundles(),
            "page_size": chance.choice((20, 50, 100)),
            "page_no": chance.randint(1, 5),
            "filters": {**filters(), "search_log_string": message(), "is_curated": chance.choice((True, False))},
        }
        self.make_request("POST", "logs/search", json=body)

    def filter_options(self) -> None:
        self.make_request("GET", "logs/filter-options", params={"bundle_id": chance.choice(self.bundles)})

    def events_of_bundle(self) -> None:
        self.make_request("GET", "events", params={"bundle_id": chance.choice(self.bundles)})

    def events_of_combo(self) -> None:
        self.make_request("GET", "events", params={"combo_id": chance.choice(self.combos)})

    def report_summary(self) -> None:
        self.make_request("GET", "ai/report_summary", params={"bundle_id": chance.choice(self.bundles)})

    def ask_ai(self) -> None:
        body = {
            "bundle_id": chance.choice(self.bundles),
            "conversation_id": str(uuid.uuid4()),
            "question": f"What is behind '{message()}' of {before_now(24, 0)}?",
        }
        self.make_request("POST", "ai/ask-ai", json=body)

    def reports(self) -> None:
        combos = chance.sample(self.combos, chance.randint(1, 2))
        body = {"sfdc_case_no": chance.choice(self.cases), "combo_ids": combos, "page_size": 20, "page_no": 1}
        self.make_request("POST", "reports", json=body)

    def bundle_paths(self) -> None:
        path = "log-bundle-paths/by-sfdc-case"
        self.make_request("GET", f"{path}/{chance.choice(self.cases)}", name=f"{path}/{{id}}")

    tasks = {  # noqa: RUF012  # as Locust has it
        analyze: 3,
        info: 4,
        severity_count: 3,
        histogram: 2,
        heatmap: 2,
        search: 3,
        filter_options: 2,
        events_of_bundle: 1,
        events_of_combo: 1,
        report_summary: 1,
        ask_ai: 1,
        reports: 2,
        bundle_paths: 1,
    }


class HeavyUser(PanaceaUser):
    weight = 1
    wait_time = between(float(os.environ["HEAVY_WAIT_MIN"]), float(os.environ["HEAVY_WAIT_MAX"]))


class LightUser(PanaceaUser):
    weight = 3
    wait_time = between(float(os.environ["LIGHT_WAIT_MIN"]), float(os.environ["LIGHT_WAIT_MAX"]))
