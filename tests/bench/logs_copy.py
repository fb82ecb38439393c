"""Raw COPY of the same rows: a process with one connection that sends ready-made binary COPYs, one after the other.

A load: `rows` a COPY, `begin`, `end`, and either as fast as it goes, or paced: a COPY each `interval` seconds from
`first` on. A paced COPY counts from when it was due, so one that waits for the one before it is not flattered.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

from tests.bench import logs_records
from tests.bench.logs_children import Counted, serve
from tests.bench.logs_postgres import Connection, copy_message

SIZES = (1000, 10_000)


def main() -> None:
    """Serves loads; arguments are the database and the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dsn")
    parser.add_argument("table")
    args = parser.parse_args()
    records = logs_records.make_records()
    messages = {size: [copy_message(args.table, data) for data in logs_records.copies(records, size)] for size in SIZES}

    def load(given: dict[str, Any]) -> dict[str, Any]:
        counted = Counted(given["begin"], given["end"])
        rows, interval = given["rows"], given.get("interval")
        with Connection(args.dsn) as connection:
            for number, message in enumerate(itertools.cycle(messages[rows])):
                since = time.perf_counter()
                if interval is not None:
                    due = given["first"] + number * interval
                    time.sleep(max(0.0, due - since))
                    since = due
                if since >= counted.end:
                    return counted.answer()
                connection.send_and_wait(message)
                counted.add(rows, since, time.perf_counter())
        raise AssertionError("unreachable")

    serve(load)


if __name__ == "__main__":
    main()
