import asyncio
from datetime import timedelta

from opsplane_server.errors import Unavailable
from opsplane_server.platform.retention import Retention


class Rows:
    """A store with `count` old rows, that is away for its first `away` calls."""

    def __init__(self, count: int, away: int = 0) -> None:
        self.count = count
        self.away = away
        self.ages: set[timedelta] = set()
        self.empty = asyncio.Event()

    async def purge(self, older_than: timedelta, limit: int) -> int:
        if self.away:
            self.away -= 1
            raise Unavailable("not now")
        self.ages.add(older_than)
        removed = min(limit, self.count)
        self.count -= removed
        if not self.count:
            self.empty.set()
        return removed


async def test_all_old_rows_are_removed_each_by_its_age() -> None:
    operations, requests = Rows(2500), Rows(3)
    assert await Retention(operations, requests).purge() == {"operations": 2500, "requests": 3}
    assert (operations.count, requests.count) == (0, 0)
    assert (operations.ages, requests.ages) == ({timedelta(days=30)}, {timedelta(days=7)})


async def test_it_goes_on_after_the_database_was_away() -> None:
    requests = Rows(3, away=2)
    async with Retention(Rows(1), requests, interval=timedelta(0)):
        await requests.empty.wait()
