"""Nothing is allowed by default: every RPC that reflection tells of is called without a role."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
import yaml

from tests.rpc_harness import RpcMethod, bearer, call_empty, methods
from tests.server_process import running_server

ADMIN, STRANGER = "admin-token-of-the-test", "stranger-token-of-the-test"
OPEN = "/grpc.health.v1.Health/"


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """Two callers: one who may do everything, one whose only role is in a service that is not served."""
    file = tmp_path / "opsplane.yaml"
    tokens = [
        {"name": "admin", "token": ADMIN, "roles": {"*": "admin"}},
        {"name": "stranger", "token": STRANGER, "roles": {"telepathy": "viewer"}},
    ]
    file.write_text(yaml.safe_dump({"auth": {"tokens": tokens}}), encoding="utf-8")
    return file


async def refusal(channel: grpc.aio.Channel, method: RpcMethod, token: str) -> grpc.StatusCode:
    """The status of a call with an empty message."""
    try:
        await call_empty(channel, method, bearer(token) if token else ())
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_every_rpc_without_a_role_is_refused(configuration: Path) -> None:
    with running_server("--config", str(configuration)) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            found = [m for m in await methods(channel, bearer(ADMIN)) if not m.path.startswith(OPEN)]
            assert len(found) > 35
            statuses = {
                method.path: [await refusal(channel, method, token) for token in ("", "unknown", STRANGER)]
                for method in found
            }
    refused = [
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    ]
    assert {path: codes for path, codes in statuses.items() if codes != refused} == {}
