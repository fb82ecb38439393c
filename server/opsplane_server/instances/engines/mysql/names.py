"""Names in SQL, and those that belong to the engines."""

from __future__ import annotations

from typing import Final

from opsplane_server.instances.model import ADMIN_USER, REPLICATION_USER

SYSTEM_DATABASES: Final = ("information_schema", "mysql", "performance_schema", "sys")
SYSTEM_DATABASE_LIST: Final = ",".join(SYSTEM_DATABASES)
"""For FIND_IN_SET."""

SYSTEM_USERS: Final = (
    ADMIN_USER,
    REPLICATION_USER,
    "mariadb.sys",
    "mysql",
    "mysql.infoschema",
    "mysql.session",
    "mysql.sys",
    "root",
)


def quote_identifier(name: str) -> str:
    """A name as SQL takes it, whatever it holds. ValueError for NUL, which no name can hold."""
    if not name or "\0" in name:
        raise ValueError(f"not a name: {name!r}")
    return "`" + name.replace("`", "``") + "`"


def quote_account(user: str, host: str = "%") -> str:
    """An account. Those that are made here may come from any host: the server's address decides who reaches it."""
    return f"{quote_identifier(user)}@{quote_identifier(host)}"


def quote_database_pattern(name: str) -> str:
    """A database in GRANT and REVOKE, where `_` and `%` stand for any characters."""
    return quote_identifier(name.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%"))


def database_of_pattern(pattern: str) -> str | None:
    """The database that a pattern of `mysql.db` stands for; None if there may be several."""
    name, escaped = "", False
    for character in pattern:
        if not escaped and character == "\\":
            escaped = True
            continue
        if not escaped and character == "%":
            return None
        # A bare `_` matches more, but whoever writes GRANT ... ON my_app.* means one database.
        name += character
        escaped = False
    return name
