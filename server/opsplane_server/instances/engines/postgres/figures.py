"""What a server counts, and its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from opsplane_server.instances.engines.postgres.connecting import Connection
from opsplane_server.instances.engines.postgres.slow_queries import statistics_schema
from opsplane_server.instances.model import ADMIN_USER, REPLICATION_USER
from opsplane_server.instances.monitoring import ServerSample
from opsplane_server.instances.sql import ParameterInfo

_SAMPLE = """
SELECT
    (SELECT count(*) FROM pg_stat_activity a WHERE a.backend_type = 'client backend'
        AND a.usename <> ALL($1::name[])) AS connections,
    (SELECT count(*) FROM pg_stat_activity a WHERE a.backend_type = 'client backend'
        AND a.usename <> ALL($1::name[]) AND a.state IN ('active', 'fastpath function call')) AS active_connections,
    current_setting('max_connections')::int AS max_connections,
    coalesce(sum(d.xact_commit + d.xact_rollback), 0)::bigint AS transactions,
    coalesce(sum(d.blks_hit), 0)::bigint AS buffer_hits,
    coalesce(sum(d.blks_read), 0)::bigint AS buffer_reads,
    coalesce(sum(d.deadlocks), 0)::bigint AS deadlocks,
    coalesce(sum(pg_database_size(d.datid)), 0)::bigint AS database_size_bytes
FROM pg_stat_database d JOIN pg_database b ON b.oid = d.datid
WHERE NOT b.datistemplate AND b.datname <> 'postgres'
"""
_PARAMETERS = """
SELECT s.name, coalesce(s.setting, '') AS value, coalesce(s.unit, '') AS unit,
    s.source IN ('default', 'override', 'client', 'session') AS default,
    s.context = 'postmaster' AS requires_restart, s.short_desc AS description,
    CASE WHEN s.pending_restart THEN coalesce(
        (SELECT f.setting FROM pg_file_settings f WHERE f.name = s.name ORDER BY f.seqno DESC LIMIT 1),
        s.boot_val, '') ELSE '' END AS pending_value
FROM pg_settings s ORDER BY s.name COLLATE "C"
"""
_OWN: Final = (ADMIN_USER, REPLICATION_USER)


async def sample(connection: Connection) -> ServerSample:
    """See the port. Connections and counters are those of users, not Opsplane's own."""
    row = await connection.fetchrow(_SAMPLE, _OWN)
    assert row is not None
    schema = await statistics_schema(connection)
    queries = None
    if schema is not None:  # without the texts, which are in a file
        queries = await connection.fetchval(
            f"SELECT coalesce(sum(calls), 0)::bigint FROM {schema}.pg_stat_statements(false) WHERE toplevel"  # noqa: S608
        )
    return ServerSample(time=datetime.now(UTC), queries=queries, **row)


async def list_parameters(connection: Connection) -> Sequence[ParameterInfo]:
    """See the port."""
    return [ParameterInfo(**row) for row in await connection.fetch(_PARAMETERS)]
