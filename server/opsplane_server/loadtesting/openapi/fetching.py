"""Fetches documents from URLs that callers name, within limits, without opening private networks to them.

Each hop resolves the host, checks the addresses and then connects to a checked address itself, never to the name
again: a name that resolves differently the second time gains nothing. Redirects are followed here, hop by hop, for
that reason.
"""

from __future__ import annotations

import asyncio
import codecs
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

import httpx

from opsplane_server.errors import InvalidArgument, OpsplaneError, ResourceExhausted, Unavailable
from opsplane_server.loadtesting.addresses import Address, may_connect


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What a fetch may take. `allow_private` opens loopback and private addresses (link-local ones stay closed)."""

    max_bytes: int = 16 * 1024 * 1024
    timeout: timedelta = timedelta(seconds=20)
    max_redirects: int = 5
    allow_private: bool = False


@dataclass(frozen=True, slots=True)
class FetchedDocument:
    """A document and the URL that it came from in the end."""

    url: str
    text: str


class SpecFetcher:
    """Fetches OpenAPI documents. Use as an async context manager.

    Refusals are InvalidArgument on `openapi_url`, a source that does not answer is Unavailable, one that sends too
    much ResourceExhausted.
    """

    def __init__(self, limits: FetchLimits | None = None) -> None:
        self.limits = limits or FetchLimits()
        self._tls: ssl.SSLContext | None = None

    async def __aenter__(self) -> Self:
        # Reads the certificates of the authorities, tens of milliseconds.
        self._tls = await asyncio.to_thread(httpx.create_ssl_context)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tls = None

    async def fetch(self, url: str, *, max_bytes: int | None = None) -> FetchedDocument:
        """The document at `url`, at most `max_bytes` (default: the limit) after decompression."""
        limit = self.limits.max_bytes if max_bytes is None else min(max_bytes, self.limits.max_bytes)
        try:
            async with asyncio.timeout(self.limits.timeout.total_seconds()):
                return await self._follow(_parse(url), limit)
        except TimeoutError as error:
            raise _unavailable(f"did not answer within {self.limits.timeout.total_seconds():g} s") from error
        except httpx.InvalidURL as error:
            raise _refused("redirects to something that is not a URL") from error
        except httpx.HTTPError as error:
            raise _unavailable(f"cannot be read: {error}") from error

    async def _follow(self, url: httpx.URL, limit: int) -> FetchedDocument:
        for _ in range(self.limits.max_redirects + 1):
            addresses = await self._resolve(url)
            target = await self._get(url, addresses, limit)
            if isinstance(target, FetchedDocument):
                return target
            url = _parse(str(target))
        raise _refused(f"redirects more than {self.limits.max_redirects} times")

    async def _resolve(self, url: httpx.URL) -> Sequence[Address]:
        """The addresses of the URL's host that may be connected to, at least one."""
        host = url.raw_host.decode("ascii")
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _unavailable(f"the host {host!r} is not known") from error
        addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
        allowed = [address for address in addresses if may_connect(address, self.limits.allow_private)]
        if not allowed:
            raise _refused(f"the host {host!r} has only private addresses, which are not allowed here")
        return list(dict.fromkeys(allowed))

    async def _get(self, url: httpx.URL, addresses: Sequence[Address], limit: int) -> FetchedDocument | httpx.URL:
        """The document, or where the answer redirects to; each address is tried until one connects."""
        for address in addresses[:-1]:
            try:
                return await self._get_from(url, address, limit)
            except httpx.ConnectError:
                continue
        return await self._get_from(url, addresses[-1], limit)

    async def _get_from(self, url: httpx.URL, address: Address, limit: int) -> FetchedDocument | httpx.URL:
        assert self._tls is not None, "SpecFetcher is used outside of its context"
        timeout = self.limits.timeout.total_seconds()
        # A client for each call: connections are told apart by address only, and must not be shared between hosts.
        async with (
            httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=timeout) as client,
            client.stream(
                "GET",
                url.copy_with(host=str(address)),
                headers={
                    "Host": url.netloc.decode("ascii"),
                    "Accept": "application/json, application/yaml, text/yaml, */*;q=0.5",
                    "Accept-Encoding": "gzip, identity",
                    "User-Agent": "opsplane",
                },
                extensions={"sni_hostname": url.raw_host.decode("ascii")},
            ) as response,
        ):
            if response.has_redirect_location:
                return url.join(response.headers["Location"])
            if response.status_code != httpx.codes.OK:
                problem = f"answered {response.status_code} {response.reason_phrase}".rstrip()
                passes = response.status_code >= 500 or response.status_code == httpx.codes.TOO_MANY_REQUESTS
                raise _unavailable(problem) if passes else _refused(problem)
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > limit:
                    raise ResourceExhausted(f"the document is larger than {limit} bytes", reason="SPEC_TOO_LARGE")
            return FetchedDocument(str(url), _decode(bytes(content)))


def _parse(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise _refused("is not a URL") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise _refused("must be a complete http or https URL")
    if parsed.userinfo:
        raise _refused("must not hold credentials")
    return parsed.copy_with(fragment=None)


def _decode(content: bytes) -> str:
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if utf16 else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _refused(f"line {line}: the document is not Unicode text") from error


def _refused(problem: str) -> InvalidArgument:
    return InvalidArgument.of("openapi_url", problem, reason="SPEC_URL_REFUSED")


def _unavailable(problem: str) -> OpsplaneError:
    return Unavailable(f"openapi_url: {problem}", reason="SPEC_URL_UNAVAILABLE")
