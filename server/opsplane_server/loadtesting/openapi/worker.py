"""The process that analyzes one document: request on stdin, answer on stdout, then it ends.

Request: a line of JSON `{"source_url", "text", "documents", "unavailable"}` where `text` and the values of
`documents` are lengths in bytes, then the texts, UTF-8, in that order. Answer: lines of a kind, a space and JSON;
see `Kind`.
"""

from __future__ import annotations

import json
import resource
import sys
import traceback
from typing import Any, BinaryIO, Final

from pydantic import TypeAdapter

from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.definitions import Endpoint, Specification
from opsplane_server.loadtesting.openapi.analysis import MissingDocuments, analyze

SPECIFICATIONS: Final = TypeAdapter(Specification)
ENDPOINTS: Final = TypeAdapter(Endpoint)

MAX_RESULT_BYTES: Final = 64 * 1024 * 1024


class Kind:
    """Kinds of answer lines: the specification, an endpoint each, and END; or one of the others instead."""

    SPECIFICATION: Final = b"specification"
    ENDPOINT: Final = b"endpoint"
    END: Final = b"end"
    MISSING: Final = b"missing"
    REFUSED: Final = b"refused"
    TOO_LARGE: Final = b"too-large"
    CRASHED: Final = b"crashed"


def main() -> None:
    """Serves one request; `argv` holds the limits: address space in bytes and CPU time in seconds."""
    memory, cpu_seconds = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    out = sys.stdout.buffer
    try:
        _serve(sys.stdin.buffer, out)
    except MemoryError:
        _answer(out, Kind.TOO_LARGE, b"null")
    except Exception:
        _answer(out, Kind.CRASHED, json.dumps(traceback.format_exc()).encode())
    out.flush()


def _serve(source: BinaryIO, out: BinaryIO) -> None:
    head: dict[str, Any] = json.loads(source.readline())
    text = source.read(head["text"]).decode()
    documents = {url: source.read(size).decode() for url, size in head["documents"].items()}
    try:
        analyzed = analyze(text, source_url=head["source_url"], documents=documents, unavailable=head["unavailable"])
    except MissingDocuments as missing:
        _answer(out, Kind.MISSING, json.dumps(sorted(missing.urls)).encode())
    except InvalidArgument as error:
        _answer(out, Kind.REFUSED, json.dumps([error.violations[0].field, error.violations[0].description]).encode())
    else:
        _answer(out, Kind.SPECIFICATION, SPECIFICATIONS.dump_json(analyzed.specification))
        size = 0
        for endpoint in analyzed.endpoints:
            payload = ENDPOINTS.dump_json(endpoint)
            size += len(payload)
            if size > MAX_RESULT_BYTES:
                # Shared parts of a document, a long example for one, can come to much when each endpoint has them.
                _answer(out, Kind.TOO_LARGE, b"null")
                return
            _answer(out, Kind.ENDPOINT, payload)
        _answer(out, Kind.END, b"null")


def _answer(out: BinaryIO, kind: bytes, payload: bytes) -> None:
    out.write(kind + b" " + payload + b"\n")


if __name__ == "__main__":
    main()
