"""What the interceptors cost: requests/s of a unary RPC against a bare grpc.aio server with the same handler.

Each server is a process of its own on loopback and uvloop. One client loads them in turn, less than a second each,
so that both see the same noise; the result is the median of the rounds' ratios. The full server has everything that
production has: a static token, a span a call, continued from the caller's trace and batched to an exporter that drops
it, metrics, validation, error mapping, and logging at its default level.

Other work on the machine distorts the rate; the CPU time that a request takes is the steadier figure.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
import uvloop
from google.longrunning.operations_pb2 import Operation
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opsplane.common.v1 import platform_pb2, platform_pb2_grpc
from opsplane_server.config import LoggingSettings
from opsplane_server.rpc.identity import StaticToken, StaticTokens
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.server import Registration, ServerOptions, build_server
from opsplane_server.telemetry import logs

GOAL_PCT = 25.0
SECONDS = 45.0  # of load in all
SLICE_SECONDS = 0.75  # of load on one server before it is the other's turn
OUTSTANDING = 32
SERVICE = "opsplane.common.v1.Platform"
METHOD = f"/{SERVICE}/ListAuditEvents"
METADATA = (
    ("authorization", "Bearer bench-token-1"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
)


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure in `rounds` rounds, about a minute in all."""
    with ExitStack() as stack:
        servers = [stack.enter_context(_process(kind)) for kind in ("bare", "full")]
        pairs = uvloop.run(_measure(servers, rounds))
    lost = statistics.median(100 * (1 - full.rate / bare.rate) for bare, full in pairs)
    added = statistics.median(full.cpu_us - bare.cpu_us for bare, full in pairs)
    bare_rate = statistics.median(bare.rate for bare, _ in pairs)
    bare_cpu = statistics.median(bare.cpu_us for bare, _ in pairs)
    return [
        {
            "measure": "unary_rps_lost_pct",
            "value": lost,
            "unit": "%",
            "reference": f"bare grpc.aio server, {bare_rate:.0f} requests/s",
            "goal": f"<= {GOAL_PCT:g}",
            "met": lost <= GOAL_PCT,
        },
        {
            "measure": "unary_cpu_added_us",
            "value": added,
            "unit": "us of CPU a request",
            "reference": f"bare grpc.aio server, {bare_cpu:.0f} us",
            "goal": None,
            "met": None,
        },
    ]


@dataclass(frozen=True, slots=True)
class _Server:
    port: int
    process: psutil.Process


@dataclass(slots=True)
class _Load:
    """What a server has answered so far."""

    requests: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu_seconds / self.requests * 1e6


@contextmanager
def _process(kind: str) -> Iterator[_Server]:
    """Run a server until the block ends: it stops at the end of its input."""
    command = [sys.executable, "-m", "tests.bench.rpc", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        yield _Server(int(child.stdout.readline()), psutil.Process(child.pid))


async def _measure(servers: Sequence[_Server], rounds: int) -> list[tuple[_Load, _Load]]:
    for server in servers:
        await _load(server, 0.5, _Load())  # imports, caches and rules are made at the first calls
    pairs = []
    for _ in range(rounds):
        loads = (_Load(), _Load())
        pairs.append(loads)
        turns = list(zip(servers, loads, strict=True))
        slices = max(1, round(SECONDS / rounds / 2 / SLICE_SECONDS))
        for _ in range(slices):
            for server, load in turns:
                await _load(server, SLICE_SECONDS, load)
            turns.reverse()
    return pairs


async def _load(server: _Server, seconds: float, load: _Load) -> None:
    """Keep some requests outstanding for a while; the client sends ready-made bytes, to cost less than a server."""
    body = platform_pb2.ListAuditEventsRequest(page_size=10, filter='principal="ci"').SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        await channel.channel_ready()
        call: Any = channel.unary_unary(METHOD)
        cpu, started = _cpu(server), time.perf_counter()
        until = started + seconds

        async def repeat() -> None:
            while time.perf_counter() < until:
                await call(body, metadata=METADATA)
                load.requests += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(OUTSTANDING):
                group.create_task(repeat())
        load.seconds += time.perf_counter() - started
        load.cpu_seconds += _cpu(server) - cpu


def _cpu(server: _Server) -> float:
    times = server.process.cpu_times()
    return times.user + times.system


class _Platform(platform_pb2_grpc.PlatformServicer):
    async def ListAuditEvents(self, request: Any, context: Any) -> platform_pb2.ListAuditEventsResponse:  # noqa: N802
        event = platform_pb2.AuditEvent(event_id=1, principal="ci", method=METHOD, resource="projects/shop")
        return platform_pb2.ListAuditEventsResponse(audit_events=[event], next_page_token="next")

    async def WatchOperation(self, request: Any, context: Any) -> AsyncIterator[Operation]:  # noqa: N802
        yield Operation(done=True)


class _Dropping(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


async def _serve(kind: str) -> None:
    """Serve until the input ends; the port goes to the output, log lines to the error output."""
    if kind == "bare":
        server: Any = grpc.aio.server()
        platform_pb2_grpc.add_PlatformServicer_to_server(_Platform(), server)
    else:
        server = _full()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


def _full() -> Any:
    logs.configure(LoggingSettings(format="json"))
    tracers = TracerProvider(sampler=ALWAYS_ON)
    tracers.add_span_processor(BatchSpanProcessor(_Dropping()))
    tokens = [
        StaticToken.configured(f"bench-{number}", {"*": "admin"}, token=f"bench-token-{number}") for number in range(3)
    ]
    return build_server(
        [Registration(SERVICE, lambda server: platform_pb2_grpc.add_PlatformServicer_to_server(_Platform(), server))],
        standard(StaticTokens(tokens), tracer_provider=tracers),
        options=ServerOptions(),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["bare", "full"])
    uvloop.run(_serve(parser.parse_args().kind))
