"""What a log call costs the application: the time of each call, over 100,000 calls a scenario.

    python -m tests.bench.shipper [--calls N]

Scenarios: the server reachable or not (then records go to the spool), by `Shipper.log`, by standard logging, and by the
handler alone, which is what shipping adds to a call of logging that there is anyway; one thread at 5,000 calls/s, and
four threads that log as fast as they can. The server is a process of its own that acknowledges without storing.

The floors show what is not shipping: the same loop around encoding a record that is thrown away, around standard
logging into memory, and around spinning for 20 us. On a machine with other work a thread is taken off its core now and
then, and finds cold caches; CPU time leaves the first out. "deferred" is the alternative design, in which the call only
appends the values to a queue and the sender's thread encodes them.
"""

from __future__ import annotations

import argparse
import asyncio
import io
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from opsplane.logingest.v1 import logingest_pb2, records_pb2
from opsplane.logs import OpsplaneHandler, Shipper
from opsplane.logs.encoding import Encoder

GOAL_MS = 0.1
CALLS = 100_000
PACE = 5_000  # calls/s
THREADS = 4
METHOD = "opsplane.logingest.v1.LogIngest"
Call = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Times:
    """Nanoseconds of each call, sorted: as a clock on the wall has it, and of CPU."""

    wall: array[int]
    cpu: array[int]

    def __str__(self) -> str:
        wall = ", ".join(f"p{100 * share:g} {percentile(self.wall, share):.1f}" for share in (0.5, 0.9, 0.99, 0.999))
        cpu = f"p50 {percentile(self.cpu, 0.5):.1f}, p99 {percentile(self.cpu, 0.99):.1f}"
        return f"us: {wall}, max {self.wall[-1] / 1e3:.0f}; CPU {cpu}; of {len(self.wall)} calls"


def run(rounds: int) -> list[dict[str, Any]]:
    """Measures every scenario once; `rounds` scales the calls, 5 being 100,000."""
    entries: list[dict[str, Any]] = []
    for name, times, _ in measure(CALLS * rounds // 5):
        judged = name.startswith("log") and name.endswith("paced")
        p99 = percentile(times.wall, 0.99) / 1e3
        entries.append(
            {
                "measure": f"log_call_p99_{name.replace(', ', '_').replace(' ', '_')}",
                "value": p99,
                "unit": "ms",
                "reference": str(times),
                "goal": f"< {GOAL_MS:g}" if judged else None,
                "met": p99 < GOAL_MS if judged else None,
            }
        )
    return entries


def measure(calls: int) -> Iterator[tuple[str, Times, str]]:
    """Name, times, and what became of the records."""
    encoder = Encoder("bench", "", "host", "")
    fields = {"user_id": "u-1", "region": "eu", "n": 1}
    values: deque[object] = deque(maxlen=100_000)
    memory = logging.Logger("orders.http")
    memory.addHandler(logging.StreamHandler(io.StringIO()))
    alone: dict[str, Call] = {
        "floor, encode": lambda number: encoder.values("info", "order", fields),
        "floor, logging": _logging(memory),
        "floor, spin 20 us": _spin,
        "deferred": lambda number: values.append((time.time_ns(), "info", f"order {number} placed", dict(fields))),
    }
    for name, call in alone.items():
        yield f"{name}, paced", _timed(call, calls, 1, PACE), ""
    yield "floor, logging, flat out", _timed(_logging(memory), calls, THREADS, None), ""
    for reachable in (True, False):
        for kind in ("log", "logging", "log by the handler"):
            for threads, pace in ((1, PACE), (THREADS, None)):
                name = f"{kind}, {'reachable' if reachable else 'unreachable'}, {'paced' if pace else 'flat out'}"
                with _shipper(reachable) as shipper:
                    call = _calls(shipper)[kind]
                    call(0)
                    shipper.flush(5 if reachable else 0.5)
                    times = _timed(call, calls, threads, pace)
                    stats = shipper.stats()
                yield name, times, f"accepted {stats.accepted} spilled {stats.spilled} dropped {stats.dropped}"


def percentile(times: array[int], share: float) -> float:
    """Microseconds."""
    return times[min(int(len(times) * share), len(times) - 1)] / 1e3


def _spin(number: int) -> None:
    end = time.perf_counter_ns() + 20_000
    while time.perf_counter_ns() < end:
        pass


def _calls(shipper: Shipper) -> dict[str, Call]:
    handler = OpsplaneHandler(shipper)
    logger = logging.Logger("orders.http")
    logger.addHandler(handler)
    record = logger.makeRecord(
        logger.name, logging.INFO, __file__, 1, "order %d placed", (1,), None, extra={"user_id": "u-1", "region": "eu"}
    )
    return {
        "log": lambda number: shipper.log("info", f"order {number} placed", user_id="u-1", region="eu", n=number),
        "logging": _logging(logger),
        "log by the handler": lambda number: handler.handle(record),
    }


def _logging(logger: logging.Logger) -> Call:
    return lambda number: logger.info("order %d placed", number, extra={"user_id": "u-1", "region": "eu"})


def _timed(call: Call, calls: int, threads: int, pace: int | None) -> Times:
    """Calls from each thread its share, and times each one; with a pace, calls that are late are made at once."""
    walls = [array("q") for _ in range(threads)]
    cpus = [array("q") for _ in range(threads)]

    def work(wall: array[int], cpu: array[int]) -> None:
        clock, thread_clock = time.perf_counter_ns, time.thread_time_ns
        start = clock()
        for number in range(calls // threads):
            if pace is not None:
                due = start + number * 1_000_000_000 * threads // pace
                while (left := due - clock()) > 0:
                    time.sleep(left / 1e9)
            cpu_before = thread_clock()
            before = clock()
            call(number)
            wall.append(clock() - before)
            cpu.append(thread_clock() - cpu_before)

    workers = [threading.Thread(target=work, args=both) for both in zip(walls, cpus, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Times(*(array("q", sorted(one for mine in parts for one in mine)) for parts in (walls, cpus)))


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
        print(f"{name:32} {times}; {outcome}", flush=True)


if __name__ == "__main__":
    main()
