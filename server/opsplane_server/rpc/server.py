"""The gRPC server of a process: services, interceptors, health and reflection.

server = build_server(registrations, standard(authenticator), options=ServerOptions())
port = server.add_insecure_port("127.0.0.1:50051")
await server.start()            # answers, health says NOT_SERVING
await server.set_serving()      # ready
...
await server.drain()            # health says NOT_SERVING for good; load balancers go elsewhere
await server.stop(grace=10)     # open calls may end, then are cancelled
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from opsplane_server.rpc import reflection
from opsplane_server.rpc.interceptors.chain import Chain, Interceptor

HEALTH = "grpc.health.v1.Health"


@dataclass(frozen=True, slots=True)
class Registration:
    """A service to serve: its full name in the protos, and what adds its servicer to a server."""

    service_name: str
    add: Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server listens.

    so_reuseport: several processes share a port. Off, a second server on the port fails to start.
    max_receive_bytes: the largest request (or message of a stream) that is accepted.
    """

    so_reuseport: bool = False
    max_receive_bytes: int = 64 * 1024 * 1024

    def channel_arguments(self) -> list[tuple[str, int]]:
        """Return the arguments of gRPC's core."""
        return [
            ("grpc.so_reuseport", int(self.so_reuseport)),
            ("grpc.max_receive_message_length", self.max_receive_bytes),
            # A watcher can be silent for long: a peer that vanished without a word is found within 80 s,
            # and clients may ask for signs of life themselves, every 10 s and without an open call.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            # What a caller may send ahead of the handler's reading. gRPC would raise it to megabytes for each stream
            # on a fast network, all of which is memory of this process.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 256 << 10),
        ]


class RpcServer:
    """A gRPC server with its health. It is ready only after `set_serving`, and for no caller before."""

    def __init__(self, server: grpc.aio.Server, service_names: Sequence[str]) -> None:
        self._server = server
        self._health = health_aio.HealthServicer()
        self._names = ("", *service_names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    def add_insecure_port(self, address: str) -> int:
        """Listen on an address (`127.0.0.1:0`, `unix:/path`); return the port. RuntimeError if taken."""
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, credentials: grpc.ServerCredentials) -> int:
        """Listen on an address with TLS; return the port. RuntimeError if taken."""
        return self._server.add_secure_port(address, credentials)

    async def start(self) -> None:
        """Answer calls; the health of every service is NOT_SERVING until `set_serving`."""
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()

    async def set_serving(self) -> None:
        """Report every service, and the server as a whole, as SERVING."""
        await self._set(health_pb2.HealthCheckResponse.SERVING)

    async def set_not_serving(self) -> None:
        """Report NOT_SERVING for the time being, for example while the database is away."""
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def drain(self) -> None:
        """Report NOT_SERVING for good; calls are still answered."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float | None) -> None:
        """Accept nothing new, give open calls `grace` seconds to end, then cancel them."""
        await self._server.stop(grace)

    async def wait_for_termination(self) -> None:
        """Return when the server has stopped."""
        await self._server.wait_for_termination()

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        for name in self._names:
            await self._health.set(name, status)


def build_server(
    registrations: Sequence[Registration], interceptors: Sequence[Interceptor], *, options: ServerOptions
) -> RpcServer:
    """Build the server of these services; nothing is opened before a port is added.

    Needs a running event loop. `interceptors` stand outermost first (see `opsplane_server.rpc.interceptors`).
    """
    server = grpc.aio.server(interceptors=[Chain(interceptors)], options=options.channel_arguments())
    names = [registration.service_name for registration in registrations]
    built = RpcServer(server, names)
    for registration in registrations:
        registration.add(server)
    reflection.add(server, [*names, HEALTH])
    return built
