"""`python -m scripts.soak_transfers`: whether 5,000 transfers survive all that can break on their way.

A proxy between our server and vsftpd delays, cuts, throttles, truncates and stalls data and control connections. At
random moments a worker, the whole server, the FTP server or the Kafka broker is killed with SIGKILL and started again.
In the end each file must be there with the right content or its task reported failed with the right code, no other
file may be there, and with Kafka each task has one message of its result (`--rpc` submits by RPC instead). What
happened goes to build/soak-transfers.jsonl, a line a kill and a summary; the status is 1 if anything is not as it must
be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TextIO

from tests.ftp_servers.base import running
from tests.ftp_servers.vsftpd import Vsftpd
from tests.kafka_broker import running_broker
from tests.transfer_faults import FaultySite, faulty_site
from tests.waiting import until

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "soak-transfers.jsonl"
LARGEST = 1_000_000  # bytes
WAIT_SECONDS = 1800.0
VICTIMS = ("worker", "server", "ftp")


class Soak:
    """One run."""

    def __init__(self, site: FaultySite, file: TextIO, *, kills: int, chance: random.Random, kafka: bool) -> None:
        self._site = site
        self._file = file
        self._kills = kills
        self._chance = chance
        self._kafka = kafka

    async def run(self) -> None:
        """Returns when all has ended and is right. AssertionError when anything is not."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._site.submit())
            for number in range(self._kills):
                await self._kill(number)
            await self._site.open(1)
        await self._site.ended(WAIT_SECONDS)
        seconds = time.monotonic() - started
        outcomes = await self._site.check()
        self._write({"tasks": len(self._site.tasks), "seconds": round(seconds, 1), **outcomes})

    async def _kill(self, number: int) -> None:
        """Kills something at a random moment in the share of the files that is this kill's."""
        share = 1 / (self._kills + 1)
        await self._site.open(share * (number + 1))
        # Some of the tasks have no file, and some wait for another attempt.
        moment = len(self._site.tasks) * share * (number + self._chance.uniform(0.05, 0.6)) * 0.8
        await until(lambda: self._site.progress() >= moment, timeout=WAIT_SECONDS)
        await asyncio.sleep(self._chance.random() / 5)
        victim = self._chance.choice((*VICTIMS, "kafka") if self._kafka else VICTIMS)
        before = self._site.progress()
        started = time.monotonic()
        await self._site.kill(victim)
        seconds = time.monotonic() - started
        self._write({"kill": number + 1, "victim": victim, "files": before, "recovery_seconds": round(seconds, 2)})

    def _write(self, record: Mapping[str, object]) -> None:
        line = json.dumps(record)
        self._file.write(line + "\n")
        self._file.flush()
        print(line, flush=True)


async def soak(*, files: int, kills: int, workers: int, seed: int, kafka: bool) -> None:
    """Runs it on new servers."""
    RESULTS.parent.mkdir(exist_ok=True)
    async with AsyncExitStack() as stack:
        file = stack.enter_context(RESULTS.open("w", encoding="utf-8"))
        ftp = stack.enter_context(running(Vsftpd))
        broker = stack.enter_context(running_broker()) if kafka else None
        site = await stack.enter_async_context(
            faulty_site(ftp, seed=seed, largest=LARGEST, workers=workers, broker=broker)
        )
        site.make(files, LARGEST)
        chance = random.Random(seed + 1)  # noqa: S311
        await Soak(site, file, kills=kills, chance=chance, kafka=kafka).run()


def main() -> int:
    """Prints what happens; 1 if anything was lost, doubled or not whole."""
    parser = argparse.ArgumentParser(prog="soak_transfers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of faults, moments and victims")
    parser.add_argument("--rpc", action="store_true", help="submit by RPC, without Kafka")
    args = parser.parse_args()
    print(f"{args.files:,} files, {args.kills} kills, seed {args.seed}", flush=True)
    failures: list[object] = []
    try:
        asyncio.run(soak(files=args.files, kills=args.kills, workers=args.workers, seed=args.seed, kafka=not args.rpc))
    except* (AssertionError, TimeoutError) as failed:
        failures += failed.exceptions
    for failure in failures:
        print(f"FAILED: {failure!r}")
    if not failures:
        print("each file is there whole or was reported failed, once")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
