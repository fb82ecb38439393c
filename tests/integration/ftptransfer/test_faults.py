"""Whatever breaks, each file is there whole in the end or reported failed, once.

`python -m scripts.soak_transfers` is the long form of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from tests.ftp_servers.fixtures import StartServer, start_ftp
from tests.kafka_broker import running_broker
from tests.transfer_faults import FaultySite, faulty_site
from tests.waiting import until

__all__ = ["start_ftp"]

# A transfer that meets several faults waits up to four minutes for its fourth attempt. Mostly none does.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ENDED_SECONDS = 480

LARGEST = 400_000


async def break_all(site: FaultySite, victims: Sequence[str], *, chance: random.Random, timeout: float) -> None:
    """Hands all tasks in, kills the victims in turn at random moments of it, and returns when all have ended."""
    async with asyncio.TaskGroup() as group:
        group.create_task(site.submit())
        share = 1 / (len(victims) + 1)
        for number, victim in enumerate(victims):
            await site.open(share * (number + 1))
            # Some of the tasks have no file, and some wait for another attempt.
            moment = len(site.tasks) * share * (number + chance.uniform(0.05, 0.6)) * 0.8
            await until(lambda moment=moment: site.progress() >= moment)  # type: ignore[misc]
            await site.kill(victim)
        await site.open(1)
    await site.ended(timeout)


async def test_each_file_is_whole_or_failed_though_connections_break_and_processes_die(
    start_ftp: StartServer,
) -> None:
    victims = ("worker", "ftp", "server", "worker", "ftp")
    async with faulty_site(start_ftp("vsftpd"), seed=11, largest=LARGEST) as site:
        site.make(300, LARGEST)
        await break_all(site, victims, chance=random.Random(12), timeout=ENDED_SECONDS)  # noqa: S311
        outcomes = await site.check()
    assert outcomes["SUCCEEDED"] > 200
    assert outcomes["FILE_NOT_FOUND"] > 0


async def test_each_message_has_one_result_though_the_broker_dies_as_well(start_ftp: StartServer) -> None:
    victims = ("kafka", "worker", "ftp", "server")
    with running_broker() as broker:
        async with faulty_site(start_ftp("vsftpd"), seed=21, largest=LARGEST, broker=broker) as site:
            site.make(150, LARGEST)
            await break_all(site, victims, chance=random.Random(22), timeout=ENDED_SECONDS)  # noqa: S311
            outcomes = await site.check()
    assert outcomes["SUCCEEDED"] > 100
