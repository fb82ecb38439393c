"""`make soak`: whether memory stays flat during a long run with live metrics.

It starts a server and the sample API, has a run of a fixed arrival rate followed by a watcher, and looks at the
memory of k6, of the worker and of the parent of the workers every five seconds. What it saw goes to
build/soak.jsonl, a line for each look and a summary at the end. The status is 1 if any of them grows by more than
the bound: what a line through the samples after the warm-up rises from its start to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import psutil
from opsplane.client import connect
from opsplane.loadtesting.v1 import runs_pb2, scenarios_pb2

from tests.bench import loadtest_runs
from tests.server_process import ServerProcess, running_server

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "soak.jsonl"
LOOK_SECONDS = 5.0
WARM_UP_SHARE = 0.2
WARM_UP_MOST_SECONDS = 300.0
# Memory may rise by the larger of these after the warm-up.
BOUND_MIB = 8.0
BOUND_SHARE = 0.1
MIB = 1024 * 1024
VUS = 10


@contextmanager
def sample_api() -> Iterator[str]:
    """The sample API on a free port; its URL."""
    command = [sys.executable, str(ROOT / "examples" / "sample_api.py"), "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            yield next(word for word in line.replace(",", " ").split() if word.startswith("http://"))
        finally:
            process.terminate()


class Memory:
    """Resident memory of the processes of a run, in MiB by role. Each look is a line of `file`."""

    def __init__(self, server: ServerProcess, file: TextIO) -> None:
        (worker,) = server.workers()
        self._processes = {"worker": psutil.Process(worker), "parent": psutil.Process(server.pid)}
        self._file = file
        self._start = time.monotonic()
        self.looks: list[tuple[float, Mapping[str, float]]] = []

    async def watch(self) -> None:
        """Looks every few seconds, until k6 has ended or it is cancelled."""
        (k6,) = [child for child in self._processes["worker"].children(recursive=True) if child.name() == "k6"]
        self._processes["k6"] = k6
        while k6.is_running() and k6.status() != psutil.STATUS_ZOMBIE:
            try:
                used = {role: process.memory_info().rss / MIB for role, process in self._processes.items()}
            except psutil.NoSuchProcess:
                if k6.is_running():
                    raise
                return
            seconds = time.monotonic() - self._start
            self.looks.append((seconds, used))
            write(self._file, {"seconds": round(seconds, 1), **{role: round(mib, 2) for role, mib in used.items()}})
            await asyncio.sleep(LOOK_SECONDS)


def write(file: TextIO, record: Mapping[str, object]) -> None:
    """Adds a line, which is there for readers at once."""
    file.write(json.dumps(record) + "\n")
    file.flush()


def judge(role: str, looks: Sequence[tuple[float, float]]) -> tuple[dict[str, object], bool]:
    """Figures of one process from its looks (seconds, MiB), and whether it keeps the bound."""
    first, last = looks[0][0], looks[-1][0]
    begin = first + min(WARM_UP_SHARE * (last - first), WARM_UP_MOST_SECONDS)
    warm = [look for look in looks if look[0] >= begin]
    slope = statistics.linear_regression([at for at, _ in warm], [mib for _, mib in warm]).slope
    grown = slope * (warm[-1][0] - warm[0][0])
    bound = max(BOUND_MIB, BOUND_SHARE * statistics.median(mib for _, mib in warm))
    figures: dict[str, object] = {
        "process": role,
        "looks": len(looks),
        "first_mib": round(looks[0][1], 1),
        "warm_mib": round(warm[0][1], 1),
        "last_mib": round(looks[-1][1], 1),
        "max_mib": round(max(mib for _, mib in looks), 1),
        "slope_mib_per_hour": round(slope * 3600, 2),
        "grown_mib": round(grown, 2),
        "bound_mib": round(bound, 1),
    }
    return figures, grown <= bound


async def soak(minutes: float, rate: int) -> bool:
    """Runs the load; whether memory is flat."""
    RESULTS.parent.mkdir(exist_ok=True)
    with sample_api() as url, running_server() as server, RESULTS.open("w", encoding="utf-8") as file:
        async with connect(server.address) as client:
            endpoint = await loadtest_runs.prepare(client, url)
            executor = scenarios_pb2.EXECUTOR_CONSTANT_ARRIVAL_RATE
            run = loadtest_runs.plan(endpoint, executor, rate, round(minutes * 60), vus=VUS)
            memory = Memory(server, file)
            watching: list[asyncio.Task[None]] = []

            def seen(run: runs_pb2.Run) -> None:
                if run.state == runs_pb2.RUN_STATE_RUNNING and not watching:
                    watching.append(asyncio.create_task(memory.watch()))

            print(f"{rate} calls/s for {minutes:g} minutes; each look goes to {RESULTS.relative_to(ROOT)}", flush=True)
            try:
                followed = await loadtest_runs.follow(client, run, seen)
                await watching[0]
            finally:
                for task in watching:
                    task.cancel()
        total = followed.run.results
        write(
            file,
            {
                "requests": total.total.requests,
                "failed": total.total.failed_requests,
                "dropped": total.dropped_iterations,
                "windows": len(followed.delays),
                "watch_delay_p99_s": round(loadtest_runs.percentile(followed.delays, 0.99), 3),
                "watch_delay_max_s": round(max(followed.delays), 3),
            },
        )
        flat = True
        for role in ("k6", "worker", "parent"):
            figures, kept = judge(role, [(at, used[role]) for at, used in memory.looks])
            write(file, {**figures, "flat": kept})
            flat &= kept
    return flat


def main() -> int:
    """Prints the summary; 1 if memory grows."""
    parser = argparse.ArgumentParser(prog="make soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=int, default=200, help="calls a second")
    args = parser.parse_args()
    flat = asyncio.run(soak(args.minutes, args.rate))
    for line in RESULTS.read_text(encoding="utf-8").splitlines()[-4:]:
        print(line)
    print("memory is flat" if flat else "memory GROWS")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
