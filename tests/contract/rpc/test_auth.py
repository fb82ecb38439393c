from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opsplane_server.rpc.identity import StaticTokens
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.interceptors.chain import Interceptor
from structlog.testing import capture_logs

from tests.contract.rpc.echo import METHODS, SERVICE, EchoServicer, EchoStub, Request
from tests.rpc_harness import RpcMethod, bearer, call_empty, methods, require_status

pytestmark = pytest.mark.asyncio(loop_scope="module")

# role -> methods that it may call
ALLOWED = {
    "viewer": {"Say", "Repeat", "RepeatByWriting"},
    "writer": {"Collect", "CollectByReading"},
    "editor": set(METHODS) - {"Purge", "Undeclared"},
    "admin": set(METHODS) - {"Undeclared"},
    "elsewhere": set(),
}
HEALTH = "/grpc.health.v1.Health/"


@pytest.fixture(scope="module")
def grpc_interceptors(tokens: StaticTokens) -> Sequence[Interceptor]:
    return standard(tokens)


@pytest.mark.parametrize("metadata", [(), bearer("unknown"), (("authorization", "Basic dXNlcjpw"),)], ids=repr)
async def test_every_rpc_is_refused_without_a_known_token(
    grpc_channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]
) -> None:
    table = await methods(grpc_channel, bearer("admin-token"))
    assert {method.path for method in table} >= {f"/{SERVICE}/{name}" for name in METHODS}
    for method in table:
        if not method.path.startswith(HEALTH):
            with require_status(StatusCode.UNAUTHENTICATED, "TOKEN_UNKNOWN" if metadata else "TOKEN_MISSING"):
                await call_empty(grpc_channel, method, metadata)


@pytest.mark.parametrize("role", ALLOWED)
@pytest.mark.parametrize("name", METHODS)
async def test_role_decides(grpc_channel: grpc.aio.Channel, role: str, name: str) -> None:
    client_streaming, server_streaming, _ = METHODS[name]
    method = RpcMethod(f"/{SERVICE}/{name}", "", client_streaming, server_streaming)
    if name in ALLOWED[role]:
        await call_empty(grpc_channel, method, bearer(f"{role}-token"))
    else:
        reason = "ROLE_NOT_DECLARED" if name == "Undeclared" else "ROLE_TOO_LOW"
        with require_status(StatusCode.PERMISSION_DENIED, reason):
            await call_empty(grpc_channel, method, bearer(f"{role}-token"))


async def test_health_is_open(grpc_channel: grpc.aio.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(grpc_channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    first = await stub.Watch(health_pb2.HealthCheckRequest()).read()
    assert first.status == health_pb2.HealthCheckResponse.SERVING


async def test_handler_knows_its_call(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    await grpc_stub.Say(Request(), metadata=bearer("viewer-token"), timeout=30)
    await grpc_stub.Say(Request(), metadata=bearer("admin-token"))
    first, second = echo.calls
    assert first.method == f"/{SERVICE}/Say"
    assert first.peer.startswith("ipv4:127.0.0.1:")
    assert (first.principal.name, second.principal.name) == ("viewer", "admin")
    remaining = first.remaining()
    assert remaining is not None
    assert 20 < remaining < 40
    assert second.remaining() is None


async def test_tokens_are_not_logged(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    with capture_logs() as logs:
        await grpc_stub.Say(Request(), metadata=bearer("viewer-token"))
        with require_status(StatusCode.UNAUTHENTICATED, "TOKEN_UNKNOWN"):
            await grpc_stub.Say(Request(), metadata=bearer("wrong-token"))
    assert len(logs) == 2
    assert "-token" not in repr(logs)
