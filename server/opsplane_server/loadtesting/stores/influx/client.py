"""The connection to an InfluxDB 2: four calls of its API, whose failures arrive as the domain's errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from influxdb_client.client.flux_csv_parser import FluxCsvParserException, FluxQueryException
from influxdb_client.client.flux_table import FluxRecord
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync
from influxdb_client.rest import ApiException
from influxdb_client.service.buckets_service import BucketsService

from opsplane_server.errors import FailedPrecondition, OpsplaneError, OutOfRange, Unavailable

_CONNECT_SECONDS: Final = 5.0
_LONGEST_RETRY: Final = timedelta(minutes=5)
_WORDS: Final = 300  # characters of an answer that are told

# Times as far as InfluxDB knows any.
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(2262, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class InfluxTarget:
    """A bucket of an InfluxDB 2. `url` begins with http:// or https://; `ca_file` has authorities in PEM for it."""

    url: str
    org: str
    bucket: str
    token: str = field(repr=False)
    ca_file: Path | None = None


class InfluxClient:
    """Talks to a bucket while it is entered, which connects to nothing yet. Each call ends within `timeout`.

    Calls raise Unavailable when the server can not be reached now, FailedPrecondition when it will not do with these
    settings, and say what to change.
    """

    def __init__(self, target: InfluxTarget, *, timeout: timedelta = timedelta(seconds=20)) -> None:
        self._target = target
        self._timeout = timeout
        self._stack = AsyncExitStack()
        self._client: InfluxDBClientAsync | None = None

    async def __aenter__(self) -> Self:
        target = self._target
        client = InfluxDBClientAsync(
            target.url,
            token=target.token,
            org=target.org,
            timeout=aiohttp.ClientTimeout(total=self._timeout.total_seconds(), sock_connect=_CONNECT_SECONDS),
            enable_gzip=True,
            ssl_ca_cert=None if target.ca_file is None else str(target.ca_file),
            allow_redirects=False,  # they would carry the token elsewhere
        )
        self._client = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def identify(self) -> str:
        """The id of the bucket, which another one of the same name does not have."""
        with _translated():
            version, build = await self._open.version(), await self._open.build()
        if version == build == "unknown":  # the driver's word for a header that is not there
            raise FailedPrecondition(
                f"{self._target.url} is no InfluxDB: it does not tell its version", reason="INFLUXDB_UNSUITABLE"
            )
        major = version.removeprefix("v").partition(".")[0]
        if major.isdigit() and major != "2":
            raise FailedPrecondition(
                f"{self._target.url} is an InfluxDB {version}, and only version 2 can be written to: run an InfluxDB 2 "
                "(`influxd upgrade` takes over the data of a 1.x), then set influxdb.org, influxdb.bucket and "
                "influxdb.token of it",
                reason="INFLUXDB_UNSUITABLE",
            )
        with _translated():
            # Not the function `buckets()` of Flux: it looks no further than the first twenty.
            service = BucketsService(self._open.api_client)
            found = await service.get_buckets_async(org=self._target.org, name=self._target.bucket)
        if not found.buckets:
            raise FailedPrecondition(
                f"there is no bucket {self._target.bucket} in the organization {self._target.org} of "
                f"{self._target.url}, or influxdb.token may not read it",
                reason="INFLUXDB_BUCKET_MISSING",
            )
        return str(found.buckets[0].id)

    async def query(self, flux: str) -> Sequence[FluxRecord]:
        """The records that a Flux query gives, over all its tables."""
        with _translated():
            tables = await self._open.query_api().query(flux)
        return [record for table in tables for record in table.records]

    async def write(self, lines: Sequence[str]) -> None:
        """Writes points in line protocol, with times in nanoseconds.

        OutOfRange when the server has not taken some of them, and never will.
        """
        with _translated(writing=True):
            await self._open.write_api().write(self._target.bucket, record=list(lines))

    async def delete(self, predicate: str) -> None:
        """Deletes all points with these tags: `tag="value" AND ...`."""
        with _translated():
            await self._open.delete_api().delete(_EARLIEST, _LATEST, predicate, self._target.bucket)

    @property
    def _open(self) -> InfluxDBClientAsync:
        assert self._client is not None, "it is not entered"
        return self._client


def literal(text: str) -> str:
    """A string in Flux."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


@contextmanager
def _translated(*, writing: bool = False) -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        raise _of_answer(error, writing=writing) from None  # the driver's error shows whole answers
    except FluxQueryException as error:
        raise Unavailable(f"InfluxDB broke off its answer: {error.message}", reason="INFLUXDB_UNAVAILABLE") from error
    except (aiohttp.ClientError, TimeoutError, OSError, FluxCsvParserException) as error:
        words = str(error) or type(error).__name__
        raise Unavailable(f"InfluxDB can not be reached now: {words}", reason="INFLUXDB_UNAVAILABLE") from error


def _of_answer(error: ApiException, *, writing: bool) -> OpsplaneError:
    words = f"InfluxDB answers {error.status}: {_message(error.body) or error.reason}"
    match error.status:
        case 401:
            return FailedPrecondition(f"{words}; see influxdb.token", reason="INFLUXDB_REFUSED")
        case 403:
            return FailedPrecondition(
                f"{words}; influxdb.token needs to be allowed to read and write influxdb.bucket",
                reason="INFLUXDB_REFUSED",
            )
        case 404:
            return FailedPrecondition(
                f"{words}; see influxdb.org and influxdb.bucket", reason="INFLUXDB_BUCKET_MISSING"
            )
        case 400 | 413 | 422 if writing:
            return OutOfRange(words, reason="INFLUXDB_REJECTED")
        case 429 | 500 | 502 | 503 | 504 | None:
            return Unavailable(words, reason="INFLUXDB_UNAVAILABLE", retry_after=_retry_after(error.headers))
        case _:
            return FailedPrecondition(words, reason="INFLUXDB_UNSUITABLE")


def _message(body: Any) -> str:
    try:
        return str(json.loads(body)["message"])[:_WORDS]
    except (ValueError, TypeError, KeyError):
        return ""


def _retry_after(headers: Any) -> timedelta:
    try:
        wanted = timedelta(seconds=int(headers["Retry-After"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return timedelta(seconds=1)
    return min(max(wanted, timedelta(seconds=1)), _LONGEST_RETRY)
