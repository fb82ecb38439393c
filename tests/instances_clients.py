"""Clients of the engines, as programs of an instance's owner use them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any

import asyncpg
import pymysql
from opsplane_server.instances.model import Endpoint, Engine, InstanceSpec


async def query(
    spec: InstanceSpec,
    endpoint: Endpoint,
    password: str,
    statement: str,
    *,
    user: str | None = None,
    database: str | None = None,
    ca_certificate: str = "",
) -> Sequence[Sequence[Any]]:
    """Runs a statement on a connection of its own and commits it; its rows. With a certificate over TLS alone."""
    user, database = user or spec.username, database or spec.database
    context = ssl.create_default_context(cadata=ca_certificate) if ca_certificate else None
    if spec.engine is Engine.POSTGRESQL:
        connection = await asyncpg.connect(
            host=endpoint.host,
            port=endpoint.port,
            user=user,
            password=password,
            database=database,
            ssl=context or False,
            timeout=30,
        )
        try:
            return [tuple(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    def ask() -> Sequence[Sequence[Any]]:
        with (
            pymysql.connect(
                host=endpoint.host,
                port=endpoint.port,
                user=user,
                password=password.encode(),  # a text would go over in Latin-1
                database=database,
                ssl=context,
                connect_timeout=30,
                autocommit=True,
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)
            return cursor.fetchall()

    return await asyncio.to_thread(ask)
