"""The HTTP port for probes and Prometheus."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus

import httpx
import pytest
from opsplane_server.supervisor.http import Answer, HttpServer
from opsplane_server.supervisor.ports import address_of, listen
from opsplane_server.supervisor.status import Status


async def hello() -> Answer:
    return Answer(b"hello\n", HTTPStatus.ACCEPTED, "text/x-test")


async def broken() -> Answer:
    raise RuntimeError("not today")


@pytest.fixture
async def address() -> AsyncIterator[str]:
    with listen("127.0.0.1", 0) as listening:
        where = address_of(listening)
        async with HttpServer(listening, {"/hello": hello, "/broken": broken}):
            yield where


@pytest.fixture
async def client(address: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as opened:
        yield opened


async def test_get_and_head(client: httpx.AsyncClient) -> None:
    response = await client.get("/hello?name=x")
    assert (response.status_code, response.text) == (202, "hello\n")
    assert response.headers["content-type"] == "text/x-test"
    head = await client.head("/hello")
    assert (head.status_code, head.text, head.headers["content-length"]) == (202, "", "6")


async def test_other_pages_and_methods(client: httpx.AsyncClient) -> None:
    assert (await client.get("/nothing")).status_code == 404
    response = await client.post("/hello", content=b"x")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("sent", [b"", b"GET /hello", b"x" * 20_000, b"\r\n\r\n", b"\x00\xff \xfe\r\n\r\n"])
async def test_what_is_no_request_harms_nobody(address: str, client: httpx.AsyncClient, sent: bytes) -> None:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    writer.write_eof()
    with suppress(ConnectionResetError):
        assert not (await reader.read()).startswith(b"HTTP/1.1 2")
    writer.close()
    assert (await client.get("/hello")).status_code == 202


async def test_a_page_that_fails_ends_its_own_connection_alone(client: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get("/broken")
    assert (await client.get("/hello")).status_code == 202


async def test_a_server_that_starts_is_live_but_not_ready() -> None:
    pages: dict[str, Callable[[], Awaitable[Answer]]] = dict(Status().pages)
    assert (await pages["/live"]()).status is HTTPStatus.OK
    assert (await pages["/ready"]()).status is HTTPStatus.SERVICE_UNAVAILABLE
    health = await pages["/health"]()
    assert health.status is HTTPStatus.SERVICE_UNAVAILABLE
    assert json.loads(health.body)["status"] == "not ready"
    assert b"opsplane_workers 0.0" in (await pages["/metrics"]()).body
