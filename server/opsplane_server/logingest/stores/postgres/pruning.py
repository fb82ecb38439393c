"""Forgetting groups that nobody may follow any more, and answers to batches that nobody sends again."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from opsplane_server.storage.database import Database

# From the oldest on without a gap, so that one place tells what is no longer there.
_PRUNE_GROUPS: Final = """
    WITH first AS (
        SELECT g.xid, g.id, g.record_count, g.received_at < now() - $1::interval AS old
        FROM logingest.positions AS p JOIN logingest.groups AS g ON (g.xid, g.id) <= (p.xid, p.id)
        WHERE p.name = 'folded' ORDER BY g.xid, g.id LIMIT $2
    ), gone AS (
        SELECT * FROM (SELECT *, bool_and(old) OVER (ORDER BY xid, id) AS prefix FROM first) AS marked WHERE prefix
    ), deleted AS (
        DELETE FROM logingest.groups WHERE id = ANY (ARRAY(SELECT id FROM gone))
    ), last AS (
        SELECT xid, id + record_count - 1 AS id, count(*) OVER () AS pruned FROM gone ORDER BY xid DESC, id DESC LIMIT 1
    )
    UPDATE logingest.positions AS p SET xid = last.xid, id = last.id FROM last WHERE p.name = 'pruned' RETURNING pruned
"""
_PRUNE_BATCHES: Final = """
    DELETE FROM logingest.batches WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM logingest.batches WHERE received_at < now() - $1::interval LIMIT $2))
"""


class PostgresPruning:
    """`ports.Pruning` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def prune_groups(self, age: timedelta, limit: int) -> int:
        """See the port."""
        async with self._database.transaction() as connection:
            await connection.execute("SELECT FROM logingest.positions WHERE name = 'pruned' FOR UPDATE")
            return await connection.fetchval(_PRUNE_GROUPS, age, limit) or 0

    async def prune_batches(self, age: timedelta, limit: int) -> int:
        """See the port."""
        async with self._database.transaction() as connection:
            # Old ones lie together; their summaries (BRIN) are smaller than the planner thinks.
            await connection.execute("SET LOCAL enable_seqscan = off")
            status = await connection.execute(_PRUNE_BATCHES, age, limit)
        return int(status.split()[-1])
