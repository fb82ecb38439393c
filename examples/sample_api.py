"""A small HTTP API to load-test: `python examples/sample_api.py --port 8080`.

It listens on loopback only and keeps its pets in memory. Its OpenAPI document is at /openapi.json. What it answers is
determined by the calls before: the same ids, and exactly every hundredth call of /offers fails. HTTP/1.1 with
keep-alive and pipelining, on asyncio alone, so that it can take some thousand calls a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

HOST = "127.0.0.1"
KINDS = ("cat", "dog", "parrot", "tortoise")
SEED_PETS = 100
MOST_PETS = 10_000
MOST_HEAD_BYTES = 64 * 1024
MOST_BODY_BYTES = 1024 * 1024
REPORT_SECONDS = 0.05
OFFERS_FAIL_EVERY = 100


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: HTTPStatus, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


class PetStore:
    """The API: `answer` takes a call and returns status and JSON."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._pets = {
            number: {"id": number, "name": f"Pet {number}", "kind": KINDS[number % len(KINDS)]}
            for number in range(1, SEED_PETS + 1)
        }
        self._last_id = SEED_PETS
        self._offer_calls = 0

    async def answer(self, method: str, target: str, body: bytes) -> tuple[HTTPStatus, Any]:
        """Refused if the call is wrong."""
        parts = urlsplit(target)
        match method, parts.path.split("/")[1:]:
            case "GET", ["openapi.json"]:
                return HTTPStatus.OK, self._document
            case "GET", ["pets"]:
                return HTTPStatus.OK, self._list(parse_qs(parts.query))
            case "POST", ["pets"]:
                return HTTPStatus.CREATED, self._create(body)
            case "GET", ["pets", pet_id]:
                return HTTPStatus.OK, self._get(pet_id)
            case "GET", ["reports", "adoptions"]:
                await asyncio.sleep(REPORT_SECONDS)
                return HTTPStatus.OK, Counter(pet["kind"] for pet in self._pets.values())
            case "GET", ["offers"]:
                return HTTPStatus.OK, self._offers()
        raise Refused(HTTPStatus.NOT_FOUND, f"nothing answers {method} {parts.path}")

    def _list(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        limit = query.get("limit", ["20"])[-1]
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= 100:
            raise Refused(HTTPStatus.BAD_REQUEST, "limit must be 1 to 100")
        kind = query.get("kind", [""])[-1]
        return list(islice((pet for pet in self._pets.values() if kind in ("", pet["kind"])), int(limit)))

    def _create(self, body: bytes) -> dict[str, Any]:
        try:
            pet = json.loads(body)
            name, kind = pet["name"], pet["kind"]
        except (ValueError, TypeError, KeyError):
            raise Refused(HTTPStatus.BAD_REQUEST, "a JSON object with name and kind is needed") from None
        if not isinstance(name, str) or not 1 <= len(name) <= 50 or kind not in KINDS:
            raise Refused(HTTPStatus.BAD_REQUEST, f"name must have 1 to 50 characters, kind be one of {KINDS}")
        self._last_id += 1
        self._pets[self._last_id] = {"id": self._last_id, "name": name, "kind": kind}
        if len(self._pets) > MOST_PETS:  # the seeds stay, so that their ids can always be asked for
            del self._pets[next(islice(self._pets, SEED_PETS, None))]
        return self._pets[self._last_id]

    def _get(self, pet_id: str) -> dict[str, Any]:
        pet = self._pets.get(int(pet_id)) if pet_id.isascii() and pet_id.isdigit() and len(pet_id) < 20 else None
        if pet is None:
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no pet {pet_id[:40]}")
        return pet

    def _offers(self) -> list[str]:
        self._offer_calls += 1
        if self._offer_calls % OFFERS_FAIL_EVERY == 0:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the offers are being rewritten")
        return ["Two parrots for one", "A tortoise for life"]


async def serve_connection(store: PetStore, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the calls of a connection, one after another, until either side ends it."""
    try:
        keep_alive = True
        while keep_alive:
            head = await reader.readuntil(b"\r\n\r\n")
            keep_alive = await answer_call(store, head, reader, writer)
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        pass  # the caller has gone, or does not speak HTTP
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer_call(store: PetStore, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Reads the rest of a call and writes its answer; False if the connection must end."""
    request_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    words = request_line.split(" ")
    length = headers.get("content-length", "0")
    whole = True  # whether the next call begins where this one ends
    try:
        if len(words) != 3 or not words[2].startswith("HTTP/1.") or not length.isascii() or not length.isdigit():
            whole = False
            raise Refused(HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 call")
        if "transfer-encoding" in headers or int(length) > MOST_BODY_BYTES:
            whole = False
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a body needs a Content-Length of at most 1 MiB")
        status, content = await store.answer(words[0], words[1], await reader.readexactly(int(length)))
    except Refused as refused:
        status, content = refused.status, {"error": refused.error}
    keep_alive = whole and words[2] == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    body = json.dumps(content).encode()
    writer.write(
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n".encode()
        + body
    )
    return keep_alive


async def serve(port: int) -> None:
    """Serves until SIGTERM or Ctrl-C; the first line of standard output says where."""
    document = json.loads(Path(__file__).with_name("petstore.openapi.json").read_text(encoding="utf-8"))
    store = PetStore(document)
    server = await asyncio.start_server(
        lambda reader, writer: serve_connection(store, reader, writer), HOST, port, limit=MOST_HEAD_BYTES
    )
    address = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    document["servers"] = [{"url": address}]
    print(f"sample API at {address}, its document at {address}/openapi.json", flush=True)  # noqa: T201  # it is a program
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with server:
        await ended.wait()


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=8080, help="port on 127.0.0.1; 0 takes a free one (default 8080)")
    try:
        asyncio.run(serve(parser.parse_args().port))
    except OSError as error:
        sys.exit(f"the sample API can not start: {error}")


if __name__ == "__main__":
    main()
