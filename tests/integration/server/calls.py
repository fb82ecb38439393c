"""Calls that tests make to a running server."""

from __future__ import annotations

from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel with a connection of its own: by default gRPC shares them between channels of a process."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


async def list_operations(channel: grpc.aio.Channel, **options: Any) -> operations_pb2.ListOperationsResponse:
    """A call that reads the database."""
    stub = operations_pb2_grpc.OperationsStub(channel)
    return await stub.ListOperations(operations_pb2.ListOperationsRequest(), **options)


async def answers(address: str) -> bool:
    """Whether a call that reads the database succeeds now, over a new connection."""
    async with open_channel(address) as channel:
        try:
            await list_operations(channel, timeout=5)
        except grpc.aio.AioRpcError:
            return False
    return True


async def health(address: str) -> int:
    """The state that gRPC health tells."""
    async with open_channel(address) as channel:
        response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        return int(response.status)
