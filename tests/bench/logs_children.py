"""Processes that load something: the parent's side and their own.

A child prepares its data, then serves loads: a line of JSON in, a line of JSON out. All that belong to a load begin at
once and go on until its end; only what is acknowledged between `begin` and `end` counts, so that neither starting nor
draining is measured. Times are those of time.perf_counter, which all processes of a machine share.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

PROGRESS_RECORDS = 100_000


@dataclass(slots=True)
class Counted:
    """What was acknowledged within the time that counts.

    latencies: how many batches took so many milliseconds, to three digits. `total` also has what was acknowledged
    before and after; `progress` is when it passed PROGRESS_RECORDS and so on.
    """

    begin: float
    end: float
    records: int = 0
    total: int = 0
    latencies: Counter[str] = field(default_factory=Counter)
    progress: list[tuple[float, int]] = field(default_factory=list)

    def add(self, records: int, since: float, at: float) -> None:
        """A batch that was sent, or due, at `since` and was acknowledged at `at`."""
        self.total += records
        if self.total % PROGRESS_RECORDS < records:
            self.progress.append((at, self.total))
        if self.begin <= at < self.end:
            self.records += records
            self.latencies[f"{(at - since) * 1000:.3g}"] += 1

    def answer(self) -> dict[str, Any]:
        """For the parent."""
        return {name: getattr(self, name) for name in ("records", "total", "latencies", "progress")}


class Child:
    """A process that serves loads, as its parent sees it."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._process = process
        self.pid = process.pid

    def start(self, load: dict[str, Any]) -> None:
        """Gives it a load."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(load) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What it said to the last load; RuntimeError if it failed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self._name}: {answer['error']}")
        return answer


@contextmanager
def children(module: str, count: int, *arguments: str) -> Iterator[list[Child]]:
    """Processes of a module of tests.bench, ready; they end with the block."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *arguments]
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(_end, process)
            started.append(Child(module, process))
        for child in started:
            child.answer()
        yield started


def serve(load: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The child's side: answers loads until its input ends."""
    print("{}", flush=True)
    for line in sys.stdin:
        try:
            answer = load(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time of processes so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(time.user + time.system for time in times)


def cpu_seconds_of_tree(main: psutil.Process) -> float:
    """CPU time of a process and of those that it has started, also of those that have ended."""
    total = 0.0
    for child in main.children(recursive=True):
        # One that ends now is in the figures of the main process, which is asked last.
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    times = main.cpu_times()
    return total + times.user + times.system + times.children_user + times.children_system


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()
