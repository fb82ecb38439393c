from __future__ import annotations

import pytest
from grpc import StatusCode

from tests.contract.rpc.echo import EchoServicer, EchoStub, Part, Request
from tests.rpc_harness import require_status

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD = Request(text="fine")
BAD = Request(text="x" * 21, parts=[Part(name="a"), Part()], named={"b c": Part()})
BAD_FIELDS = ["text", "parts[1].name", 'named["b c"].name']


async def test_good_requests_pass_in_all_kinds_of_rpc(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    assert (await grpc_stub.Say(GOOD)).text == "fine"
    for method in (grpc_stub.Repeat, grpc_stub.RepeatByWriting):
        assert [reply.text async for reply in method(Request(text="a", count=2))] == ["a0", "a1"]
    for method in (grpc_stub.Collect, grpc_stub.CollectByReading):
        assert (await method(iter([GOOD, GOOD]))).text == "fine,fine"
    assert [reply.text async for reply in grpc_stub.Chat(iter([GOOD, GOOD]))] == ["fine", "fine"]
    assert len(echo.calls) == 6


async def test_each_bad_field_is_named_and_the_handler_not_reached(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    with require_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as refusal:
        await grpc_stub.Say(BAD)
    assert refusal.bad_fields == BAD_FIELDS
    assert refusal.message.startswith("text: ")
    for method in (grpc_stub.Repeat, grpc_stub.RepeatByWriting):
        with require_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
            await method(BAD).read()
    assert echo.calls == []


@pytest.mark.parametrize("method", ["Collect", "CollectByReading"])
async def test_each_message_of_a_stream_is_checked(echo: EchoServicer, grpc_stub: EchoStub, method: str) -> None:
    with require_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as refusal:
        await getattr(grpc_stub, method)(iter([GOOD, BAD]))
    assert refusal.bad_fields == BAD_FIELDS


async def test_bidirectional_stream_ends_at_its_first_bad_message(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    call = grpc_stub.Chat()
    await call.write(GOOD)
    assert (await call.read()).text == "fine"
    await call.write(BAD)
    with require_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as refusal:
        await call.read()
    assert refusal.bad_fields == BAD_FIELDS
