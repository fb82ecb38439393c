"""The process that reads one set of rows: request on stdin, answer on stdout, then it ends.

Request: a line of JSON `{"job", "size", ...}` with the arguments of the job, then the content of an upload, `size`
bytes. Answer: a line of JSON, either `{"fields", "row_count", "sha256", "size"}` and then the rows, `size` bytes, or
`{"problem"}` with what is wrong, or `{"crashed"}` with a traceback.
"""

from __future__ import annotations

import gc
import json
import logging
import resource
import sys
import traceback
from datetime import datetime, timedelta
from typing import Any, BinaryIO, Final

from opsplane_server.loadtesting.datasets.model import ClickHouseQuery, RowFormat, Rows
from opsplane_server.loadtesting.datasets.values import RowsError


class Job:
    """Kinds of requests."""

    PARSE: Final = "parse"
    QUERY: Final = "query"
    GENERATE: Final = "generate"


def main() -> None:
    """Serves one request; `argv` holds the limits: address space in bytes and CPU time in seconds."""
    memory, cpu_seconds = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    # What rows leave behind is given up with the process.
    gc.disable()
    logging.disable()
    out = sys.stdout.buffer
    try:
        _answer(out, _serve(sys.stdin.buffer))
    except RowsError as error:
        _say(out, problem=str(error))
    except MemoryError:
        _say(out, problem="the rows need more memory than reading them may take")
    except Exception:
        _say(out, crashed=traceback.format_exc())
    out.flush()


def _serve(source: BinaryIO) -> Rows:
    head: dict[str, Any] = json.loads(source.readline())
    # Each job loads what it needs alone, which is most of the time that small ones take.
    match head["job"]:
        case Job.PARSE:
            from opsplane_server.loadtesting.datasets.parsing import parse

            return parse(RowFormat(head["format"]), source.read(head["size"]))
        case Job.QUERY:
            from opsplane_server.loadtesting.datasets.clickhouse import query

            head["query"]["timeout"] = timedelta(seconds=head["query"]["timeout"])
            return query(ClickHouseQuery(**head["query"]), head["password"], head["limit"])
        case Job.GENERATE:
            from opsplane_server.loadtesting.datasets.generating import GENERATORS, generate

            return generate(
                GENERATORS.validate_python(head["generator"]),
                pool=head["pool"],
                seed=head["seed"],
                now=datetime.fromisoformat(head["now"]),
            )
    raise AssertionError(f"no such job: {head['job']}")


def _answer(out: BinaryIO, rows: Rows) -> None:
    _say(out, fields=rows.fields, row_count=rows.row_count, sha256=rows.sha256, size=len(rows.lines))
    out.write(rows.lines)


def _say(out: BinaryIO, **values: Any) -> None:
    out.write(json.dumps(values).encode() + b"\n")


if __name__ == "__main__":
    main()
