"""Calls from one service to another, through generated stubs over a channel.

A service of the same process is reached over the process's private unix socket, one that is deployed apart at its
configured address; the caller can not tell. What the call under way carries goes on with it: the time that is left,
the W3C trace context, and an authorization (the process's own token, or the configured one).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import grpc
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from opsplane_server.errors import FailedPrecondition
from opsplane_server.rpc.calls import find_call

_MAX_RECEIVE_BYTES: Final = 64 * 1024 * 1024

# UNAVAILABLE alone is tried again: by the conventions it is safe with a request_id, which every call that changes
# something carries. Round robin spreads calls over the addresses of a headless service.
_SERVICE_CONFIG: Final = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)
_OPTIONS: Final = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)

_propagator = TraceContextTextMapPropagator()

_Requests = AsyncIterable[Any] | Iterable[Any]
_Details = grpc.aio.ClientCallDetails
_Continuation = Callable[[_Details, Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a service is: a gRPC target (`unix:/path`, `dns:///logs:50051`), the token for it, TLS if any."""

    target: str
    token: str = field(repr=False)
    credentials: grpc.ChannelCredentials | None = None


class Peers:
    """Channels to services by name (`logingest`), opened at their first use and closed together."""

    def __init__(self, own: Peer, served: Collection[str], remote: Mapping[str, Peer]) -> None:
        """Build it of the process's own address, the services that it serves, and those that are elsewhere.

        A service in `remote` is called there even if this process serves it too.
        """
        self._peers = {**dict.fromkeys(served, own), **remote}
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    def __contains__(self, service: str) -> bool:
        """Whether the service can be called."""
        return service in self._peers

    def channel(self, service: str) -> grpc.aio.Channel:
        """Return the channel to a service, for its stub; FailedPrecondition if nobody serves it."""
        peer = self._peers.get(service)
        if peer is None:
            raise FailedPrecondition(
                f"the service {service} is neither served here nor configured elsewhere",
                reason="SERVICE_NOT_CONFIGURED",
                metadata={"service": service},
            )
        # Services at the same place share a connection.
        channel = self._channels.get(peer.target)
        if channel is None:
            channel = self._channels[peer.target] = _open(peer)
        return channel


def _open(peer: Peer) -> grpc.aio.Channel:
    interceptors = [kind(peer.token) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]
    if peer.credentials is None:
        return grpc.aio.insecure_channel(peer.target, options=_OPTIONS, interceptors=interceptors)
    return grpc.aio.secure_channel(peer.target, peer.credentials, options=_OPTIONS, interceptors=interceptors)


class _Forwarding:
    """Adds to a call what goes on from the call under way."""

    def __init__(self, token: str) -> None:
        self._authorization = f"Bearer {token}"

    def _forward(self, details: _Details) -> _Details:
        carrier: dict[str, str] = {"authorization": self._authorization}
        _propagator.inject(carrier)
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *carrier.items())
        call = find_call()
        remaining = call.remaining() if call is not None else None
        timeouts = [seconds for seconds in (details.timeout, remaining) if seconds is not None]
        timeout = min(timeouts, default=None)
        return _Details(details.method, timeout, metadata, details.credentials, details.wait_for_ready)


# One class a kind of call: a channel sorts its interceptors by the first kind that each is of.


class _UnaryUnary(_Forwarding, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: _Continuation, client_call_details: _Details, request: Any
    ) -> Any:
        return await continuation(self._forward(client_call_details), request)


class _UnaryStream(_Forwarding, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: _Continuation, client_call_details: _Details, request: Any
    ) -> Any:
        return await continuation(self._forward(client_call_details), request)


class _StreamUnary(_Forwarding, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self,
        continuation: _Continuation,
        client_call_details: _Details,
        request_iterator: _Requests,
    ) -> Any:
        return await continuation(self._forward(client_call_details), request_iterator)


class _StreamStream(_Forwarding, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self,
        continuation: _Continuation,
        client_call_details: _Details,
        request_iterator: _Requests,
    ) -> Any:
        return await continuation(self._forward(client_call_details), request_iterator)
