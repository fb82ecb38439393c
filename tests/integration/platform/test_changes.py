"""Idempotent, audited changes over a real database."""

from __future__ import annotations

import asyncio

import pytest
from google.longrunning import operations_pb2
from opsplane.common.v1 import platform_pb2
from opsplane_server.errors import AlreadyExists, InvalidArgument
from opsplane_server.platform.convert import operation_to_proto
from opsplane_server.platform.model import AuditEvent
from opsplane_server.rpc.paging import PageRequest

from tests.platform_harness import Platform, call_as
from tests.waiting import until

# Any message with a name, a request_id and more will do.
Request = platform_pb2.OperationMetadata
Answer = platform_pb2.AuditEvent


def request(request_id: str = "id-1", target: str = "things/one") -> Request:
    return Request(request_id=request_id, target=target)


class Action:
    """Writes one row, and counts how often it did."""

    def __init__(self, platform: Platform, resource: str = "things/one") -> None:
        self._platform = platform
        self._resource = resource
        self.runs = 0

    async def __call__(self) -> Answer:
        self.runs += 1
        await self._platform.effect(self._resource, "made", "action")
        return Answer(event_id=self.runs, resource=self._resource)


async def events(platform: Platform) -> list[AuditEvent]:
    return await platform.audit.list_events(PageRequest(100, None), [])


async def test_the_same_request_gives_the_first_answer_and_changes_nothing(platform: Platform) -> None:
    call_as("ann")
    action = Action(platform)
    first = await platform.changes.apply(request(), Answer, action)
    again = await platform.changes.apply(request(), Answer, action)
    assert (first, action.runs) == (again, 1)
    assert await platform.effects("things/one") == ["made"]
    assert len(await events(platform)) == 1


async def test_another_body_is_refused(platform: Platform) -> None:
    call_as("ann")
    action = Action(platform)
    await platform.changes.apply(request(), Answer, action)
    with pytest.raises(InvalidArgument) as refused:
        await platform.changes.apply(request(target="things/two"), Answer, action)
    assert refused.value.reason == "REQUEST_ID_REUSED"
    assert [violation.field for violation in refused.value.violations] == ["request_id"]
    assert action.runs == 1


async def test_request_ids_of_other_callers_and_methods_are_others(platform: Platform) -> None:
    action = Action(platform)
    for name, method in (("ann", "/s/A"), ("bob", "/s/A"), ("ann", "/s/B")):
        call_as(name, method=method)
        await platform.changes.apply(request(), Answer, action)
    assert action.runs == 3


async def test_without_a_request_id_each_call_is_run_and_audited(platform: Platform) -> None:
    call_as("ann", method="/s/M", trace_id="ab" * 16)
    action = Action(platform)
    for _ in range(2):
        await platform.changes.apply(request(""), Answer, action)
    delete = operations_pb2.DeleteOperationRequest(name="operations/x")  # has no field request_id
    await platform.changes.apply(delete, Answer, action)
    assert action.runs == 3
    latest, *_ = found = await events(platform)
    assert len(found) == 3
    assert (latest.principal, latest.method, latest.resource) == ("ann", "/s/M", "operations/x")
    assert (latest.peer, latest.trace_id, latest.request_id) == ("ipv4:127.0.0.1", "ab" * 16, "")


async def test_a_failed_action_leaves_nothing_and_may_be_repeated(platform: Platform) -> None:
    call_as("ann")
    action = Action(platform)

    async def fail() -> Answer:
        await action()
        raise AlreadyExists.resource("things/one")

    with pytest.raises(AlreadyExists):
        await platform.changes.apply(request(), Answer, fail)
    assert await platform.effects("things/one") == []
    assert await events(platform) == []
    answer = await platform.changes.apply(request(), Answer, action)
    assert answer.event_id == 2


@pytest.mark.parametrize("first_fails", [False, True])
async def test_of_two_twins_at_once_one_runs(platform: Platform, first_fails: bool) -> None:
    inside, go = asyncio.Event(), asyncio.Event()
    action = Action(platform)

    async def slow() -> Answer:
        inside.set()
        await go.wait()
        if first_fails:
            raise AlreadyExists.resource("things/one")
        return await action()

    async def waits() -> bool:
        return bool(await platform.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    call_as("ann")
    first = asyncio.create_task(platform.changes.apply(request(), Answer, slow))
    await inside.wait()
    twin = asyncio.create_task(platform.changes.apply(request(), Answer, action))
    await until(waits)
    assert action.runs == 0
    go.set()
    if first_fails:
        with pytest.raises(AlreadyExists):
            await first
        await twin
    else:
        assert await first == await twin
    assert action.runs == 1
    assert await platform.effects("things/one") == ["made"]
    assert len(await events(platform)) == 1


async def test_many_twins_run_once(platform: Platform) -> None:
    call_as("ann")
    action = Action(platform)
    answers = await asyncio.gather(
        *(asyncio.create_task(platform.changes.apply(request(), Answer, action)) for _ in range(20))
    )
    assert action.runs == 1
    assert all(answer == answers[0] for answer in answers)


async def test_an_operation_is_submitted_with_its_change_and_replayed(platform: Platform) -> None:
    call_as("ann")

    async def start() -> operations_pb2.Operation:
        return operation_to_proto(await platform.submit(request_id="id-1"))

    first = await platform.changes.apply(request(), operations_pb2.Operation, start)
    again = await platform.changes.apply(request(), operations_pb2.Operation, start)
    assert first == again
    assert await platform.value("SELECT count(*) FROM platform.operations") == 1
    stored = await platform.operations.get(first.name)
    assert (stored.principal, stored.request_id) == ("ann", "id-1")
    [event] = await events(platform)
    assert event.resource == "things/one"
