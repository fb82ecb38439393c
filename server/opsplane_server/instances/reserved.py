"""Names of users and databases that engines, or this server, keep for themselves."""

from __future__ import annotations

from typing import Final

from opsplane_server.errors import InvalidArgument
from opsplane_server.instances.model import Engine

_OWN_PREFIX: Final = "opsplane_"

_MYSQL_USERS: Final = frozenset({"root", "mysql", "mariadb", "public", "none"})
_MYSQL_DATABASES: Final = frozenset({"mysql", "information_schema", "performance_schema", "sys"})
_POSTGRESQL_USERS: Final = frozenset({"postgres", "public", "none"})
_POSTGRESQL_DATABASES: Final = frozenset({"postgres", "template0", "template1"})
_MOST_OF_MYSQL_USER: Final = 32


def check_user(engine: Engine, user: str, field: str) -> None:
    """Raises InvalidArgument on `field` (RESERVED_NAME, or too long for the engine)."""
    if engine is Engine.POSTGRESQL:
        taken = user in _POSTGRESQL_USERS or user.startswith("pg_")
    else:
        taken = user.lower() in _MYSQL_USERS
        if engine is Engine.MYSQL and len(user) > _MOST_OF_MYSQL_USER:
            raise InvalidArgument.of(field, f"is longer than {_MOST_OF_MYSQL_USER} characters")
    if taken or user.lower().startswith(_OWN_PREFIX):
        raise InvalidArgument.of(field, f"{user} is reserved", reason="RESERVED_NAME")


def check_database(engine: Engine, database: str, field: str) -> None:
    """Raises InvalidArgument on `field` (RESERVED_NAME)."""
    taken = database in _POSTGRESQL_DATABASES if engine is Engine.POSTGRESQL else database.lower() in _MYSQL_DATABASES
    if taken:
        raise InvalidArgument.of(field, f"{database} is reserved", reason="RESERVED_NAME")
