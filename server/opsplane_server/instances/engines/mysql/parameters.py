"""The parameters of the server, and setting them while it runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pymysql.err import MySQLError

from opsplane_server.errors import InvalidArgument
from opsplane_server.instances.engines.mysql.connecting import (
    MORE_THAN_ONE_ROW,
    NOT_GLOBAL_VARIABLE,
    READ_ONLY_VARIABLE,
    UNKNOWN_VARIABLE,
    WRONG_VALUE,
    Session,
    code_of,
)
from opsplane_server.instances.engines.mysql.names import quote_identifier
from opsplane_server.instances.sql import ParameterInfo

_SIZE: Final = re.compile(r"(\d+)([KMGTPE])", re.IGNORECASE)
_SUFFIXES: Final = "KMGTPE"
_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?")


async def list_parameters(session: Session) -> Sequence[ParameterInfo]:
    """All that have a global value, by name. What waits for a restart is in a file, which the server does not show."""
    parameters = await (_of_mariadb(session) if session.mariadb else _of_mysql(session))
    return sorted(parameters, key=lambda parameter: parameter.name)


async def apply(session: Session, name: str, value: str | None) -> bool:
    """Sets a parameter of the running server, None to the engine's default; False if that takes a restart.

    InvalidArgument for a value that can not be.
    """
    literals: list[object] = ["DEFAULT"] if value is None else _literals(value)
    for literal in literals:
        try:
            if literal == "DEFAULT" and value is None:
                await session.execute(f"SET GLOBAL {quote_identifier(name)} = DEFAULT")
            else:
                await session.execute(f"SET GLOBAL {quote_identifier(name)} = %s", (literal,))
        except MySQLError as error:
            number = code_of(error)
            # An option of the command line that is no variable can not change while the server runs either.
            if number in (READ_ONLY_VARIABLE, UNKNOWN_VARIABLE, NOT_GLOBAL_VARIABLE):
                return False
            if number not in WRONG_VALUE:
                raise
            if literal is literals[-1]:
                words = str(error.args[-1])
                raise InvalidArgument.of(f"instance.parameters[{name}]", words, reason="BAD_PARAMETER") from error
        else:
            return True
    return False


def number_of(value: str) -> int | None:
    """The number that the server reads from `64M` and the like; None if it is none."""
    if value.isdecimal():
        return int(value)
    match = _SIZE.fullmatch(value)
    return int(match[1]) << 10 * (_SUFFIXES.index(match[2].upper()) + 1) if match else None


def _literals(value: str) -> list[object]:
    """The ways to write a value: option files know units and need no quotes, SQL tells numbers from texts."""
    number = number_of(value)
    if number is not None:
        return [number, value]
    if _NUMBER.fullmatch(value):
        return [float(value) if "." in value else int(value), value]
    return [value]


async def _of_mariadb(session: Session) -> Sequence[ParameterInfo]:
    rows = await session.rows(
        "SELECT LOWER(variable_name), global_value, global_value_origin, default_value, read_only, variable_comment"
        " FROM information_schema.system_variables WHERE variable_scope <> 'SESSION ONLY'"
    )
    return [
        ParameterInfo(
            name=name,
            value=value or "",
            unit="",
            default=origin == "COMPILE-TIME" or value == default,
            requires_restart=read_only == "YES",
            pending_value="",
            description=(comment or "").strip(),
        )
        for name, value, origin, default, read_only, comment in rows
    ]


async def _of_mysql(session: Session) -> Sequence[ParameterInfo]:
    described: dict[str, str] = {}
    if await session.exists(
        "SELECT 1 FROM information_schema.tables"
        " WHERE table_schema = 'performance_schema' AND table_name = 'variables_metadata'"  # from 9.1 on
    ):
        rows = await session.rows("SELECT variable_name, documentation FROM performance_schema.variables_metadata")
        described = {str(name): str(documentation) for name, documentation in rows}
    rows = await session.rows(
        "SELECT v.variable_name, v.variable_value, i.variable_source FROM performance_schema.global_variables v"
        " JOIN performance_schema.variables_info i ON i.variable_name = v.variable_name"
    )
    return [
        ParameterInfo(
            name=name,
            value=value or "",
            unit="",
            default=source == "COMPILED",
            requires_restart=await _is_read_only(session, name),
            pending_value="",
            description=described.get(name, "").strip(),
        )
        for name, value, source in rows
    ]


async def _is_read_only(session: Session, name: str) -> bool:
    """Asked by a change that can not be: MySQL has no table of it, but looks at this before it looks at the value."""
    try:
        await session.execute(f"SET GLOBAL {quote_identifier(name)} = (SELECT 1 UNION SELECT 2)")
    except MySQLError as error:
        if code_of(error) == MORE_THAN_ONE_ROW:
            return False
        if code_of(error) in (READ_ONLY_VARIABLE, UNKNOWN_VARIABLE, NOT_GLOBAL_VARIABLE, *WRONG_VALUE):
            return code_of(error) == READ_ONLY_VARIABLE
        raise
    return False
