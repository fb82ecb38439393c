"""The FTP Pooler's HTTP endpoints, served by the parent process on `api.port`.

What they tell is read out of the metrics of all workers together. This module is the parent's: it must not import grpc.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from opsplane_server.supervisor.http import Answer, Page
from opsplane_server.version import server_version

_JSON: Final = "application/json"


class PoolerPages:
    """`/health`, `/live`, `/ready` and `/stats`, with the JSON that they had there.

    metrics: the page of all metrics. ready: whether the server serves.
    """

    def __init__(
        self,
        metrics: Page,
        ready: Callable[[], bool],
        *,
        max_sessions_per_pod: int,
        max_sessions_per_connection: int,
    ) -> None:
        self._metrics = metrics
        self._is_ready = ready
        self._limits = {
            "max_sessions_per_pod": max_sessions_per_pod,
            "max_sessions_per_connection": max_sessions_per_connection,
        }

    @property
    def pages(self) -> Mapping[str, Page]:
        """By path."""
        return {"/health": self._health, "/live": self._live, "/ready": self._ready, "/stats": self._stats}

    async def _health(self) -> Answer:
        status = "healthy" if self._is_ready() else "unhealthy"
        return self._answer({"status": status, "version": server_version()})

    async def _live(self) -> Answer:
        return _json({"status": "alive"})

    async def _ready(self) -> Answer:
        return self._answer({"status": "ready" if self._is_ready() else "not ready"})

    async def _stats(self) -> Answer:
        values: dict[str, int] = {}
        pools: dict[str, dict[str, int]] = {}
        for family in text_string_to_metric_families((await self._metrics()).body.decode()):
            for sample in family.samples:
                if sample.name == "opsplane_ftp_sessions":
                    pools[sample.labels["connection"]] = {"sessions": int(sample.value)}
                elif sample.name in _NEEDED:
                    values[sample.name] = int(sample.value)
        total, received, progress = (values.get(name, 0) for name in _NEEDED)
        return _json(
            {
                "running": self._is_ready(),
                "pool": {**self._limits, "total_sessions": total, "pools": pools},
                "consumer": {"tasks_received": received},
                "transfer": {"tasks_in_progress": progress},
            }
        )

    def _answer(self, content: Mapping[str, Any]) -> Answer:
        return _json(content, HTTPStatus.OK if self._is_ready() else HTTPStatus.SERVICE_UNAVAILABLE)


_NEEDED: Final = ("ftp_pooler_active_sessions", "opsplane_ftp_tasks_received_total", "opsplane_ftp_tasks_in_progress")


def _json(content: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Answer:
    return Answer(json.dumps(content).encode() + b"\n", status, _JSON)
