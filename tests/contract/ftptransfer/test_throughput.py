"""What the queue costs: all that is not FTP has about 100 us of CPU a transfer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import cast

import psutil
import pytest
from opsplane.ftptransfer.v1.ftptransfer_pb2 import SubmitTransfersRequest, SubmitTransfersResponse
from opsplane.ftptransfer.v1.transfers_pb2 import Location, Transfer
from opsplane_server.ftptransfer.model import Succeeded, Task

from tests.ftptransfer_harness import FtpTransfer

_TRANSFERS = 5_000
_BATCH = 100


class _Meter:
    """Prints what was spent since the call before, a transfer; of PostgreSQL by the processes that stay."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._before = self._spent()

    def told(self, what: str) -> None:
        own, postgres = (
            (after - before) / _TRANSFERS * 1e6 for before, after in zip(self._before, self._spent(), strict=True)
        )
        print(f"{what:>16}: python {own:6.1f} us, postgres {postgres:6.1f} us a transfer")  # noqa: T201
        self._before = self._spent()

    def _spent(self) -> tuple[float, float]:
        total = 0.0
        for process in self._processes:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return time.process_time(), total


@pytest.mark.slow
async def test_thousands_of_transfers_in_batches(ftp: FtpTransfer) -> None:
    pids = await ftp.value(
        "SELECT array_agg(pid) FROM pg_stat_activity WHERE datname IS NULL OR datname = current_database()"
    )
    meter = _Meter(cast(list[int], pids))
    answer: SubmitTransfersResponse = await ftp.stub.SubmitTransfers(
        iter(
            SubmitTransfersRequest(
                transfers=[
                    Transfer(
                        task_id=f"t-{number}",
                        group="many",
                        source=Location(connection="connections/remote-server-a", path=f"/out/file-{number}.csv"),
                        destination=Location(connection="connections/local", path=f"/in/file-{number}.csv"),
                    )
                    for number in range(start, start + 1000)
                ]
            )
            for start in range(0, _TRANSFERS, 1000)
        )
    )
    assert answer.submitted_count == _TRANSFERS
    meter.told("submit")
    settled: list[Task] = []
    while tasks := await ftp.take(_BATCH):
        settled += tasks
        await ftp.settle(*((task, Succeeded(100_000, sent=100_000, duration=0.01)) for task in tasks))
    meter.told("take and settle")
    assert len({task.id for task in settled}) == _TRANSFERS
    figures = await ftp.figure_store.read()
    assert (figures.succeeded, figures.active) == (_TRANSFERS, 0)
