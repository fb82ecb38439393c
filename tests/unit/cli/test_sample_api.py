import http.client
import json
import socket
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import urlsplit

import pytest

from tests.unit.cli.sample_api import sample_api


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with sample_api() as url:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        yield parts.hostname, parts.port


@pytest.fixture
def connection(address: tuple[str, int]) -> Iterator[http.client.HTTPConnection]:
    opened = http.client.HTTPConnection(*address, timeout=20)
    yield opened
    opened.close()


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> tuple[int, object]:
    connection.request(method, path, json.dumps(body) if body is not None else None)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_the_document_describes_every_answer(connection: http.client.HTTPConnection) -> None:
    status, document = ask(connection, "GET", "/openapi.json")
    assert status == HTTPStatus.OK
    assert isinstance(document, dict)
    assert document["servers"] == [{"url": f"http://{connection.host}:{connection.port}"}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            status, _ = ask(connection, method.upper(), path.replace("{petId}", "7"), body)
            assert str(status) in operation["responses"]
            assert status < 300


def test_pets_are_created_listed_and_found(connection: http.client.HTTPConnection) -> None:
    status, created = ask(connection, "POST", "/pets", {"name": "Mia", "kind": "cat"})
    assert status == HTTPStatus.CREATED
    assert isinstance(created, dict)
    assert ask(connection, "GET", f"/pets/{created['id']}") == (HTTPStatus.OK, created)
    status, cats = ask(connection, "GET", "/pets?limit=5&kind=cat")
    assert isinstance(cats, list)
    assert [pet["id"] for pet in cats] == [4, 8, 12, 16, 20]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/pets?limit=0", None, HTTPStatus.BAD_REQUEST),
        ("GET", "/pets/0", None, HTTPStatus.NOT_FOUND),
        ("GET", "/pets/x", None, HTTPStatus.NOT_FOUND),
        ("POST", "/pets", {"name": "", "kind": "cat"}, HTTPStatus.BAD_REQUEST),
        ("POST", "/pets", [], HTTPStatus.BAD_REQUEST),
        ("POST", "/pets", {"name": "x", "kind": []}, HTTPStatus.BAD_REQUEST),
        ("DELETE", "/pets", None, HTTPStatus.NOT_FOUND),
    ],
)
def test_wrong_calls_are_refused(
    connection: http.client.HTTPConnection, method: str, path: str, body: object, status: HTTPStatus
) -> None:
    assert ask(connection, method, path, body)[0] == status


def test_exactly_every_hundredth_offer_fails() -> None:
    with sample_api() as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
        statuses = [ask(connection, "GET", "/offers")[0] for _ in range(300)]
        connection.close()
    assert [place for place, status in enumerate(statuses, 1) if status != HTTPStatus.OK] == [100, 200, 300]


def test_calls_may_follow_each_other_without_waiting(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as raw:
        raw.sendall(b"GET /pets/1 HTTP/1.1\r\nHost: x\r\n\r\nGET /pets/2 HTTP/1.0\r\n\r\n")
        received = b"".join(iter(lambda: raw.recv(65536), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.index(b'"id": 1') < received.index(b'"id": 2')


@pytest.mark.parametrize(
    "call",
    [
        b"nonsense\r\n\r\n",
        b"GET /pets HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /pets HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /pets HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
    ],
)
def test_what_is_no_http_ends_the_connection(address: tuple[str, int], call: bytes) -> None:
    with socket.create_connection(address, timeout=20) as raw:
        raw.sendall(call)
        assert b"".join(iter(lambda: raw.recv(65536), b"")).startswith(b"HTTP/1.1 4")
