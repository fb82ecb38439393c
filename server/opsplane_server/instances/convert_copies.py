"""domain <-> proto: copies of instances' data."""

from __future__ import annotations

from datetime import UTC

from opsplane.instances.v1 import copies_pb2, instance_pb2

from opsplane_server.instances.convert import settings_message
from opsplane_server.instances.model import Copy, Engine
from opsplane_server.instances.records import Instance
from opsplane_server.rpc.times import timestamp


def copy_message(copy: Copy, source: Instance) -> copies_pb2.InstanceCopy:
    """A copy, with the settings of the instance that it was made of."""
    return copies_pb2.InstanceCopy(
        location=copy.location,
        engine=instance_pb2.Engine.Value(f"ENGINE_{copy.engine}"),
        engine_version=copy.engine_version,
        provider=instance_pb2.Provider.Value(f"PROVIDER_{source.spec.provider}"),
        method=copy.method,
        consistency=copy.consistency,
        node=copy.node,
        databases=copy.databases,
        users=copy.users,
        tables=copy.tables,
        size_bytes=copy.size_bytes,
        restore_size_bytes=copy.restore_size_bytes,
        start_time=timestamp(copy.start_time),
        cut_time=timestamp(copy.cut_time),
        complete_time=timestamp(copy.complete_time),
        base=copy.base,
        settings=settings_message(source),
    )


def copy_of(message: copies_pb2.InstanceCopy) -> Copy:
    """The copy without the settings of its instance."""
    return Copy(
        location=message.location,
        engine=Engine(instance_pb2.Engine.Name(message.engine).removeprefix("ENGINE_")),
        engine_version=message.engine_version,
        method=message.method,
        consistency=message.consistency,
        node=message.node,
        databases=tuple(message.databases),
        users=tuple(message.users),
        tables=dict(message.tables),
        size_bytes=message.size_bytes,
        restore_size_bytes=message.restore_size_bytes,
        start_time=message.start_time.ToDatetime(tzinfo=UTC),
        cut_time=message.cut_time.ToDatetime(tzinfo=UTC),
        complete_time=message.complete_time.ToDatetime(tzinfo=UTC),
        base=message.base,
    )
