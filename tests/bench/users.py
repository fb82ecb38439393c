"""Simulated users against Locust: the same scenario, users and time on the same target.

The generator has one core; the target, the server with its PostgreSQL and the watcher have the other one. The target
takes as long as a real API would (examples/panacea_api.py at pace 1), so neither generator is near its limit. Each
round has both, one after the other, in changing order:

    ours    examples/panacea.yaml by CreateRun, metrics live, WatchRun followed
    locust  users_locust/locustfile.py, HttpUser, headless, one process

Calls are counted from the access log of the target and CPU seconds are taken from the generators, both between the
same two moments: after all users have started, and before they end. Percentiles are what each says of its whole run.
A result is the median of the rounds' ratios.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import statistics
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from opsplane.cli.run_files import read_run_file
from opsplane.client import Client, connect
from opsplane.loadtesting.v1 import projects_pb2

from tests.bench import loadtest_runs
from tests.bench.loadtest import find_k6_process, pinned_k6
from tests.server_process import ServerProcess, running_server
from tests.unit.cli.sample_api import EXAMPLES, panacea_api

LOCUST = "2.47.0"
ROOT = Path(__file__).resolve().parent.parent.parent
LOCUSTFILE = Path(__file__).resolve().parent / "users_locust" / "locustfile.py"
USERS = 100
SPAWN_RATE = 25
LOAD_SECONDS = 26
FROM_SECONDS = 7.0  # after the first call: the users have started and taken up their pace
TO_SECONDS = 24.0
WAITS = {"HEAVY_WAIT_MIN": "0.1", "HEAVY_WAIT_MAX": "0.2", "LIGHT_WAIT_MIN": "0.3", "LIGHT_WAIT_MAX": "0.6"}
START_SECONDS = 60.0
CPU_GOAL = 0.6
RATE_GOAL = (0.95, 1.05)
P95_GOAL = (0.9, 1.1)


@dataclass(frozen=True, slots=True)
class _Load:
    rate: float  # calls a second
    cpu_us: float  # of the generator, a call
    all_cpu_us: float  # with what else it takes
    p50: float
    p95: float
    p99: float


def run(rounds: int) -> list[dict[str, Any]]:
    """Measures in `rounds` paired rounds, about a minute each."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("needs two cores: one for the generator, one for what it calls")
    locust = _installed_locust()
    os.sched_setaffinity(0, {cores[1]})  # all that is started from here inherits it; generators move to the other one
    try:
        with tempfile.TemporaryDirectory(prefix="opsplane-bench-") as name:
            return asyncio.run(_measure(rounds, Path(name), cores[0], locust))
    finally:
        os.sched_setaffinity(0, cores)


async def _measure(rounds: int, folder: Path, core: int, locust: Path) -> list[dict[str, Any]]:
    settings = {"OPSPLANE_LOADTESTING__K6_PATH": str(await pinned_k6(folder, core))}
    ours, theirs = list[_Load](), list[_Load]()
    log = folder / "calls.jsonl"
    with panacea_api(log, pace=1.0) as url, running_server(environment=settings) as server:
        target = _Target(url, log)
        async with connect(server.address) as client:
            project = projects_pb2.Project(title="Benchmark")
            await client.load_testing.CreateProject(
                projects_pb2.CreateProjectRequest(project=project, project_id="bench")
            )
            for number in range(rounds):
                for kind in ("ours", "locust") if number % 2 else ("locust", "ours"):
                    if kind == "ours":
                        ours.append(await _ours(client, server, target))
                    else:
                        theirs.append(await _locust(locust, core, folder, target))
                print(f"round {number + 1}: ours {_words(ours[-1])}; locust {_words(theirs[-1])}")
    rate = statistics.median(load.rate for load in theirs)
    reference = f"Locust {LOCUST} HttpUser, {USERS} users, {rate:.0f} calls/s"
    pairs = list(zip(ours, theirs, strict=True))
    return [
        _entry("users_cpu_vs_locust", [a.cpu_us / b.cpu_us for a, b in pairs], reference, (0.0, CPU_GOAL)),
        _entry("users_rate_vs_locust", [a.rate / b.rate for a, b in pairs], reference, RATE_GOAL),
        _entry("users_p95_vs_locust", [a.p95 / b.p95 for a, b in pairs], reference, P95_GOAL),
        _entry("users_p50_vs_locust", [a.p50 / b.p50 for a, b in pairs], reference),
        _entry("users_p99_vs_locust", [a.p99 / b.p99 for a, b in pairs], reference),
        _entry(
            "users_cpu_with_server_vs_locust",
            [a.all_cpu_us / b.all_cpu_us for a, b in pairs],
            f"{reference}; ours with the server and its PostgreSQL",
        ),
    ]


def _entry(
    measure: str, rounds: Sequence[float], reference: str, goal: tuple[float, float] | None = None
) -> dict[str, Any]:
    value = statistics.median(rounds)
    words = None if goal is None else f"<= {goal[1]:g}" if not goal[0] else f"{goal[0]:g} to {goal[1]:g}"
    return {
        "measure": measure,
        "value": value,
        "unit": "times",
        "reference": f"{reference}; rounds {min(rounds):.2f} to {max(rounds):.2f}",
        "goal": words,
        "met": None if goal is None else goal[0] <= value <= goal[1],
    }


def _words(load: _Load) -> str:
    times = f"p50 {load.p50:.0f} p95 {load.p95:.0f} p99 {load.p99:.0f} ms"
    return f"{load.rate:.1f}/s {load.cpu_us:.0f} us ({load.all_cpu_us:.0f} with all) {times}"


# --- one load -----------------------------------------------------------------------------------------------------


async def _ours(client: Client, server: ServerProcess, target: _Target) -> _Load:
    """A run of the example through the server."""
    wanted = read_run_file(EXAMPLES / "panacea.yaml", {**WAITS, "PANACEA_HOST": target.url})
    wanted.user_load.users = USERS
    wanted.user_load.spawn_rate = SPAWN_RATE
    wanted.user_load.run_time.FromSeconds(LOAD_SECONDS)
    workers = [psutil.Process(pid) for pid in server.workers()]
    others = [server.pid, *server.workers(), server.postgres()]
    target.forget()
    following = asyncio.create_task(loadtest_runs.follow(client, wanted))
    try:
        begin = await target.first_call() + FROM_SECONDS
        await asyncio.sleep(begin - time.time())
        k6 = find_k6_process(workers)
        measured = await _between(target, k6, lambda: _cpu_of_trees(others) - _cpu_of_trees([k6.pid]), begin)
        times = (await following).run.results.total.response_time
    finally:
        following.cancel()
    return _Load(*measured, times.p50_ms, times.p95_ms, times.p99_ms)


async def _locust(python: Path, core: int, folder: Path, target: _Target) -> _Load:
    """A run of Locust as people start it."""
    results = folder / "locust"
    target.forget()
    process = await asyncio.create_subprocess_exec(
        *("taskset", "-c", str(core), str(python), "-m", "locust", "-f", str(LOCUSTFILE), "--headless"),
        *("--host", target.url, "-u", str(USERS), "-r", str(SPAWN_RATE), "-t", f"{LOAD_SECONDS}s"),
        *("--csv", str(results), "--only-summary", "--loglevel", "WARNING"),
        env={**os.environ, **WAITS},
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        begin = await target.first_call() + FROM_SECONDS
        await asyncio.sleep(begin - time.time())
        measured = await _between(target, psutil.Process(process.pid), lambda: 0.0, begin)
        if status := await process.wait():
            raise RuntimeError(f"Locust ended with {status}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    with results.with_name("locust_stats.csv").open(encoding="utf-8", newline="") as file:
        [total] = [row for row in csv.DictReader(file) if row["Name"] == "Aggregated"]
    if int(total["Failure Count"]):
        raise RuntimeError(f"{total['Failure Count']} calls of Locust failed")
    return _Load(*measured, *(float(total[name]) for name in ("50%", "95%", "99%")))


async def _between(
    target: _Target, generator: psutil.Process, other_cpu: Any, begin: float
) -> tuple[float, float, float]:
    """Calls a second, and CPU microseconds a call without and with what else there is, up to the second moment."""
    first, cpu, other = time.time(), _cpu_of_trees([generator.pid]), other_cpu()
    await asyncio.sleep(begin - FROM_SECONDS + TO_SECONDS - time.time())
    last, cpu_after, other_after = time.time(), _cpu_of_trees([generator.pid]), other_cpu()
    calls = target.calls(first, last)
    own = (cpu_after - cpu) / calls * 1e6
    return calls / (last - first), own, own + (other_after - other) / calls * 1e6


def _cpu_of_trees(pids: Iterable[int]) -> float:
    """CPU seconds of processes and all below them that there are now."""
    roots = [psutil.Process(pid) for pid in pids]
    below = [child for root in roots for child in root.children(recursive=True)]
    seconds = 0.0
    for process in set(roots + below):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


# --- what there is besides ---------------------------------------------------------------------------------------


class _Target:
    """The API that is called, and what its access log says of the load under way."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log
        self._from = 0

    def forget(self) -> None:
        """Calls up to now are of another load."""
        self._from = self._log.stat().st_size

    async def first_call(self) -> float:
        """When the load's first call came, in seconds since 1970."""
        deadline = time.monotonic() + START_SECONDS
        while not (times := self._times()):
            if time.monotonic() > deadline:
                raise RuntimeError("the load makes no calls")
            await asyncio.sleep(0.05)
        return times[0]

    def calls(self, first: float, last: float) -> int:
        """How many calls came between two times."""
        return sum(first <= moment < last for moment in self._times())

    def _times(self) -> list[float]:
        with self._log.open("rb") as log:
            log.seek(self._from)
            return [json.loads(line)["time"] for line in log if line.endswith(b"\n")]


def _installed_locust() -> Path:
    """The interpreter of a virtualenv that has Locust, made if it is not there yet."""
    folder = ROOT / "build" / f"locust-{LOCUST}"
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists():
        print(f"installing Locust {LOCUST} into {folder.relative_to(ROOT)}")
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"locust=={LOCUST}"], check=True)
        done.touch()
    return python
