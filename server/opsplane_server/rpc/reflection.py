"""Server reflection, v1 and v1alpha.

grpcio-reflection knows v1alpha alone, newer tools ask for v1 first. Both say the same in the same bytes, only their
package differs, so v1 is served by the same servicer under the descriptor of v1alpha with its package replaced.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

_ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"
_V1_FILE = "grpc/reflection/v1/reflection.proto"

V1 = f"{_V1}.ServerReflection"
V1_ALPHA = reflection.SERVICE_NAME


def add(server: grpc.aio.Server, service_names: Sequence[str]) -> None:
    """Serve reflection of these services, and of itself, in both versions."""
    _describe_v1()
    names = [*service_names, V1, V1_ALPHA]
    servicer = reflection.aio.ReflectionServicer(names)
    reflection.enable_server_reflection(names, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_registered_method_handlers(V1, {"ServerReflectionInfo": handler})


def _describe_v1() -> None:
    """Make the descriptor of v1 known, so that tools can describe it like any other service."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_V1_FILE)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        file.name, file.package = _V1_FILE, _V1
        for message in file.message_type:
            for field in message.field:
                if field.type_name:
                    field.type_name = _renamed(field.type_name)
        for method in file.service[0].method:
            method.input_type, method.output_type = _renamed(method.input_type), _renamed(method.output_type)
        pool.AddSerializedFile(file.SerializeToString())


def _renamed(type_name: str) -> str:
    return type_name.replace(f".{_ALPHA}.", f".{_V1}.", 1)
