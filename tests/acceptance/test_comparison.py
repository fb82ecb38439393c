"""Comparison of real runs: an endpoint that takes a fifth longer is found. `make bench PART=comparison` counts."""

from __future__ import annotations

import asyncio

import pytest
from opsplane.loadtesting.v1 import reports_pb2

from tests.acceptance.paced_api import PATHS, SLOWER, STEADY, paced_api
from tests.acceptance.pets import own_channel
from tests.paced_runs import Stub, compared, prepared, run, worse
from tests.server_process import running_server


@pytest.mark.slow
async def test_a_slower_endpoint_is_found_and_shown() -> None:
    async with paced_api(1) as url:
        with running_server() as server:
            async with own_channel(server.address) as channel:
                stub = Stub(channel)
                endpoints = await prepared(stub)
                assert len(endpoints) == len(PATHS)
                steady, slower = await asyncio.gather(
                    run(stub, endpoints, f"{url}/{STEADY}", "steady"), run(stub, endpoints, f"{url}/{SLOWER}", "slower")
                )
                comparison = await compared(stub, steady, slower)
                request = reports_pb2.ExportReportRequest(name=slower, baseline=steady)
                page = b"".join([part.content async for part in stub.ExportReport(request)]).decode()
    assert any(series == "GET /orders" for series, _, _ in worse(comparison)), comparison
    assert comparison.change == reports_pb2.CHANGE_WORSE
    assert "GET /orders" in page
