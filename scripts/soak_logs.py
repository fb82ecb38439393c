"""`python -m scripts.soak_logs`: whether a million log records survive a server and a database that are killed.

Eight shippers send numbered records; at random moments the server (its workers and their parent) or the main process of
its PostgreSQL is killed with SIGKILL and started again. After each recovery every acknowledged record must be in the
table once; in the end every record must be, and a follower by TailLogs must have seen each once. What happened goes to
build/soak-logs.jsonl, a line a kill and a summary; the status is 1 if anything was lost or doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from tests.logs_crashes import kill_postgres, kill_server
from tests.logs_shippers import (
    Gate,
    Ledger,
    Shipper,
    Tail,
    acknowledged,
    everything,
    faults,
    progress,
    read_ledger,
)
from tests.ports import free_port
from tests.server_process import ServerProcess, new_server
from tests.waiting import until

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "soak-logs.jsonl"
SHIPPERS = 8
BATCH = 400  # most records of a batch
WAIT_SECONDS = 600.0
KILLS = {"server": kill_server, "postgres": kill_postgres}


class Soak:
    """One run."""

    def __init__(self, server: ServerProcess, file: TextIO, *, records: int, kills: int, seed: int) -> None:
        self._server = server
        self._file = file
        self._kills = kills
        self._chance = random.Random(seed)  # noqa: S311
        self._total = records
        self._gate = Gate(0)
        self._shippers = [
            Shipper(f"s{n}", server.address, records=records // SHIPPERS, batch=BATCH, seed=seed, gate=self._gate)
            for n in range(SHIPPERS)
        ]
        self._tail = Tail(server.address)
        self._faults: list[object] = []

    async def run(self) -> None:
        """Returns when all is shipped and right. AssertionError when anything is not."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            tailing = group.create_task(self._tail.run())
            await self._tail.begun()
            shipping = [group.create_task(shipper.run()) for shipper in self._shippers]
            for number in range(self._kills):
                await self._kill(number)
            self._gate.open(1)
            await asyncio.gather(*shipping)
            seconds = time.monotonic() - started
            expected = everything(self._shippers)
            (await read_ledger(self._server)).require_all(self._shippers)
            await until(lambda: len(self._tail.keys) + self._tail.dropped >= len(expected), timeout=WAIT_SECONDS)
            tailing.cancel()
        seen = set(self._tail.keys)
        Ledger(self._tail.keys).require(seen if self._tail.dropped else expected)
        assert len(seen) + self._tail.dropped == len(expected), "TailLogs left out more than it says"
        self._faults += faults(self._server)
        self._write(
            {
                "records": self._total,
                "seconds": round(seconds, 1),
                "kills": self._kills,
                "broken_streams": sum(shipper.broken_streams for shipper in self._shippers),
                "answered_again": sum(shipper.again for shipper in self._shippers),
                "tail_streams": self._tail.streams,
                "tail_dropped": self._tail.dropped,
                "faults": len(self._faults),
            }
        )

    async def _kill(self, number: int) -> None:
        """Kills something at a random moment in the share of the records that is this kill's."""
        share = 1 / (self._kills + 1)
        self._gate.open(share * (number + 1))
        moment = self._total * share * (number + self._chance.uniform(0.05, 0.6))
        await until(lambda: progress(self._shippers) >= moment, timeout=WAIT_SECONDS)
        await asyncio.sleep(self._chance.random() / 20)
        victim = self._chance.choice(tuple(KILLS))
        self._faults += faults(self._server)
        before = progress(self._shippers)
        started = time.monotonic()
        await asyncio.to_thread(KILLS[victim], self._server)
        seconds = time.monotonic() - started
        so_far = acknowledged(self._shippers)
        (await read_ledger(self._server)).require(so_far)
        self._write(
            {"kill": number + 1, "victim": victim, "acknowledged": before, "recovery_seconds": round(seconds, 2)}
        )

    def _write(self, record: Mapping[str, object]) -> None:
        line = json.dumps(record)
        self._file.write(line + "\n")
        self._file.flush()
        print(line, flush=True)


async def soak(*, records: int, kills: int, workers: int, seed: int) -> None:
    """Runs it on a new server."""
    RESULTS.parent.mkdir(exist_ok=True)
    with (
        new_server("--workers", str(workers), f"--port={free_port()}") as server,
        RESULTS.open("w", encoding="utf-8") as file,
    ):
        server.start()
        await asyncio.to_thread(server.wait_ready)
        await Soak(server, file, records=records, kills=kills, seed=seed).run()


def main() -> int:
    """Prints what happens; 1 if records were lost or doubled."""
    parser = argparse.ArgumentParser(prog="soak_logs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of moments and victims")
    args = parser.parse_args()
    print(f"{args.records:,} records, {args.kills} kills, seed {args.seed}", flush=True)
    failures: list[object] = []
    try:
        asyncio.run(soak(records=args.records, kills=args.kills, workers=args.workers, seed=args.seed))
    except* (AssertionError, TimeoutError) as failed:
        failures += failed.exceptions
    for failure in failures:
        print(f"FAILED: {failure!r}")
    if not failures:
        print("nothing was lost, nothing doubled")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
