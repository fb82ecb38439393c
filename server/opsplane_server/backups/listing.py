"""What the filters of the lists can speak of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from opsplane.backups.v1 import backup_pb2
from opsplane.instances.v1 import instance_pb2

from opsplane_server.rpc.filters import Condition, FieldType, parse

_LABELS: Final = "labels."

# Enumerations are stored by their names without the prefix.
_PREFIXES: Final = {
    "engine": "ENGINE_",
    "state": "STATE_",
    "type": "TYPE_",
    "method": "METHOD_",
    "verification.state": "STATE_",
}

BACKUP_FILTER: Final[Mapping[str, FieldType | Collection[str]]] = {
    "instance": FieldType.STRING,
    "instance_uid": FieldType.STRING,
    "engine": set(instance_pb2.Engine.keys()),
    "state": set(backup_pb2.Backup.State.keys()),
    "type": set(backup_pb2.Backup.Type.keys()),
    "method": set(backup_pb2.Backup.Method.keys()),
    "schedule": FieldType.STRING,
    "last_good": FieldType.BOOLEAN,
    "verification.state": set(backup_pb2.Verification.State.keys()),
    "create_time": FieldType.TIME,
    "cut_time": FieldType.TIME,
    "expire_time": FieldType.TIME,
}
SCHEDULE_FILTER: Final[Mapping[str, FieldType | Collection[str]]] = {
    "instances": FieldType.STRING,
    "suspended": FieldType.BOOLEAN,
    "overdue": FieldType.BOOLEAN,
    "create_time": FieldType.TIME,
}


class _WithLabels(dict[str, FieldType | Collection[str]]):
    """Fields, and `labels.KEY` for any key."""

    def get(self, field: str, default: object = None) -> FieldType | Collection[str] | None:  # type: ignore[override]
        found = super().get(field)
        if found is None and field.startswith(_LABELS) and len(field) > len(_LABELS):
            return FieldType.STRING
        return found


def conditions(text: str, fields: Mapping[str, FieldType | Collection[str]]) -> list[Condition]:
    """The conditions of a filter, with the names of enumerations as they are stored. Raises InvalidArgument."""
    return [
        replace(condition, value=condition.value.removeprefix(_PREFIXES[condition.field]))
        if condition.field in _PREFIXES and isinstance(condition.value, str)
        else condition
        for condition in parse(text, _WithLabels(fields))
    ]
