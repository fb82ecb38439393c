"""What live metrics cost a load generator, and how late a watcher sees them.

k6 has one core and the rest has another one: the target, a server on embedded defaults (`opsplane serve`) and its
watcher. 50 virtual users call in a closed loop, so k6 is what limits the rate. Each round has the same script run in
each way, one after the other, their order moved on each time:

    ours    CreateRun, metrics live, WatchRun followed
    silent  k6 with our settings and no output at all
    plain   `k6 run` as people type it: default settings, tags and summary
    script  the same, but with the tags that the script itself asks for

Calls are counted by the target. A result is the median of the rounds' ratios.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from opsplane.client import Client, connect
from opsplane.loadtesting.v1 import runs_pb2, scenarios_pb2
from opsplane_server.loadtesting.runners.k6_binary import find_k6
from opsplane_server.loadtesting.runners.k6_environment import k6_environment
from opsplane_server.loadtesting.runners.port import Exporter

from tests.bench import loadtest_runs
from tests.bench.loadtest_target import Target, running_target
from tests.server_process import ServerProcess, running_server

LOST_GOAL_PCT = 0.0
OUTPUT_GOAL_PCT = 12.0
DELAY_GOAL_SECONDS = 2.0
LOAD_SECONDS = 35  # of each kind, in all rounds together
VUS = 50
KINDS = ("plain", "ours", "silent", "script")
LOOK_SECONDS = 0.1
# k6's own defaults, against those that the script sets.
DEFAULT_TAGS = (
    "proto,subproto,status,method,url,name,group,check,error,error_code,tls_version,scenario,service,expected_response"
)


@dataclass(frozen=True, slots=True)
class _Load:
    calls: int  # in the same time for all kinds
    cpu_us: float  # of k6, a call


def run(rounds: int) -> list[dict[str, Any]]:
    """Measures in `rounds` paired rounds, about three and a half minutes in all."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("needs two cores: one for k6, one for what it calls")
    # All that is started from here inherits it; k6 alone moves to the other one.
    os.sched_setaffinity(0, {cores[1]})
    try:
        with tempfile.TemporaryDirectory(prefix="opsplane-bench-") as name:
            return asyncio.run(_measure(rounds, Path(name), cores[0]))
    finally:
        os.sched_setaffinity(0, cores)


async def _measure(rounds: int, folder: Path, core: int) -> list[dict[str, Any]]:
    k6 = await pinned_k6(folder, core)
    settings = {"OPSPLANE_LOADTESTING__K6_PATH": str(k6)}
    with running_target(folder) as target, running_server(environment=settings) as server:
        async with connect(server.address) as client:
            bench = await _Bench.prepared(client, server, target, folder, k6, max(2, round(LOAD_SECONDS / rounds)))
            kinds = {kind: list[_Load]() for kind in KINDS}
            for number in range(rounds):
                for step in range(len(KINDS)):
                    kind = KINDS[(number + step) % len(KINDS)]
                    kinds[kind].append(await bench.load(kind))
                print(f"round {number + 1}:", ", ".join(f"{kind} {_words(kinds[kind][-1])}" for kind in KINDS))
    rate = statistics.median(load.calls for load in kinds["plain"]) / bench.seconds
    plain = f"plain k6 run, {rate:.0f} requests/s of {target.kind}"
    silent = "our settings without the output"
    delay = loadtest_runs.percentile(bench.delays, 0.99)
    return [
        _entry("k6_rate_lost_pct", _lost(kinds["plain"], kinds["ours"]), plain, LOST_GOAL_PCT),
        _entry("k6_rate_lost_same_tags_pct", _lost(kinds["script"], kinds["ours"]), f"{plain}, the script's tags"),
        _entry("k6_cpu_added_pct", _added(kinds["plain"], kinds["ours"]), f"{plain}, CPU of k6 a request"),
        _entry("k6_output_cost_pct", _lost(kinds["silent"], kinds["ours"]), silent, OUTPUT_GOAL_PCT),
        _entry("k6_output_cpu_pct", _added(kinds["silent"], kinds["ours"]), f"{silent}, CPU of k6 a request"),
        {
            "measure": "watch_delay_p99_s",
            "value": delay,
            "unit": "s from the oldest sample of a window to its watcher",
            "reference": f"{len(bench.delays)} windows of 1 s, median {statistics.median(bench.delays):.2f} s",
            "goal": f"<= {DELAY_GOAL_SECONDS:g}",
            "met": delay <= DELAY_GOAL_SECONDS,
        },
    ]


def _entry(measure: str, rounds: Sequence[float], reference: str, goal: float | None = None) -> dict[str, Any]:
    """The median of rounds in per cent; how far they lie apart says how much to make of it."""
    value = statistics.median(rounds)
    return {
        "measure": measure,
        "value": value,
        "unit": "%",
        "reference": f"{reference}; rounds {min(rounds):.1f} to {max(rounds):.1f}",
        "goal": None if goal is None else f"<= {goal:g}",
        "met": None if goal is None else value <= goal,
    }


def _lost(reference: Sequence[_Load], ours: Sequence[_Load]) -> list[float]:
    return [100 * (1 - b.calls / a.calls) for a, b in zip(reference, ours, strict=True)]


def _added(reference: Sequence[_Load], ours: Sequence[_Load]) -> list[float]:
    return [100 * (b.cpu_us / a.cpu_us - 1) for a, b in zip(reference, ours, strict=True)]


def _words(load: _Load) -> str:
    return f"{load.calls} ({load.cpu_us:.1f} us)"


async def pinned_k6(folder: Path, core: int) -> Path:
    """A program that is k6 on one core."""
    taskset, env = shutil.which("taskset"), shutil.which("env")
    assert taskset is not None
    assert env is not None
    command = shlex.join([taskset, "-c", str(core), env, "GOMAXPROCS=1", str((await find_k6()).path)])
    path = folder / "k6"
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


class _Bench:
    """Runs one script in each way. `delays` are those of all windows that its watcher has been sent."""

    def __init__(self, client: Client, server: ServerProcess, target: Target, endpoint: str, seconds: int) -> None:
        self._client = client
        self._workers = [psutil.Process(pid) for pid in server.workers()]
        self._target = target
        self._run = loadtest_runs.plan(endpoint, scenarios_pb2.EXECUTOR_CONSTANT_VUS, VUS, seconds)
        self._commands: dict[str, list[str]] = {}
        self._environments: dict[str, dict[str, str]] = {}
        self._folder = Path()
        self.seconds = seconds
        self.delays: list[float] = []

    @classmethod
    async def prepared(
        cls, client: Client, server: ServerProcess, target: Target, folder: Path, k6: Path, seconds: int
    ) -> _Bench:
        """With its script in `folder`; `seconds` is how long each load lasts."""
        bench = cls(client, server, target, await loadtest_runs.prepare(client, target.url), seconds)
        (folder / "script.js").write_text(await loadtest_runs.script(client, bench._run), encoding="utf-8")
        ours = (await find_k6(k6)).run_arguments("script.js", segment=None, thresholds=False)
        script = [str(k6), "run", "script.js"]
        bench._folder = folder
        bench._commands = {
            "plain": [*script, f"--system-tags={DEFAULT_TAGS}"],
            "script": script,
            "silent": [argument for argument in ours if not argument.startswith("--out")],
        }
        plain = {"HOME": str(folder), "K6_NO_USAGE_REPORT": "true"}
        exporter = Exporter(server.address, "nobody's")
        bench._environments = {
            "plain": plain,
            "script": plain,
            "silent": k6_environment(exporter, instance="0", home=str(folder), thresholds=False, script={}),
        }
        return bench

    async def load(self, kind: str) -> _Load:
        """One load. RuntimeError when it fails, or when our count is not that of the target."""
        before = self._target.calls()
        if kind == "ours":
            cpu, requests = await self._ours()
            calls = self._target.calls() - before - 1  # without the question itself
            if requests != calls:
                raise RuntimeError(f"the run counted {requests} requests, the target {calls}")
        else:
            cpu = await self._by_hand(kind)
            calls = self._target.calls() - before - 1
        return _Load(calls, cpu / calls * 1e6)

    async def _by_hand(self, kind: str) -> float:
        """k6 as a process of this one; the CPU seconds that it took."""
        process = await asyncio.create_subprocess_exec(
            *self._commands[kind],
            env=self._environments[kind],
            cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        cpu = await _cpu(psutil.Process(process.pid))
        if status := await process.wait():
            raise RuntimeError(f"k6 ended with {status}")
        return cpu

    async def _ours(self) -> tuple[float, int]:
        """A run through the server; the CPU seconds of its k6 and the requests that it counted."""
        watches: list[asyncio.Task[float]] = []

        def seen(run: runs_pb2.Run) -> None:
            if run.state == runs_pb2.RUN_STATE_RUNNING and not watches:
                watches.append(asyncio.create_task(_cpu(find_k6_process(self._workers))))

        followed = await loadtest_runs.follow(self._client, self._run, seen)
        self.delays += followed.delays
        return await watches[0], followed.run.results.total.requests


def find_k6_process(workers: Sequence[psutil.Process]) -> psutil.Process:
    """The load generator, a child of its launcher, a child of a worker."""
    found = [child for worker in workers for child in worker.children(recursive=True) if child.name() == "k6"]
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} processes of k6 where one was expected")
    return found[0]


async def _cpu(process: psutil.Process) -> float:
    """CPU seconds of a process at its end, but for its last instant: k6 sleeps in its teardown."""
    seconds = 0.0
    while True:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return seconds
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            return seconds
        seconds = times.user + times.system
        await asyncio.sleep(LOOK_SECONDS)
