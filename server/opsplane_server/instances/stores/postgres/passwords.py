"""Passwords in PostgreSQL, each encrypted with the name of what it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from opsplane_server.instances import names
from opsplane_server.instances.model import ADMIN_USER, REPLICATION_USER, Secrets
from opsplane_server.storage.database import Connection, Database
from opsplane_server.storage.secrets import SecretBox

_OWN: Final = [ADMIN_USER, REPLICATION_USER]


async def read(connection: Connection, box: SecretBox, instance: str) -> Secrets | None:
    """All passwords of an instance; None without a record."""
    rows = await connection.fetch(
        "SELECT username, password FROM instances.passwords WHERE instance = $1 ORDER BY username", instance
    )
    found = {row["username"]: box.decrypt(row["password"], names.user(instance, row["username"])) for row in rows}
    if not found:
        return None
    return Secrets(found.pop(ADMIN_USER), found.pop(REPLICATION_USER), found)


async def replace(connection: Connection, box: SecretBox, instance: str, secrets: Secrets) -> None:
    """Keeps these passwords and no others."""
    everyone = {**secrets.users, ADMIN_USER: secrets.admin, REPLICATION_USER: secrets.replication}
    await connection.execute("DELETE FROM instances.passwords WHERE instance = $1", instance)
    await connection.executemany(
        "INSERT INTO instances.passwords (instance, username, password) VALUES ($1, $2, $3)",
        [(instance, user, box.encrypt(password, names.user(instance, user))) for user, password in everyone.items()],
    )


async def set_one(connection: Connection, box: SecretBox, instance: str, user: str, password: str) -> None:
    """Keeps a user's password; an empty one forgets the user."""
    if not password:
        await connection.execute(
            "DELETE FROM instances.passwords WHERE instance = $1 AND username = $2", instance, user
        )
        return
    await connection.execute(
        """INSERT INTO instances.passwords (instance, username, password) VALUES ($1, $2, $3)
           ON CONFLICT (instance, username) DO UPDATE SET password = EXCLUDED.password, set_time = now()""",
        instance,
        user,
        box.encrypt(password, names.user(instance, user)),
    )


async def times(connection: Connection, instance: str) -> Mapping[str, datetime]:
    """When the password of each user was set last."""
    rows = await connection.fetch(
        "SELECT username, set_time FROM instances.passwords WHERE instance = $1 AND username <> ALL ($2::text[])",
        instance,
        _OWN,
    )
    return {row["username"]: row["set_time"] for row in rows}


class PostgresPendingPasswords:
    """`ports.PendingPasswords` on PostgreSQL."""

    def __init__(self, database: Database, secrets: SecretBox) -> None:
        self._database = database
        self._secrets = secrets

    async def keep(self, operation: str, password: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                "INSERT INTO instances.pending_passwords (operation, password) VALUES ($1, $2)",
                operation,
                self._secrets.encrypt(password, operation),
            )

    async def get(self, operation: str) -> str:
        """See the port."""
        async with self._database.connection() as connection:
            token = await connection.fetchval(
                "SELECT password FROM instances.pending_passwords WHERE operation = $1", operation
            )
        return "" if token is None else self._secrets.decrypt(token, operation)

    async def forget(self, operation: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM instances.pending_passwords WHERE operation = $1", operation)
