"""How fast records are ingested: raw COPY, this service and the classic design, in turn, into the same table.

    copy      a raw-socket client that sends ready-made binary COPYs: what PostgreSQL can take at most
    ours      `opsplane serve`, StreamLogs, DURABLE, with ready-made batches
    classic   FastAPI, Pydantic, gzip JSON and asyncpg's copy_records_to_table, with ready-made bodies

First every combination of batch, streams and workers once, for the table. Then the best of ours at batch 1000 against
the others, one right after the other and in changing order; a result is the median of the rounds' ratios. Then acks at
half of that load, against COPYs of 1000 rows paced alike; then ten million records for the memory of a worker. After
each load the number of records that are stored must be that of those acknowledged.

BENCH_QUICK=1 makes all of it short: to see that it works, not for figures.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench import logs_report
from tests.bench.logs_stage import WORKERS, Load, Stage, stage

QUICK = os.environ.get("BENCH_QUICK") == "1"
LOOK_SECONDS = 1.0 if QUICK else 2.0  # of each load for the table
RATIO_SECONDS = 2.0 if QUICK else 3.0
PACED_SECONDS = 1.5 if QUICK else 6.0
SEED_SECONDS = 1.0 if QUICK else 8.0
MEMORY_RECORDS = 1_000_000 if QUICK else 10_000_000

COPIES = [(connections, rows) for rows in (1000, 10_000) for connections in (1, 2, 4)]
BEST_COPY = (2, 10_000)
BATCHES = (10, 100, 1000)
STREAMS = (1, 8, 64)
OUTSTANDING = {10: 128, 100: 64, 1000: 32}  # batches without an answer in all, at least one a stream
MANY_SECONDS = 3600.0

COPY_GOAL = 0.55
CLASSIC_GOAL = 3.5
LATENCY_GOAL = 2.0
MEMORY_GOAL_MB = 200.0


@dataclass(frozen=True, slots=True)
class Cell:
    """A way to load this service, or the classic design: then a stream is a connection with one batch."""

    batch: int
    streams: int
    workers: int
    window: int

    @property
    def outstanding(self) -> int:
        """Batches without an answer, in all streams."""
        return self.streams * self.window

    def words(self) -> str:
        """For people."""
        return f"{self.workers} workers, {self.streams} streams x {self.window} batches of {self.batch}"


def run(rounds: int) -> list[dict[str, Any]]:
    """Measures in `rounds` rounds, about six minutes in all with five."""
    with stage() as at:
        logs_report.head(at.admin)
        _warm(at)
        copies = {key: at.copy(*key, LOOK_SECONDS) for key in COPIES}
        logs_report.copies(copies)
        ours = {cell: at.stream(cell.workers, cell.batch, cell.streams, cell.window, LOOK_SECONDS) for cell in _cells()}
        logs_report.cells("this service", ours)
        classic = {cell: at.post(cell.workers, cell.batch, cell.streams, LOOK_SECONDS) for cell in _classic_cells()}
        logs_report.cells("classic design", classic)
        best = _best(ours)
        rival = _rival(classic, best)
        entries, rate = _ratios(at, best, rival, rounds)
        entries.append(_latency(at, best, rate / 2, rounds))
        paced = {batch: _at_seed_rate(at, best, batch) for batch in BATCHES}
        memory, entry = _memory(at, best)
        logs_report.seed(ours, paced, memory)
        return [*entries, entry]


def _cells() -> list[Cell]:
    return [
        Cell(batch, streams, workers, max(1, OUTSTANDING[batch] // streams))
        for batch in BATCHES
        for streams in STREAMS
        for workers in WORKERS
    ]


def _classic_cells() -> list[Cell]:
    return [Cell(batch, OUTSTANDING[batch], workers, 1) for batch in BATCHES for workers in WORKERS]


def _best(loads: dict[Cell, Load]) -> Cell:
    """The fastest at batch 1000."""
    return max((cell for cell in loads if cell.batch == 1000), key=lambda cell: loads[cell].rate)


def _rival(loads: dict[Cell, Load], best: Cell) -> Cell:
    """The classic design with the number of workers that suits it, and as many batches outstanding."""
    workers = _best(loads).workers
    return Cell(best.batch, best.outstanding, workers, 1)


def _warm(at: Stage) -> None:
    """Files of the WAL, pools, imports: the first load of each kind pays for them."""
    at.copy(*BEST_COPY, RATIO_SECONDS)
    for workers in WORKERS:
        at.stream(workers, 1000, 8, 4, LOOK_SECONDS)
        at.post(workers, 1000, 8, LOOK_SECONDS)


def _in_turn(ways: Sequence[Callable[[], Load]], number: int) -> list[Load]:
    """Each way once, beginning with another one each round; in the order of `ways`."""
    order = [(number + step) % len(ways) for step in range(len(ways))]
    done = {index: ways[index]() for index in order}
    return [done[index] for index in range(len(ways))]


def _ratios(at: Stage, best: Cell, rival: Cell, rounds: int) -> tuple[list[dict[str, Any]], float]:
    """The two entries about speed, and our rate."""
    ways = (
        lambda: at.copy(*BEST_COPY, RATIO_SECONDS),
        lambda: at.stream(best.workers, best.batch, best.streams, best.window, RATIO_SECONDS),
        lambda: at.post(rival.workers, rival.batch, rival.streams, RATIO_SECONDS),
    )
    print(f"\nrounds: COPY {BEST_COPY}, ours {best.words()}, classic {rival.words()}")
    copies, ours, classic = list[Load](), list[Load](), list[Load]()
    for number in range(rounds):
        for loads, load in zip((copies, ours, classic), _in_turn(ways, number), strict=True):
            loads.append(load)
        print(
            f"  {number + 1}: COPY {copies[-1].rate:9,.0f}/s, ours {ours[-1].rate:9,.0f}/s, "
            f"classic {classic[-1].rate:9,.0f}/s; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    if not all(load.records for load in (*copies, *ours, *classic)):
        raise RuntimeError("nothing was acknowledged in a round: the machine is too busy to measure anything")
    rate, copied, posted = (statistics.median(load.rate for load in loads) for loads in (ours, copies, classic))
    of_copy = [mine.rate / other.rate for mine, other in zip(ours, copies, strict=True)]
    of_classic = [mine.rate / other.rate for mine, other in zip(ours, classic, strict=True)]
    mine = f"ours {rate:,.0f}/s with {best.words()}"
    copy = f"COPY {copied:,.0f}/s, {BEST_COPY[0]} connections x {BEST_COPY[1]:,} rows"
    rest = f"classic {posted:,.0f}/s, {rival.workers} workers, {rival.streams} batches outstanding"
    entries = [
        _entry("durable_1000_vs_copy", of_copy, "x", f"{copy}; {mine}", COPY_GOAL, more=True),
        _entry("durable_1000_vs_rest", of_classic, "x", f"{rest}; {mine}", CLASSIC_GOAL, more=True),
    ]
    return entries, rate


def _latency(at: Stage, best: Cell, rate: float, rounds: int) -> dict[str, Any]:
    """Acks and COPYs of 1000 rows at the same rate; both count from when they were due."""
    ways = (
        lambda: at.copy(BEST_COPY[0], 1000, PACED_SECONDS, rate=rate),
        lambda: at.stream(best.workers, 1000, best.streams, best.window, PACED_SECONDS, rate=rate),
    )
    print(f"\npaced at {rate:,.0f}/s, ms from due to done:")
    copies, ours = list[Load](), list[Load]()
    for number in range(rounds):
        copy, mine = _in_turn(ways, number)
        copies.append(copy)
        ours.append(mine)
        print(
            f"  {number + 1}: COPY p50 {copy.latency(0.5):.1f} p99 {copy.latency(0.99):.1f}, "
            f"ours p50 {mine.latency(0.5):.1f} p99 {mine.latency(0.99):.1f}; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    ratios = [mine.latency(0.99) / copy.latency(0.99) for mine, copy in zip(ours, copies, strict=True)]
    p99 = [statistics.median(load.latency(0.99) for load in loads) for loads in (copies, ours)]
    reference = f"COPY {p99[0]:.1f} ms, ours {p99[1]:.1f} ms at {rate:,.0f}/s"
    return _entry("ack_p99_vs_copy_p99", ratios, "x", reference, LATENCY_GOAL, more=False)


def _at_seed_rate(at: Stage, best: Cell, batch: int) -> Load:
    """What an ack takes at the rate that the seed gives for this batch."""
    return at.stream(best.workers, batch, best.streams, 1, SEED_SECONDS, rate=logs_report.SEED[batch].rate)


def _memory(at: Stage, best: Cell) -> tuple[float, dict[str, Any]]:
    """The most that a worker had while many records came in, and how flat it was."""
    limit = MEMORY_RECORDS // 1000 // best.streams
    load = at.stream(best.workers, 1000, best.streams, best.window, MANY_SECONDS, limit=limit)
    early, late = (_memory_at(load, share) for share in (0.2, 0.99))
    print(
        f"\n{load.records:,} records at {load.rate:,.0f}/s: "
        f"largest worker {early:.0f} MB after a fifth, {late:.0f} MB at the end"
    )
    most = load.memory
    return most, {
        "measure": "worker_rss_mb",
        "value": most,
        "unit": "MB, the largest worker",
        "reference": f"{early:.1f} MB after a fifth of {load.records:,} records, {late:.1f} MB at the end",
        "goal": f"<= {MEMORY_GOAL_MB:g}",
        "met": most <= MEMORY_GOAL_MB,
    }


def _memory_at(load: Load, share: float) -> float:
    """The memory when about this share of the records was in."""
    steps = max(1, round(share * len(load.progress)))
    at = load.progress[steps - 1][0]
    return next((size for looked, size in load.looks if looked >= at), load.looks[-1][1])


def _entry(
    measure: str, rounds: Sequence[float], unit: str, reference: str, goal: float, *, more: bool
) -> dict[str, Any]:
    """The median of rounds; how far they lie apart says how much to make of it."""
    value = statistics.median(rounds)
    return {
        "measure": measure,
        "value": value,
        "unit": unit,
        "reference": f"{reference}; rounds {min(rounds):.2f} to {max(rounds):.2f}",
        "goal": f"{'>=' if more else '<='} {goal:g}",
        "met": value >= goal if more else value <= goal,
    }
