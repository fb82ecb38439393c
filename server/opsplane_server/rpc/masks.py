"""Field masks of Update methods."""

from __future__ import annotations

from collections.abc import Collection

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from opsplane_server.errors import FieldViolation, InvalidArgument

_FIELD = "update_mask"


def changed_fields(mask: FieldMask, message: Message, updatable: Collection[str]) -> list[str]:
    """Return the paths to change, in the order of `updatable`, each once.

    `updatable` are the paths that an update may name (`display_name`, `limits.max_connections`). An empty mask
    means all of them that are set in the message, `*` means all of them. A path of the mask that is not updatable,
    or not there at all, raises InvalidArgument on `update_mask`.
    """
    if not mask.paths:
        return [path for path in updatable if _is_set(message, path)]
    if "*" in mask.paths:
        if len(mask.paths) > 1:
            raise InvalidArgument.of(_FIELD, "`*` stands alone")
        return list(updatable)
    violations = [
        FieldViolation(_FIELD, f"{path!r} {_fault(message, path)}") for path in mask.paths if path not in updatable
    ]
    if violations:
        raise InvalidArgument("update_mask names fields that can not be changed", violations)
    return [path for path in updatable if path in mask.paths]


def _is_set(message: Message, path: str) -> bool:
    """Whether a field has presence and is set, or differs from its default."""
    *parents, last = path.split(".")
    for parent in parents:
        if not message.HasField(parent):
            return False
        message = getattr(message, parent)
    return any(field.name == last for field, _ in message.ListFields())


def _fault(message: Message, path: str) -> str:
    fields = message.DESCRIPTOR.fields_by_name
    for part in path.split("."):
        field = fields.get(part)
        if field is None:
            return "is not a field of the resource"
        fields = field.message_type.fields_by_name if field.message_type is not None else {}
    return "can not be changed"
