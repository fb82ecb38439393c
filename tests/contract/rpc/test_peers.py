from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opsplane_server import errors
from opsplane_server.rpc.calls import Call, set_call
from opsplane_server.rpc.identity import Anonymous, Chain, Internal, Principal, StaticTokens
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.peers import Peer, Peers

from tests.contract.rpc.echo import EchoServicer, EchoStub, Request, add_echo_servicer_to_server
from tests.rpc_harness import bearer, registration, require_status, serving


@pytest.fixture
def servicer() -> EchoServicer:
    return EchoServicer()


@pytest.fixture
async def own(tmp_path: Path, servicer: EchoServicer) -> AsyncIterator[Peer]:
    """A server on a private unix socket that knows the process's own token alone."""
    internal = Internal()
    address = f"unix:{tmp_path}/own.sock"
    served = [registration(add_echo_servicer_to_server, servicer)]
    async with serving(served, standard(internal), address=address):
        yield Peer(address, internal.token)


async def call_all(stub: EchoStub) -> None:
    await stub.Say(Request(text="a"))
    assert [reply.text async for reply in stub.Repeat(Request(text="a", count=2))] == ["a0", "a1"]
    assert (await stub.Collect(iter([Request(text="a"), Request(text="b")]))).text == "a,b"
    assert [reply.text async for reply in stub.Chat(iter([Request(text="a")]))] == ["a"]


async def test_all_kinds_of_calls_go_with_the_internal_token(own: Peer, servicer: EchoServicer) -> None:
    async with Peers(own, ["rpctest"], {}) as peers:
        await call_all(EchoStub(peers.channel("rpctest")))
    assert [call.principal.name for call in servicer.calls] == ["internal"] * 4
    assert {call.peer.split(":")[0] for call in servicer.calls} == {"unix"}


async def test_internal_token_is_worth_nothing_over_tcp(servicer: EchoServicer) -> None:
    internal = Internal()
    served = [registration(add_echo_servicer_to_server, servicer)]
    async with serving(served, standard(Chain(internal, Anonymous()))) as running, running.channel() as channel:
        with require_status(StatusCode.UNAUTHENTICATED, "TOKEN_UNKNOWN"):
            await EchoStub(channel).Say(Request(), metadata=bearer(internal.token))


async def test_remote_service_gets_its_configured_token(
    own: Peer, servicer: EchoServicer, tokens: StaticTokens
) -> None:
    served = [registration(add_echo_servicer_to_server, servicer)]
    async with serving(served, standard(tokens)) as remote:
        peer = Peer(remote.address, "editor-token")
        async with Peers(own, ["rpctest"], {"rpctest": peer}) as peers:
            await call_all(EchoStub(peers.channel("rpctest")))
    assert [call.principal.name for call in servicer.calls] == ["editor"] * 4


async def _principal() -> Principal:
    principal = await Anonymous().authenticate((), "unix:", "")
    assert principal is not None
    return principal


async def test_deadline_and_trace_of_the_current_call_go_on(own: Peer, servicer: EchoServicer) -> None:
    set_call(Call("/a.B/C", await _principal(), "unix:", "", time.monotonic() + 30))
    tracer = TracerProvider().get_tracer("test")
    async with Peers(own, ["rpctest"], {}) as peers:
        stub = EchoStub(peers.channel("rpctest"))
        with tracer.start_as_current_span("outer") as span:
            await call_all(stub)
            await stub.Say(Request(), timeout=10)
            await stub.Say(Request(), timeout=300)
            trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    remaining = [call.remaining() or 0.0 for call in servicer.calls]
    assert all(20 < seconds < 40 for seconds in remaining[:4])
    assert remaining[4] < 15
    assert 20 < remaining[5] < 40
    assert {call.trace_id for call in servicer.calls} == {trace_id}


async def test_call_after_the_deadline_ends_at_once(own: Peer) -> None:
    set_call(Call("/a.B/C", await _principal(), "unix:", "", time.monotonic() - 1))
    async with Peers(own, ["rpctest"], {}) as peers:
        with require_status(StatusCode.DEADLINE_EXCEEDED):
            await EchoStub(peers.channel("rpctest")).Say(Request(text="sleep"))


async def test_unavailable_is_tried_again(own: Peer, servicer: EchoServicer) -> None:
    servicer.error = errors.Unavailable("not now")
    async with Peers(own, ["rpctest"], {}) as peers:
        with require_status(StatusCode.UNAVAILABLE, "UNAVAILABLE"):
            await EchoStub(peers.channel("rpctest")).Say(Request())
        assert len(servicer.calls) == 4
        servicer.error = errors.NotFound("gone")
        with require_status(StatusCode.NOT_FOUND, "NOT_FOUND"):
            await EchoStub(peers.channel("rpctest")).Say(Request())
        assert len(servicer.calls) == 5


async def test_channels_are_opened_once_a_place_and_closed_together(own: Peer) -> None:
    async with Peers(own, ["rpctest", "other"], {"far": Peer("127.0.0.1:1", "token")}) as peers:
        channel = peers.channel("rpctest")
        assert peers.channel("other") is channel
        assert peers.channel("far") is not channel
        assert "far" in peers
        assert "nobody" not in peers
        with pytest.raises(errors.FailedPrecondition, match="nobody"):
            peers.channel("nobody")
    with pytest.raises(grpc.aio.UsageError):
        await EchoStub(channel).Say(Request())
