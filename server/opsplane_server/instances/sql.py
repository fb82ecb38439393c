"""What an engine is asked and told in its own terms: databases, users, parameters, slow statements."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


class Privilege(StrEnum):
    """What a user may do in its databases."""

    READ_ONLY = "READ_ONLY"
    READ_WRITE = "READ_WRITE"
    OWNER = "OWNER"


class ParameterSource(StrEnum):
    """Where the value of a parameter comes from."""

    ENGINE_DEFAULT = "ENGINE_DEFAULT"
    DERIVED = "DERIVED"
    SET = "SET"


class SlowQueryOrder(StrEnum):
    """What slow queries are sorted by, the largest first."""

    TOTAL_TIME = "TOTAL_TIME"
    MEAN_TIME = "MEAN_TIME"
    MAX_TIME = "MAX_TIME"
    CALLS = "CALLS"


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """A database as it is."""

    name: str
    owner: str
    charset: str
    collation: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NewDatabase:
    """A database to make; empty means the engine's default."""

    name: str
    owner: str
    charset: str = ""
    collation: str = ""


@dataclass(frozen=True, slots=True)
class UserInfo:
    """A user as it is. databases: empty for all, later ones too. max_connections: 0 for no limit of its own."""

    name: str
    privilege: Privilege
    databases: tuple[str, ...] = ()
    max_connections: int = 0


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user to make or change; see UserInfo."""

    name: str
    password: str = field(repr=False)
    privilege: Privilege = Privilege.READ_WRITE
    databases: tuple[str, ...] = ()
    max_connections: int = 0


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """A parameter of the engine, in its notation."""

    name: str
    value: str
    unit: str
    default: bool
    requires_restart: bool
    pending_value: str
    description: str


@dataclass(frozen=True, slots=True)
class SlowQuery:
    """Statements that differ in their constants only, taken together."""

    query: str
    query_id: str
    database: str
    user: str
    calls: int
    total_time: timedelta
    mean_time: timedelta
    max_time: timedelta
    rows: int
    last_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class SlowQueries:
    """What was found. statistics: from counters of all statements, not from the log. threshold: fastest recorded."""

    queries: tuple[SlowQuery, ...]
    statistics: bool
    since_time: datetime | None = None
    threshold: timedelta = timedelta()
