"""Posts events to other systems: each until it is taken, for a day.

What is to be posted is written together with the event; any process may post it, one at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Final, NoReturn
from urllib.parse import urlsplit

import httpx
import structlog
from google.protobuf.json_format import MessageToJson

from opsplane_server.errors import InvalidArgument, Unavailable
from opsplane_server.instances.convert_events import event_message
from opsplane_server.instances.records import WebhookPost
from opsplane_server.instances.stores.ports import WebhookOutbox

log = structlog.get_logger(__name__)

SIGNATURE_HEADER: Final = "Opsplane-Signature"

_AT_ONCE: Final = 20
_POLL_SECONDS: Final = 0.5
_TIMEOUT: Final = timedelta(seconds=10)
_LEASE: Final = timedelta(seconds=30)
_TRIED_FOR: Final = timedelta(days=1)
_FIRST_DELAY: Final = timedelta(seconds=1)
_LONGEST_DELAY: Final = timedelta(minutes=15)


def check_host(url: str, allowed: Sequence[str]) -> None:
    """Refuses a URL whose host fits none of the patterns (`*.example.com`); without patterns every host goes.

    Raises InvalidArgument on the field `webhooks`.
    """
    host = urlsplit(url).hostname or ""
    if allowed and not any(fnmatchcase(host, pattern.lower()) for pattern in allowed):
        raise InvalidArgument.of("webhooks", f"posts to the host {host!r} are not allowed here")


def signature(key: str, body: bytes) -> str:
    """What the header `Opsplane-Signature` holds: HMAC-SHA256 of the body in hexadecimal."""
    return hmac.new(key.encode(), body, hashlib.sha256).hexdigest()


def delay_after(attempts: int) -> timedelta:
    """How long to wait after so many failed attempts: twice as long each time, up to a quarter of an hour."""
    doublings = min(attempts - 1, 10)
    return min(_FIRST_DELAY * (1 << doublings), _LONGEST_DELAY)


class WebhookPoster:
    """Posts what is due. `allowed_hosts` are those of the configuration, which may have changed since an event."""

    def __init__(
        self,
        outbox: WebhookOutbox,
        *,
        allowed_hosts: Sequence[str] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._outbox = outbox
        self._allowed_hosts = allowed_hosts
        self._now = now

    async def run(self) -> NoReturn:
        """Posts for ever, until it is cancelled."""
        verify = await asyncio.to_thread(httpx.create_ssl_context)  # reads certificates, tens of milliseconds
        async with (
            httpx.AsyncClient(verify=verify, timeout=_TIMEOUT.total_seconds(), trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            under_way: set[asyncio.Task[None]] = set()
            while True:
                posts = await self._take(_AT_ONCE - len(under_way))
                under_way.update(group.create_task(self._post(client, post)) for post in posts)
                if not under_way:
                    await asyncio.sleep(_POLL_SECONDS)
                    continue
                # Who does not answer keeps nobody else waiting.
                _, under_way = await asyncio.wait(under_way, timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)

    async def _take(self, limit: int) -> Sequence[WebhookPost]:
        if limit == 0:
            return ()
        try:
            return await self._outbox.take(limit, _LEASE)
        except Unavailable as error:
            log.warning("webhooks wait", detail=error.message)
            return ()

    async def _post(self, client: httpx.AsyncClient, post: WebhookPost) -> None:
        try:
            await self._settle(post, await self._failure(client, post))
        except Unavailable as error:
            log.warning("a post is not settled and may come twice", detail=error.message)

    async def _failure(self, client: httpx.AsyncClient, post: WebhookPost) -> str:
        """Why it was not taken; empty when it was."""
        # Who asked for it is not told: only callers with the role ADMIN may know.
        body = MessageToJson(event_message(post.event), indent=None).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "opsplane"}
        if post.signing_key:
            headers[SIGNATURE_HEADER] = signature(post.signing_key, body)
        try:
            check_host(post.url, self._allowed_hosts)
            async with asyncio.timeout(_TIMEOUT.total_seconds()):
                # Whatever it says besides is not read.
                async with client.stream("POST", post.url, content=body, headers=headers) as response:
                    return "" if response.is_success else f"answered {response.status_code}"
        except InvalidArgument as error:
            return error.message
        except TimeoutError:
            return f"no answer within {_TIMEOUT.total_seconds():g} s"
        except Exception as error:  # one that can not be posted must not stop the others
            return str(error) or type(error).__name__

    async def _settle(self, post: WebhookPost, failure: str) -> None:
        attempts = post.attempt_count + 1
        told = {"host": urlsplit(post.url).hostname, "event_id": post.event.id, "attempts": attempts}
        if not failure:
            await self._outbox.done(post.id)
            log.debug("event posted", **told)
            return
        time = post.event.time or self._now()
        if self._now() - time >= _TRIED_FOR:
            await self._outbox.done(post.id)
            log.error("event given up: nobody took it for a day", failure=failure, **told)
            return
        delay = delay_after(attempts)
        await self._outbox.later(post.id, delay, failure)
        log.warning("event not taken, tried again", failure=failure, seconds=delay.total_seconds(), **told)
