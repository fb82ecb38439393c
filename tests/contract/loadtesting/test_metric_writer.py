"""The writer at work in the background: an InfluxDB that is killed, slow, absent, too old, or not to be used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from opsplane_server.errors import FailedPrecondition, OpsplaneError, OutOfRange, Unavailable
from opsplane_server.loadtesting.history.port import MetricCopy
from opsplane_server.loadtesting.metrics.windows import Window
from opsplane_server.loadtesting.model import Run
from opsplane_server.loadtesting.stores.influx import InfluxClient, InfluxMetricStore, InfluxTarget
from opsplane_server.loadtesting.stores.influx.client import literal
from opsplane_server.loadtesting.watch import RunWatcher
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from tests.contract.loadtesting.stored_runs import StoredRuns, all_of, copying
from tests.contract.loadtesting.stored_runs import stored as stored
from tests.contract.loadtesting.test_metric_stores import seconds
from tests.ftp_proxy import Fault, FtpProxy, no_fault
from tests.ftp_servers.certificates import make_certificate
from tests.influxd import Influxd, running_influxd
from tests.waiting import until


async def is_copied(stored: StoredRuns, copy: MetricCopy, run: Run) -> bool:
    """Whether a run can be read from the copy, and is what it is in PostgreSQL."""
    try:
        return await all_of(copy, run) == await all_of(stored.history, run)
    except (OutOfRange, Unavailable):
        return False


async def has_rows(target: InfluxTarget, count: int) -> bool:
    """Whether so many rows are in a bucket."""
    query = f"""from(bucket: {literal(target.bucket)}) |> range(start: 0)
        |> filter(fn: (r) => r._measurement == "opsplane_history" and r._field == "number") |> count()"""
    async with InfluxClient(target) as client:
        return [record.values["_value"] for record in await client.query(query)] == [count]


async def test_influxdb_that_is_killed_gets_everything_in_the_end(stored: StoredRuns) -> None:
    with running_influxd() as server:
        target = server.new_bucket()
        run = await stored.active("r1")
        rows = seconds(300)
        async with copying(target) as copy, stored.writer(copy):
            await stored.append(run, rows[:100])
            stored.signal.notify()
            await until(lambda: has_rows(target, 100))
            failures = figure("opsplane_metric_copy_failures_total")
            server.kill()
            await stored.append(run, rows[100:200])
            await until(lambda: figure("opsplane_metric_copy_failures_total") > failures)
            server.start()
            await stored.append(run, rows[200:])
            run = await stored.end(run)
            assert [one for _, one in await all_of(stored.history, run)] == rows
            await until(lambda: is_copied(stored, copy, run))


async def test_influxdb_that_answers_nothing_slows_nothing(stored: StoredRuns, influxdb: Influxd) -> None:
    target = influxdb.new_bucket()
    rows = seconds(120)
    async with FtpProxy("127.0.0.1", influxdb.port, control=lambda: Fault(stall_after=0)) as proxy:
        slow = replace(target, url=f"http://127.0.0.1:{proxy.port}")
        async with InfluxClient(slow, timeout=timedelta(hours=1)) as client:
            copy = InfluxMetricStore(client, slow)
            async with stored.writer(copy):
                await until(lambda: proxy.connections > 0)
                run = await stored.active("r1")
                watching = asyncio.create_task(windows(stored, run))
                await stored.append(run, rows)
                await stored.end(run)
                stored.signal.notify()
                assert len(await watching) == len(rows)
                assert proxy.connections == 1, "the writer has not waited all the time"
                run = await stored.runs.get_run(run.name)
                proxy.control = no_fault
                proxy.cut_all()
                async with copying(target) as straight:
                    await until(lambda: is_copied(stored, straight, run))


async def windows(stored: StoredRuns, run: Run) -> list[Window]:
    watcher = RunWatcher(stored.runs, stored.history, stored.signal)
    return [update.window async for update in watcher.watch(run.name, "") if update.window is not None]


async def test_absent_influxdb_is_told_once_and_waited_for(stored: StoredRuns, influxdb: Influxd) -> None:
    target = influxdb.new_bucket()
    run = await stored.ended("r1", seconds(3))
    async with FtpProxy("127.0.0.1", 1) as proxy:  # nobody is there
        away = replace(target, url=f"http://127.0.0.1:{proxy.port}")
        with capture_logs() as logs:
            async with copying(away) as copy, stored.writer(copy):
                await until(lambda: proxy.connections > 1)
                proxy.server_port = influxdb.port
                await until(lambda: is_copied(stored, copy, run))
                await until(lambda: any(line["event"] == "figures are copied again" for line in logs))
    told = [line for line in logs if line["event"].startswith("figures are not copied now")]
    assert [line["log_level"] for line in told] == ["warning"]
    assert target.token not in str(logs)


async def test_one_writer_works_and_another_takes_over(stored: StoredRuns, influxdb: Influxd) -> None:
    first, second = influxdb.new_bucket(), influxdb.new_bucket()
    async with copying(first) as one, copying(second) as other:
        async with stored.writer(one):
            run = await stored.ended("r1", seconds(3))
            await until(lambda: is_copied(stored, one, run))
            taking_over = stored.writer(other)
            await taking_over.__aenter__()
            run = await stored.ended("r2", seconds(3))
            await until(lambda: is_copied(stored, one, run))
            with pytest.raises(OutOfRange):
                await all_of(other, run)
        try:
            await until(lambda: is_copied(stored, other, run))
        finally:
            await taking_over.__aexit__(None, None, None)


@asynccontextmanager
async def answering(head: str) -> AsyncIterator[str]:
    """The URL of a server that answers every request with this status line and these headers, and nothing else."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {head}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("version", ["1.8.10", "v1.11.8", "3.4.2"])
async def test_other_versions_are_refused_with_what_to_do(version: str, stored: StoredRuns) -> None:
    async with answering(f"204 No Content\r\nX-Influxdb-Version: {version}\r\nX-Influxdb-Build: OSS") as url:
        error = await refusal(InfluxTarget(url, "tests", "k6", "secret-token"))
        assert isinstance(error, FailedPrecondition)
        assert f"InfluxDB {version}" in error.message
        assert "run an InfluxDB 2" in error.message
        assert "\n" not in error.message
        with capture_logs() as logs:
            async with copying(InfluxTarget(url, "tests", "k6", "secret-token")) as copy, stored.writer(copy):
                await until(lambda: bool(logs))
        assert (logs[0]["log_level"], logs[0]["detail"]) == ("error", error.message)
        assert "secret-token" not in str(logs)


async def test_what_is_wrong_is_said(influxdb: Influxd) -> None:
    target = influxdb.new_bucket()
    async with copying(target) as copy:
        assert await copy.check() == await copy.check()
    for wrong, word in (
        (replace(target, token="wrong-token"), "influxdb.token"),
        (replace(target, org="nowhere"), "nowhere"),
        (replace(target, bucket='no "such" ${bucket}\\'), "influxdb.bucket"),
        (influxdb.new_bucket(rights=("write",)), "influxdb.token"),
    ):
        error = await refusal(wrong)
        assert isinstance(error, FailedPrecondition), error
        assert word in error.message
        assert wrong.token not in error.message
    assert isinstance(await refusal(replace(target, url="http://127.0.0.1:1")), Unavailable)
    async with answering("200 OK\r\nContent-Length: 0") as url:
        assert "is no InfluxDB" in (await refusal(replace(target, url=url))).message
    async with answering("503 Busy\r\nRetry-After: 7\r\nContent-Length: 0") as url:
        busy = await refusal(replace(target, url=url))
        assert isinstance(busy, Unavailable)
        assert busy.retry_after == timedelta(seconds=7)
    async with answering("307 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0") as url:
        assert isinstance(await refusal(replace(target, url=url)), FailedPrecondition)


async def test_bucket_is_found_among_many(influxdb: Influxd) -> None:
    targets = [influxdb.new_bucket() for _ in range(25)]
    found = set()
    for target in targets:
        async with copying(target) as copy:
            found.add(await copy.check())
    assert len(found) == len(targets)


async def test_token_that_may_not_write_is_told(stored: StoredRuns, influxdb: Influxd) -> None:
    await stored.ended("r1", seconds(3))
    async with copying(influxdb.new_bucket(rights=("read",))) as copy:
        with pytest.raises(FailedPrecondition, match="allowed to read and write"):
            await stored.writer(copy).catch_up()


async def test_tls(stored: StoredRuns, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    authorities = tmp_path / "authorities.pem"
    authorities.write_text(certificate.authority)
    run = await stored.ended("r1", seconds(3))
    with running_influxd(certificate) as server:
        target = server.new_bucket()
        assert target.url.startswith("https://")
        assert isinstance(await refusal(target), Unavailable), "an unknown authority was trusted"
        async with copying(replace(target, ca_file=authorities)) as copy:
            await stored.writer(copy).catch_up()
            assert await is_copied(stored, copy, run)


async def refusal(target: InfluxTarget) -> OpsplaneError:
    async with copying(target) as copy:
        with pytest.raises(OpsplaneError) as refused:
            await copy.check()
    return refused.value


def figure(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0
