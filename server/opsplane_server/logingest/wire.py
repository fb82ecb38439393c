"""The wire format of log messages, as the server reads it: texts as bytes, a time as its two numbers.

The same bytes as `opsplane.logingest.v1.StreamLogsRequest`, under a descriptor of our own: a decoder of `string`
fields refuses a whole message for one bad text and clamps times, this one leaves both to the rules. It is made from
the descriptor of the API, so a new field needs no change here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import ptars
import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from opsplane.logingest.v1 import logingest_pb2, records_pb2

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE: Final = "opsplane_server.logingest.wire"


class Malformed(Exception):
    """The bytes are no message of the format."""


def _copy(source: Descriptor, target: descriptor_pb2.DescriptorProto) -> None:
    for field in source.fields:
        copied = target.field.add(name=field.name, number=field.number, label=_label(field))
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            copied.type = _Field.TYPE_BYTES
        elif field.type == FieldDescriptor.TYPE_ENUM:
            copied.type = _Field.TYPE_INT32
        elif field.message_type is None:
            copied.type = _Field.Type.ValueType(field.type)
            if field.containing_oneof is not None:  # `optional`
                copied.oneof_index = len(target.oneof_decl)
                copied.proto3_optional = True
                target.oneof_decl.add(name=f"_{field.name}")
        elif field.message_type.full_name == f"{records_pb2.DESCRIPTOR.package}.StreamSettings":
            copied.type = _Field.TYPE_BYTES
        else:
            copied.type = _Field.TYPE_MESSAGE
            copied.type_name = f".{_PACKAGE}.{field.message_type.name}"


def _label(field: FieldDescriptor) -> descriptor_pb2.FieldDescriptorProto.Label.ValueType:
    return _Field.LABEL_REPEATED if field.is_repeated else _Field.LABEL_OPTIONAL


def _descriptors() -> tuple[Descriptor, Descriptor]:
    """Our descriptors of a stream's message and of a record."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    record = records_pb2.LogRecord.DESCRIPTOR
    messages = [
        logingest_pb2.StreamLogsRequest.DESCRIPTOR,
        records_pb2.LogBatch.DESCRIPTOR,
        record,
        # A map is on the wire a list of entries.
        *(field.message_type for field in record.fields if field.message_type is not None),
    ]
    for message in messages:
        _copy(message, file.message_type.add(name=message.name))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindMessageTypeByName(f"{_PACKAGE}.StreamLogsRequest"), pool.FindMessageTypeByName(
        f"{_PACKAGE}.LogRecord"
    )


_MESSAGE, _RECORD = _descriptors()
_HANDLERS = ptars.HandlerPool([_MESSAGE.file])
_DECODE_MESSAGES = _HANDLERS.get_for_message(_MESSAGE).list_to_record_batch
_DECODE_RECORDS = _HANDLERS.get_for_message(_RECORD).list_to_record_batch


def decode(messages: Sequence[bytes]) -> pa.RecordBatch:
    """Decodes messages of streams, one row each; Malformed when any of them is not one."""
    try:
        return _DECODE_MESSAGES(list(messages))
    except ValueError as error:
        raise Malformed(str(error)) from None


def is_record(raw: bytes) -> bool:
    """Whether the bytes are a record of the format, whatever its values."""
    try:
        _DECODE_RECORDS([raw])
    except ValueError:
        return False
    return True
