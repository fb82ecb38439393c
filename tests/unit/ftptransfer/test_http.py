"""The FTP Pooler's endpoints and metrics, over the sum of two workers."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from opsplane_server.ftptransfer.failures import ErrorCode
from opsplane_server.ftptransfer.figures import RateMeter, TransferFigures
from opsplane_server.ftptransfer.http import PoolerPages
from opsplane_server.ftptransfer.metrics import TransferMetrics
from opsplane_server.supervisor.http import Answer, HttpServer
from opsplane_server.supervisor.ports import address_of, listen
from opsplane_server.telemetry.totals import Totals
from opsplane_server.version import server_version
from prometheus_client import CollectorRegistry, generate_latest


def told(figures: TransferFigures) -> str:
    """What a worker with these figures tells its parent."""
    registry = CollectorRegistry()
    with TransferMetrics(figures, registry):
        return generate_latest(registry).decode()


@pytest.fixture
def totals() -> Totals:
    """Two workers, one of which has two transfers under way."""
    first, second = TransferFigures(), TransferFigures()
    for figures in (first, second):
        figures.received(75)
        figures.begun()
        figures.begun()
        figures.transferred(1000)
        figures.succeeded(0.02)
        figures.failed(ErrorCode.FILE_NOT_FOUND, 700.0)
    first.begun()
    first.begun()
    for _ in range(3):
        first.session_opened("a")
    second.session_opened("b")
    second.session_opened("b")
    second.session_closed("b")
    totals = Totals()
    totals.update(1, told(first))
    totals.update(2, told(second))
    return totals


@asynccontextmanager
async def serving(totals: Totals, *, ready: bool = True) -> AsyncIterator[str]:
    async def metrics() -> Answer:
        return Answer(totals.render())

    pages = PoolerPages(metrics, lambda: ready, max_sessions_per_pod=100, max_sessions_per_connection=10).pages
    listening = listen("127.0.0.1", 0)
    async with HttpServer(listening, pages):
        yield f"http://{address_of(listening)}"


async def get(url: str) -> tuple[int, object]:
    def read() -> tuple[int, object]:
        try:
            with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    return await asyncio.to_thread(read)


async def test_the_endpoints_answer_as_the_ftp_pooler(totals: Totals) -> None:
    async with serving(totals) as url:
        assert await get(f"{url}/health") == (200, {"status": "healthy", "version": server_version()})
        assert await get(f"{url}/live") == (200, {"status": "alive"})
        assert await get(f"{url}/ready") == (200, {"status": "ready"})
        assert await get(f"{url}/stats") == (
            200,
            {
                "running": True,
                "pool": {
                    "max_sessions_per_pod": 100,
                    "max_sessions_per_connection": 10,
                    "total_sessions": 4,
                    "pools": {"a": {"sessions": 3}, "b": {"sessions": 1}},
                },
                "consumer": {"tasks_received": 150},
                "transfer": {"tasks_in_progress": 2},
            },
        )


async def test_a_server_without_workers_lives_and_is_not_ready() -> None:
    async with serving(Totals(), ready=False) as url:
        assert await get(f"{url}/health") == (503, {"status": "unhealthy", "version": server_version()})
        assert (await get(f"{url}/ready"))[0] == 503
        assert (await get(f"{url}/live"))[0] == 200
        status, stats = await get(f"{url}/stats")
        assert status == 200
        assert isinstance(stats, dict)
        assert stats["running"] is False
        assert stats["pool"]["pools"] == {}


def test_the_metrics_have_the_ftp_poolers_names_and_are_sums(totals: Totals) -> None:
    text = totals.render().decode()
    assert {
        "ftp_pooler_tasks_total 4.0",
        "ftp_pooler_tasks_success_total 2.0",
        "ftp_pooler_tasks_failed_total 2.0",
        "ftp_pooler_bytes_transferred_total 2000.0",
        "ftp_pooler_active_sessions 4.0",
        'ftp_pooler_transfer_duration_seconds_bucket{le="0.01"} 0.0',
        'ftp_pooler_transfer_duration_seconds_bucket{le="0.025"} 2.0',
        'ftp_pooler_transfer_duration_seconds_bucket{le="900.0"} 4.0',
        'ftp_pooler_transfer_duration_seconds_bucket{le="+Inf"} 4.0',
        "ftp_pooler_transfer_duration_seconds_count 4.0",
        "ftp_pooler_transfer_duration_seconds_sum 1400.04",
        'opsplane_ftp_failures_total{code="FILE_NOT_FOUND"} 2.0',
    } <= set(text.splitlines())
    for name in ("tasks_total", "tasks_success_total", "tasks_failed_total", "bytes_transferred_total"):
        assert f"# TYPE ftp_pooler_{name} counter" in text
    assert "# TYPE ftp_pooler_transfer_duration_seconds histogram" in text
    assert "# TYPE ftp_pooler_active_sessions gauge" in text


def test_rates_are_those_of_the_last_ten_seconds() -> None:
    figures = TransferFigures()
    meter = RateMeter(figures)
    assert (meter.read(0).bytes, meter.read(0).files) == (0, 0)
    for second in range(1, 31):
        figures.transferred(100 if second <= 20 else 300)
        figures.begun()
        figures.succeeded(1.0)
        rate = meter.read(second)
    assert (rate.bytes, rate.files) == (300, 1)
