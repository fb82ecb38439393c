"""What a log call costs the application: the time of each call, over some 100,000 calls a scenario.

    python -m tests.bench.shipper [--calls N]

Scenarios: the server reachable or not (then records go to the spool), by `Shipper.log` and by standard logging; one
thread at 10,000 calls/s, and four threads that log as fast as they can, which is more than shipping in one process can
take off: records are dropped and counted then. The server is a process of its own that acknowledges without storing.

The floors show what is not shipping: the same loop around nothing, around encoding a record that is thrown away, and
around standard logging to a handler that does nothing. "deferred" is the alternative design, in which the call only
appends the values to a queue and the sender's thread encodes them.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from opsplane.logingest.v1 import logingest_pb2, records_pb2
from opsplane.logs import OpsplaneHandler, Shipper
from opsplane.logs.encoding import Encoder

GOAL_MS = 0.1
CALLS = 100_000
PACE = 10_000  # calls/s
THREADS = 4
METHOD = "opsplane.logingest.v1.LogIngest"
Call = Callable[[int], object]


def run(rounds: int) -> list[dict[str, Any]]:
    """Measures every scenario once; `rounds` scales the calls, 5 being 100,000."""
    return [
        {
            "measure": f"log_call_p99_{name.replace(' ', '_').replace(',', '')}",
            "value": percentile(times, 0.99) / 1e6,
            "unit": "ms",
            "reference": describe(times),
            "goal": f"< {GOAL_MS:g}" if "floor" not in name and "flat out" not in name else None,
            "met": percentile(times, 0.99) / 1e6 < GOAL_MS if "floor" not in name and "flat out" not in name else None,
        }
        for name, times, _ in measure(CALLS * rounds // 5)
    ]


def measure(calls: int) -> Iterator[tuple[str, array[int], str]]:
    """Name, nanoseconds of each call, sorted, and what became of the records."""
    yield "floor, paced", _timed(lambda number: None, calls, 1, PACE), ""
    encoder = Encoder("bench", "", "host", "")
    fields = {"user_id": "u-1", "region": "eu", "n": 1}
    yield "floor, encode, paced", _timed(lambda number: encoder.values("info", "order", fields), calls, 1, PACE), ""
    logger = logging.Logger("orders.http")
    logger.addHandler(logging.NullHandler())
    yield "floor, logging, paced", _timed(_logging(logger), calls, 1, PACE), ""
    yield "floor, logging, flat out", _timed(_logging(logger), calls, THREADS, None), ""
    values: deque[object] = deque(maxlen=100_000)

    def deferred(number: int) -> None:
        values.append(
            (time.time_ns(), "info", f"order {number} placed", {"user_id": "u-1", "region": "eu", "n": number})
        )

    yield "deferred, paced", _timed(deferred, calls, 1, PACE), ""
    for reachable in (True, False):
        for kind in ("log", "logging"):
            for threads, pace in ((1, PACE), (THREADS, None)):
                name = f"{kind}, {'reachable' if reachable else 'unreachable'}, {'paced' if pace else 'flat out'}"
                with _shipper(reachable) as shipper:
                    logger = logging.Logger("orders.http")
                    logger.addHandler(OpsplaneHandler(shipper))
                    call = _log(shipper) if kind == "log" else _logging(logger)
                    call(0)
                    shipper.flush(5 if reachable else 0.5)
                    times = _timed(call, calls, threads, pace)
                    stats = shipper.stats()
                yield name, times, f"accepted {stats.accepted} spilled {stats.spilled} dropped {stats.dropped}"


def percentile(times: array[int], share: float) -> int:
    """Of sorted times."""
    return times[min(int(len(times) * share), len(times) - 1)]


def describe(times: array[int]) -> str:
    """The distribution in microseconds."""
    parts = [f"p{100 * share:g} {percentile(times, share) / 1e3:.1f}" for share in (0.5, 0.9, 0.99, 0.999)]
    return f"{', '.join(parts)}, max {times[-1] / 1e3:.0f} us of {len(times)} calls"


def _log(shipper: Shipper) -> Call:
    return lambda number: shipper.log("info", f"order {number} placed", user_id="u-1", region="eu", n=number)


def _logging(logger: logging.Logger) -> Call:
    return lambda number: logger.info("order %d placed", number, extra={"user_id": "u-1", "region": "eu"})


def _timed(call: Call, calls: int, threads: int, pace: int | None) -> array[int]:
    """Calls from each thread its share, and times each one; with a pace, calls that are late are made at once."""
    times = [array("q") for _ in range(threads)]

    def work(mine: array[int]) -> None:
        clock = time.perf_counter_ns
        start = clock()
        for number in range(calls // threads):
            if pace is not None:
                due = start + number * 1_000_000_000 * threads // pace
                while (left := due - clock()) > 0:
                    time.sleep(left / 1e9)
            before = clock()
            call(number)
            mine.append(clock() - before)

    workers = [threading.Thread(target=work, args=(mine,)) for mine in times]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return array("q", sorted(one for mine in times for one in mine))


@contextmanager
def _shipper(reachable: bool) -> Iterator[Shipper]:
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/server"
        server = None
        if reachable:
            command = [sys.executable, "-m", "tests.bench.shipper", "--serve", address]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
            assert server.stdout is not None
            server.stdout.readline()
        shipper = Shipper(address, service="bench", spool=Path(folder) / "spool", on_problem=lambda problem: None)
        try:
            yield shipper
        finally:
            shipper.close(0)
            if server is not None:
                server.communicate()


async def _serve(address: str) -> None:
    """Acknowledges every batch until the end of the input."""

    async def stream(requests: AsyncIterator[logingest_pb2.StreamLogsRequest], context: Any) -> AsyncIterator[Any]:
        sequence = 0
        async for request in requests:
            if request.HasField("batch"):
                sequence += 1
                yield logingest_pb2.StreamLogsResponse(
                    result=records_pb2.BatchResult(
                        sequence=sequence, batch_id=request.batch.batch_id, stored_count=len(request.batch.records)
                    )
                )

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(
        stream,
        request_deserializer=logingest_pb2.StreamLogsRequest.FromString,
        response_serializer=logingest_pb2.StreamLogsResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(METHOD, {"StreamLogs": handler}),))
    server.add_insecure_port(address)
    await server.start()
    print("up", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


def main() -> None:
    """Prints the distributions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--serve", metavar="ADDRESS", help="be the server of a scenario")
    args = parser.parse_args()
    if args.serve:
        asyncio.run(_serve(args.serve))
        return
    for name, times, outcome in measure(args.calls):
        print(f"{name:32} {describe(times)}; {outcome}", flush=True)


if __name__ == "__main__":
    main()
