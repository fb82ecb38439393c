"""Shippers of others, as they are: OpenTelemetry's Python library and its Collector write what SearchLogs finds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opsplane.client import connect
from opsplane.logingest.v1 import logingest_pb2, queries_pb2, records_pb2

from tests.components import cache_folder, lacking
from tests.server_process import ServerProcess, running_server
from tests.waiting import until

LINES = 1000


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server("--workers", "2") as running:
        yield running


@pytest.fixture(scope="module")
def collector() -> str:
    """The program, from the cache of `make tools` or the PATH."""
    found = shutil.which("otelcol", path=f"{cache_folder() / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        problem = "the OpenTelemetry Collector is not here; `make tools` builds it where Go is"
        lacking(problem)
    return found


async def found(server: ServerProcess, service: str) -> list[records_pb2.LogRecord]:
    """All records of a service, newest first."""
    request = logingest_pb2.SearchLogsRequest(query=queries_pb2.LogQuery(services=[service]), page_size=1000)
    records: list[records_pb2.LogRecord] = []
    async with connect(server.address) as client:
        while True:
            page: logingest_pb2.SearchLogsResponse = await client.log_ingest.SearchLogs(request)
            records += [entry.record for entry in page.entries]
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return records


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_the_exporter_of_opentelemetry(server: ServerProcess, compression: grpc.Compression) -> None:
    service = f"sdk-{compression.name.lower()}"
    resource = Resource({"service.name": service, "service.version": "1.4.2", "host.name": "web-1"})
    provider = LoggerProvider(resource, shutdown_on_exit=False)
    exporter = OTLPLogExporter(endpoint=server.address, insecure=True, compression=compression)
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    logger = provider.get_logger("orders.http", "2.0")
    for number in range(LINES):
        logger.emit(body=f"line {number}", severity_text="INFO", attributes={"order.id": number, "user.id": "u-1"})
    try:
        raise ConnectionError("gone")
    except ConnectionError as error:
        logger.emit(body={"order": {"id": 1}}, severity_text="odd", exception=error)
    assert provider.force_flush()
    provider.shutdown()

    failed, *records = await found(server, service)
    assert sorted(record.message for record in records) == sorted(f"line {number}" for number in range(LINES))
    record = records[0]
    assert (record.service_version, record.host, record.logger) == ("1.4.2", "web-1", "orders.http")
    assert (record.level, record.user_id) == (records_pb2.LEVEL_INFO, "u-1")
    assert '"order.id"' in record.metadata_json
    assert (failed.message, failed.error_type) == ('{"order":{"id":1}}', "ConnectionError")
    assert "Traceback (most recent call last)" in failed.stack_trace
    assert failed.metadata["exception.message"] == "gone"


async def test_the_collector_tails_a_file(server: ServerProcess, collector: str, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    with file.open("w") as stream, collecting(collector, server.address, file, tmp_path):
        # Some are there when it starts, others are written while it follows the file.
        for number in range(LINES):
            if number == LINES // 2:
                stream.flush()
                await until(lambda: any_found(server))
            stream.write(f"line {number} of {LINES}\n")
        stream.flush()

        async def all_found() -> bool:
            return len(await found(server, "tailed")) >= LINES

        await until(all_found)
    records = await found(server, "tailed")
    assert sorted(record.message for record in records) == sorted(
        f"line {number} of {LINES}" for number in range(LINES)
    )
    assert records[0].metadata["log.file.name"] == "app.log"


async def any_found(server: ServerProcess) -> bool:
    return bool(await found(server, "tailed"))


@contextmanager
def collecting(collector: str, address: str, file: Path, folder: Path) -> Iterator[None]:
    """Runs a collector that ships a file as service `tailed`; when the block ends it is stopped in good order."""
    config = folder / "collector.yaml"
    config.write_text(f"""
receivers:
  filelog: {{include: ["{file}"], start_at: beginning, resource: {{service.name: tailed}}}}
exporters:
  otlp: {{endpoint: "{address}", tls: {{insecure: true}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    logs: {{receivers: [filelog], exporters: [otlp]}}
""")
    said = folder / "collector.err"
    with said.open("wb") as errors:
        process = subprocess.Popen([collector, "--config", str(config)], stdout=errors, stderr=errors)
        try:
            yield
            assert process.poll() is None, said.read_text()
        finally:
            process.terminate()
            process.wait(30)
    assert "Exporting failed" not in said.read_text()
