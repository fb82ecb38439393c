"""What the server tells about itself: metrics of all workers as one, health, readiness."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus

import structlog
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from opsplane_server.supervisor.database import EmbeddedDatabase, ExternalDatabase
from opsplane_server.supervisor.http import Answer, Page
from opsplane_server.supervisor.workers import Worker
from opsplane_server.telemetry.totals import CONTENT_TYPE, Totals
from opsplane_server.version import server_version

log = structlog.get_logger(__name__)

_SCRAPE_SECONDS = 3.0


class Status:
    """The pages of the HTTP port. Before `attach` it tells that the server is starting."""

    def __init__(self) -> None:
        self._workers: Sequence[Worker] = ()
        self._database: EmbeddedDatabase | ExternalDatabase | None = None
        self._totals = Totals()
        self._scraping = asyncio.Lock()
        self.stopping = False

    def attach(self, workers: Sequence[Worker], database: EmbeddedDatabase | ExternalDatabase) -> None:
        """Tells of these from now on."""
        self._workers = workers
        self._database = database

    def retire(self, worker: Worker) -> None:
        """Notes that the worker's process has ended, before there is another."""
        self._totals.retire((worker.facts.index, worker.run))

    @property
    def pages(self) -> Mapping[str, Page]:
        """By path."""
        return {"/metrics": self.metrics, "/health": self._health, "/ready": self._ready, "/live": self._live}

    @property
    def ready(self) -> bool:
        """Whether at least one worker serves and the server is not ending."""
        return not self.stopping and any(worker.serving for worker in self._workers)

    async def _live(self) -> Answer:
        return Answer(b"live\n")

    async def _ready(self) -> Answer:
        if self.ready:
            return Answer(b"ready\n")
        return Answer(b"not ready\n", HTTPStatus.SERVICE_UNAVAILABLE)

    async def _health(self) -> Answer:
        report = {
            "status": "stopping" if self.stopping else "ready" if self.ready else "not ready",
            "version": server_version(),
            "workers": [
                {"index": worker.facts.index, "pid": worker.pid, "state": worker.state if worker.pid else "ended"}
                for worker in self._workers
            ],
        }
        status = HTTPStatus.OK if self.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(json.dumps(report).encode() + b"\n", status, "application/json")

    async def metrics(self) -> Answer:
        """The metrics of all workers added up, and the server's own."""
        # One at a time: an answer that arrives late must not replace a later one, for totals would fall.
        async with self._scraping:
            await asyncio.gather(*(self._scrape(worker) for worker in self._workers))
            return Answer(self._totals.render(self._own_metrics()), content_type=CONTENT_TYPE)

    async def _scrape(self, worker: Worker) -> None:
        """Asks a worker for its metrics; one that does not answer counts with what it told last."""
        run = worker.run
        try:
            async with asyncio.timeout(_SCRAPE_SECONDS):
                reader, writer = await asyncio.open_unix_connection(worker.facts.metrics_socket)
                try:
                    text = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            log.warning("metrics of a worker not read", worker=worker.facts.index, error=repr(error))
            return
        if text and worker.pid is not None and worker.run == run:
            self._totals.update((worker.facts.index, run), text.decode())

    def _own_metrics(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("opsplane_build_info", "The version that runs.", labels=["version"])
        build.add_metric([server_version()], 1)
        yield build
        yield GaugeMetricFamily("opsplane_workers", "Worker processes that there should be.", len(self._workers))
        serving = sum(worker.serving for worker in self._workers)
        yield GaugeMetricFamily("opsplane_workers_serving", "Worker processes that serve.", serving)
        restarts = sum(worker.restarts for worker in self._workers)
        yield CounterMetricFamily("opsplane_worker_restarts", "Worker processes that were replaced.", restarts)
        memory = GaugeMetricFamily(
            "opsplane_worker_resident_memory_bytes", "Resident memory of a worker process.", labels=["worker"]
        )
        for worker in self._workers:
            if (resident := worker.resident_bytes) is not None:
                memory.add_metric([str(worker.facts.index)], resident)
        yield memory
        if isinstance(self._database, EmbeddedDatabase):
            yield GaugeMetricFamily("opsplane_postgres_up", "Whether the embedded PostgreSQL runs.", self._database.up)
            yield CounterMetricFamily(
                "opsplane_postgres_restarts",
                "Starts of the embedded PostgreSQL after its death.",
                self._database.restarts,
            )
