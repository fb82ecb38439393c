"""What the logs benchmark prints: every combination that was measured, and the seed's own figures beside ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.logs_postgres import Connection
from tests.bench.logs_stage import Load

if TYPE_CHECKING:
    from tests.bench.logs import Cell


@dataclass(frozen=True, slots=True)
class Claim:
    """What Log Save Server says of itself for a size of batches."""

    rate: float
    p99_ms: float


SEED = {10: Claim(2500, 2), 100: Claim(12_000, 4), 1000: Claim(19_231, 5)}
SEED_MEMORY_MB = 100.0
SETTINGS = ("server_version", "fsync", "synchronous_commit", "shared_buffers", "max_wal_size", "data_checksums")


def head(admin: Connection) -> None:
    """Where and on what it runs."""
    settings = ", ".join(f"{name} {admin.run(f'SHOW {name}')[0]}" for name in SETTINGS)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; PostgreSQL: {settings}", flush=True)


def copies(loads: Mapping[tuple[int, int], Load]) -> None:
    """Raw COPY; CPU is milliseconds for 1000 records."""
    print("\nraw COPY\nconns   rows  records/s   p50 ms   p99 ms  CPU: postgres  client")
    for (connections, rows), load in loads.items():
        print(
            f"{connections:5} {rows:6} {load.rate:10,.0f} {load.latency(0.5):8.1f} {load.latency(0.99):8.1f} "
            f"{load.cpu_ms('postgres'):14.2f} {load.cpu_ms('client'):7.2f}",
            flush=True,
        )


def cells(title: str, loads: Mapping[Cell, Load]) -> None:
    """This service or the classic design; `out` are batches outstanding, CPU as above, MB those of a worker."""
    print(
        f"\n{title}\nbatch streams workers  out  records/s   p50 ms   p99 ms  "
        "CPU: worker  parent postgres client   sum     MB"
    )
    for cell, load in loads.items():
        cpu = {role: load.cpu_ms(role) for role in load.cpu}
        print(
            f"{cell.batch:5} {cell.streams:7} {cell.workers:7} {cell.outstanding:4} {load.rate:10,.0f} "
            f"{load.latency(0.5):8.1f} {load.latency(0.99):8.1f} {cpu['worker']:12.2f} {cpu.get('parent', 0.0):7.2f} "
            f"{cpu['postgres']:8.2f} {cpu['client']:6.2f} {sum(cpu.values()):5.2f} {load.memory:6.1f}",
            flush=True,
        )


def seed(loads: Mapping[Cell, Load], paced: Mapping[int, Load], memory: float) -> None:
    """The seed's rows and ours: our highest rate, and acks of ours at the seed's rate."""
    print(
        "\nLog Save Server's own figures, and ours\nbatch  its rate    ours   its p99  ours at its rate: p50   p99 ms"
    )
    for batch, claim in SEED.items():
        rate = max(load.rate for cell, load in loads.items() if cell.batch == batch)
        load = paced[batch]
        print(
            f"{batch:5} {claim.rate:9,.0f} {rate:9,.0f} {claim.p99_ms:7.0f} {load.latency(0.5):21.1f} "
            f"{load.latency(0.99):8.1f}"
        )
    print(f"memory: its {SEED_MEMORY_MB:.0f} MB, ours {memory:.0f} MB a worker", flush=True)
