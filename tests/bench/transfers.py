"""How fast files go, against lftp, rclone and curl with ten connections each, on loopback against vsftpd.

2,000 files of 100 KB and 200 of 5 MB, down and up; both sides are in memory. Ours is a running server of two workers
with ten sessions, which keeps each file as a transfer of its own in its database on the disk: one transfer of a tree is
submitted by RPC. The others are timed from their start to their end. Each round has every load brought by all, one
after the other, their order moved on each time; a result is the median of the rounds' ratios to the quickest other.

Then 100 sessions of one worker bring the same loads, and its event loop is watched. BENCH_QUICK=1 is for trying it out:
a tenth of the files, one round.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tests.bench import transfers_tools as tools
from tests.bench.transfers_ours import Ours, running_ours
from tests.bench.transfers_stage import Files, SessionCpu, Stage, running_stage
from tests.bench.transfers_tools import CONNECTIONS, Run
from tests.ftp_servers.base import Unavailable

SMALL = Files("small", 2000, 100_000)
LARGE = Files("large", 200, 5_000_000)
GOALS: Final[Mapping[str, float]] = {
    "files_100k_down_vs_best": 1.2,
    "files_100k_up_vs_best": 1.0,
    "mb_5m_down_vs_best": 1.2,
    "mb_5m_up_vs_best": 1.0,
}
BLOCK_GOAL_MS = 50.0
MANY_SESSIONS = 100
WORKERS = 2
OURS: Final = "ours"
PACKAGES: Final = ("vsftpd", "lftp", "rclone", "curl")


@dataclass(frozen=True, slots=True)
class _Kind:
    files: Files
    up: bool

    @property
    def measure(self) -> str:
        what = "files_100k" if self.files.name == SMALL.name else "mb_5m"
        return f"{what}_{'up' if self.up else 'down'}_vs_best"

    def rate(self, run: Run) -> str:
        rate = self.files.count / run.seconds
        return f"{rate:.0f} files/s, {rate * self.files.size / 1e6:.0f} MB/s"


def run(rounds: int) -> list[dict[str, Any]]:
    """Measures in `rounds` paired rounds, some five minutes in all."""
    _require()
    quick = bool(os.environ.get("BENCH_QUICK"))
    sizes = [replace(files, count=files.count // 10) if quick else files for files in (SMALL, LARGE)]
    try:
        with running_stage() as stage:
            for files in sizes:
                stage.make(files)
            kinds = [_Kind(files, up) for files in sizes for up in (False, True)]
            return asyncio.run(_measure(stage, kinds, 1 if quick else rounds))
    except Unavailable as missing:
        raise RuntimeError(str(missing)) from missing


def _require() -> None:
    """Installs what is missing, where that goes."""
    installer = shutil.which("apt-get")
    if tools.missing() and os.geteuid() == 0 and installer is not None:
        subprocess.run(
            [installer, "install", "-y", "--no-install-recommends", *PACKAGES],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdout=subprocess.DEVNULL,
            check=False,
        )
    if missing := tools.missing():
        raise RuntimeError(f"not installed: {', '.join(missing)} (apt-get install {' '.join(PACKAGES)})")


async def _measure(stage: Stage, kinds: Sequence[_Kind], rounds: int) -> list[dict[str, Any]]:
    runs: dict[_Kind, list[dict[str, Run]]] = {kind: [] for kind in kinds}
    async with running_ours(stage, workers=WORKERS, sessions=CONNECTIONS) as ours:
        names = [OURS, *tools.TOOLS]
        for number in range(rounds):
            for kind in kinds:
                order = [*names[number % len(names) :], *names[: number % len(names)]]
                runs[kind].append({name: await _run(stage, ours, kind, name) for name in order})
                _tell(number + 1, kind, runs[kind][-1])
    return [*(_entry(kind, runs[kind]) for kind in kinds), await _blocking(stage, kinds)]


async def _run(stage: Stage, ours: Ours, kind: _Kind, name: str) -> Run:
    load = stage.load(kind.files, up=kind.up)
    with SessionCpu(stage.server) as vsftpd:
        if name == OURS:
            found = await ours.run(load)
        else:
            found = await asyncio.to_thread(tools.run, name, stage.server, load, stage.scratch)
    stage.check(kind.files, up=kind.up)
    return Run(found.seconds, {**found.cpu, "vsftpd": vsftpd.seconds})


def _tell(number: int, kind: _Kind, runs: Mapping[str, Run]) -> None:
    print(f"round {number}, {kind.files.count} files of {kind.files.size / 1e6:g} MB {'up' if kind.up else 'down'}:")
    for name in sorted(runs, key=lambda name: runs[name].seconds):
        cpu = ", ".join(f"{part} {seconds:.2f}" for part, seconds in runs[name].cpu.items())
        print(f"  {name:7} {runs[name].seconds:6.2f} s, {kind.rate(runs[name]):24} CPU s: {cpu}", flush=True)


def _entry(kind: _Kind, rounds: Sequence[Mapping[str, Run]]) -> dict[str, Any]:
    ratios = [min(found[name].seconds for name in tools.TOOLS) / found[OURS].seconds for found in rounds]
    value, goal = statistics.median(ratios), GOALS[kind.measure]
    medians = {
        name: Run(statistics.median(found[name].seconds for found in rounds), {}) for name in (OURS, *tools.TOOLS)
    }
    words = ", ".join(f"{name} {kind.rate(median)}" for name, median in medians.items())
    return {
        "measure": kind.measure,
        "value": value,
        "unit": "times",
        "reference": f"{words} (medians); rounds {min(ratios):.2f} to {max(ratios):.2f}",
        "goal": f">= {goal:g}",
        "met": value >= goal,
    }


async def _blocking(stage: Stage, kinds: Sequence[_Kind]) -> dict[str, Any]:
    """How long the event loop of one worker stands still while it has 100 sessions."""
    most = 0.0
    async with running_ours(stage, workers=1, sessions=MANY_SESSIONS) as ours:
        before = await asyncio.to_thread(ours.metrics)
        for kind in kinds:
            load = stage.load(kind.files, up=kind.up)
            await ours.run(load)
            stage.check(kind.files, up=kind.up)
            after = await asyncio.to_thread(ours.metrics)
            most = max(most, after["ftp_pooler_active_sessions", ""])
    blocked = 1000 * _longest(before, after, "opsplane_event_loop_blocked_seconds")
    turn = 1000 * _longest(before, after, "opsplane_event_loop_turn_seconds")
    return {
        "measure": "loop_block_ms",
        "value": blocked,
        "unit": "ms",
        "reference": f"at most; {turn:g} ms with waiting for a core; {most:.0f} sessions of one worker",
        "goal": f"<= {BLOCK_GOAL_MS:g}",
        "met": blocked <= BLOCK_GOAL_MS and most == min(MANY_SESSIONS, *(kind.files.count for kind in kinds)),
    }


def _longest(before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float], name: str) -> float:
    """The bound of a histogram below which everything is that was counted between."""
    bounds = {bound: value - before[key, bound] for (key, bound), value in after.items() if key == f"{name}_bucket"}
    return min(float(bound) for bound, count in bounds.items() if count == bounds["+Inf"])
