"""Changes: the one way in which an RPC changes something, safe to repeat and audited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from opsplane_server.errors import InvalidArgument
from opsplane_server.platform.convert import resource_of
from opsplane_server.platform.model import AuditEvent, RecordedRequest, RequestKey
from opsplane_server.platform.operations import CANCEL_TOPIC, CHANGE_TOPIC, WORK_TOPIC
from opsplane_server.platform.ports import AuditStore, Fingerprints, RequestStore, Topics, Transactions
from opsplane_server.rpc.calls import current_call

M = TypeVar("M", bound=Message)


class Changes:
    """Puts the writes of a call, its request_id and its audit event in one transaction: all or nothing."""

    def __init__(
        self,
        transactions: Transactions,
        requests: RequestStore,
        audit: AuditStore,
        signals: Topics,
        fingerprints: Fingerprints,
    ) -> None:
        self._transactions = transactions
        self._fingerprints = fingerprints
        self._requests = requests
        self._audit = audit
        self._committed = [signals.topic(topic) for topic in (WORK_TOPIC, CANCEL_TOPIC, CHANGE_TOPIC)]

    async def apply(self, request: Message, response_type: type[M], action: Callable[[], Awaitable[M]]) -> M:
        """Runs `action` in a transaction and returns its answer, or the first answer to the same request_id.

        `action` must write to nothing but stores that join the transaction. A request without the field request_id,
        or with an empty one, is always run. While a call with the same request_id runs, this one waits for it.
        Raises InvalidArgument when the request_id came before with another body, and what `action` raises.
        """
        call = current_call()
        key = _key(request)
        async with self._transactions.transaction():
            if key.request_id:
                body = _body(request)
                # Not a plain hash: from that a weak password in the body could be guessed.
                recorded = await self._requests.claim(key, self._fingerprints.fingerprint(body))
                if recorded is not None:
                    return response_type.FromString(self._same(recorded, body).response)
            response = await action()
            if key.request_id:
                await self._requests.answer(key, response.SerializeToString())
            await self._audit.append(
                AuditEvent(
                    principal=call.principal.name,
                    method=call.method,
                    resource=resource_of(request, response),
                    request_id=key.request_id,
                    peer=call.peer,
                    trace_id=call.trace_id,
                )
            )
        # What Operations told inside the transaction may have come too early to be seen.
        for signal in self._committed:
            signal.notify()
        return response

    async def replay(self, request: Message, response_type: type[M]) -> M | None:
        """The first answer to this request_id, None without one: for calls with long work before their transaction.

        Raises InvalidArgument as `apply` does.
        """
        key = _key(request)
        recorded = await self._requests.find(key) if key.request_id else None
        return None if recorded is None else response_type.FromString(self._same(recorded, _body(request)).response)

    def _same(self, recorded: RecordedRequest, body: bytes) -> RecordedRequest:
        if not self._fingerprints.is_of(recorded.body_hash, body):
            raise InvalidArgument.of("request_id", "came before with another request", reason="REQUEST_ID_REUSED")
        return recorded


def _key(request: Message) -> RequestKey:
    call = current_call()
    return RequestKey(call.principal.name, call.method, getattr(request, "request_id", ""))


def _body(request: Message) -> bytes:
    body = type(request)()
    body.CopyFrom(request)
    body.ClearField("request_id")
    return body.SerializeToString(deterministic=True)
