"""The filters of transfers and connections, as conditions of SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opsplane_server.errors import InvalidArgument
from opsplane_server.ftptransfer import names
from opsplane_server.ftptransfer.model import TransferState
from opsplane_server.rpc.filters import Condition
from opsplane_server.storage.filters import where

_COLUMNS: Final = {
    "group": "t.group_name",
    "task_id": "t.task_id",
    "source.connection": "t.source_connection",
    "source.path": "t.source_path",
    "destination.connection": "t.destination_connection",
    "destination.path": "t.destination_path",
    "selection": "t.selection",
    "priority": "t.priority",
    "error.code": "(COALESCE(q.failure, e.failure) ->> 'code')",
    "error.reason": "(COALESCE(q.failure, e.failure) ->> 'reason')",
    "create_time": "t.create_time",
    "end_time": "e.end_time",
}


def matching(conditions: Sequence[Condition], args: list[object]) -> str:
    """The condition over `rows.FROM`; values are appended to `args`, which has those of the statement so far."""
    clauses = []
    for condition in conditions:
        match condition.field:
            case "state":
                clauses.append(_state(condition, args))
            case "parent":
                clauses.append(_parent(condition, args))
            case "task_id" if condition.op == "=":
                clauses.append(_task(condition, args))
            case _:
                clauses.append(where([_by_id(condition)], _COLUMNS, args))
                if condition.field == "group" and condition.op == "=" and condition.value:
                    clauses.append("t.group_name <> ''")  # the condition of its index, which a prepared plan needs
    return " AND ".join(clauses) or "TRUE"


def _state(condition: Condition, args: list[object]) -> str:
    """Each state by the one of the two tables that has it, so that an index can be used."""
    state = TransferState(str(condition.value))
    if condition.op == "=" and state is TransferState.FAILED:
        return "e.state = 'FAILED'"  # the condition of its index
    args.append(state.value)
    if condition.op != "=":
        return f"COALESCE(q.state, e.state) <> ${len(args)}"
    return f"{'e' if state.ended else 'q'}.state = ${len(args)}"


def _parent(condition: Condition, args: list[object]) -> str:
    if condition.op not in ("=", "!="):
        raise InvalidArgument.of("filter", "parent can only be compared with = and !=", reason="FILTER_INVALID")
    args.append(names.transfer_id(str(condition.value)))
    value = f"${len(args)}::text"
    if condition.op == "=":
        return f"t.parent_key = (SELECT key FROM ftptransfer.transfers WHERE id = {value})"
    return f"p.id IS DISTINCT FROM {value}"


def _task(condition: Condition, args: list[object]) -> str:
    """By the unique key of tasks, and by the index of the few whose key is another one."""
    args.append(condition.value)
    value = f"${len(args)}::text"
    other = "t.task_id <> '' AND t.task_key IS DISTINCT FROM t.task_id"
    return f"(t.task_key = {value} AND t.task_id = {value} OR t.task_id = {value} AND {other})"


def _by_id(condition: Condition) -> Condition:
    if condition.field.endswith(".connection") and condition.op in ("=", "!="):
        return Condition(condition.field, condition.op, names.connection_id(str(condition.value)))
    return condition
