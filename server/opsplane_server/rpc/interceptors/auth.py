"""Who is calling, and whether that caller may: no RPC runs without an answer to both.

The role that an RPC needs stands in its proto (`opsplane.common.v1.required_role`). Services of others, whose
protos can not say it, stand in a table here. A method with neither is refused to everybody.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import descriptor_pool
from opentelemetry import trace
from opsplane.common.v1 import access_pb2

from opsplane_server.errors import PermissionDenied, Unauthenticated
from opsplane_server.rpc.calls import Call, set_call
from opsplane_server.rpc.identity import Authenticator, Role, bearer_token
from opsplane_server.rpc.interceptors.chain import Context, Handler, Method, incoming_metadata

PLATFORM: Final = "platform"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a method asks for: a role in a service as tokens name it; None is never granted."""

    service: str
    role: Role | None


# Open to everybody: probes of an orchestrator carry no token and learn nothing but "serving".
_OPEN: Final = frozenset({"grpc.health.v1.Health"})

_OPERATIONS: Final = "/google.longrunning.Operations/"
_REFLECTION: Final = "ServerReflection/ServerReflectionInfo"
_THIRD_PARTY: Final = {
    f"/grpc.reflection.v1.{_REFLECTION}": Rule(PLATFORM, Role.VIEWER),
    f"/grpc.reflection.v1alpha.{_REFLECTION}": Rule(PLATFORM, Role.VIEWER),
    f"{_OPERATIONS}GetOperation": Rule(PLATFORM, Role.VIEWER),
    f"{_OPERATIONS}ListOperations": Rule(PLATFORM, Role.VIEWER),
    f"{_OPERATIONS}WaitOperation": Rule(PLATFORM, Role.VIEWER),
    f"{_OPERATIONS}CancelOperation": Rule(PLATFORM, Role.EDITOR),
    f"{_OPERATIONS}DeleteOperation": Rule(PLATFORM, Role.EDITOR),
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": Rule("logingest", Role.WRITER),
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": Rule("loadtesting", Role.WRITER),
}


class Auth:
    """Authenticates and authorizes every call, and records it as the current one."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def wrap(self, method: Method, handler: Handler) -> Handler:
        """Guard the method."""
        if method.service in _OPEN:
            return handler
        rule = rule_of(method)
        path = method.path
        authenticate = self._authenticator.authenticate

        async def call(request: Any, context: Context) -> Any:
            metadata = incoming_metadata()
            peer = context.peer()
            principal = await authenticate(metadata, peer, path)
            if principal is None:
                raise _unauthenticated(bearer_token(metadata))
            remaining: float | None = context.time_remaining()
            deadline = None if remaining is None else time.monotonic() + remaining
            set_call(Call(path, principal, peer, _trace_id(), deadline))
            if rule.role is None:
                raise PermissionDenied(f"{path} declares no role", reason="ROLE_NOT_DECLARED")
            if not principal.allows(rule.service, rule.role):
                raise _denied(principal.name, rule.service, rule.role)
            return await handler(request, context)

        return call


def rule_of(method: Method) -> Rule:
    """Return what the method asks for, from the table or its descriptor."""
    rule = _THIRD_PARTY.get(method.path)
    if rule is not None:
        return rule
    service = _short_name(method.service)
    try:
        descriptor = descriptor_pool.Default().FindMethodByName(f"{method.service}.{method.name}")
    except KeyError:
        return Rule(service, None)
    declared = descriptor.GetOptions().Extensions[access_pb2.required_role]
    return Rule(service, Role(declared) if declared else None)


def _short_name(service: str) -> str:
    """Return the name of a service as tokens give it: `loadtesting` for `opsplane.loadtesting.v1.LoadTesting`."""
    package = service.split(".")
    name = package[1] if package[0] == "opsplane" and len(package) > 1 else service
    return PLATFORM if name == "common" else name


def _trace_id() -> str:
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def _unauthenticated(token: str | None) -> Unauthenticated:
    if token is None:
        return Unauthenticated("no token: send `authorization: Bearer <token>`", reason="TOKEN_MISSING")
    return Unauthenticated("the token is not known", reason="TOKEN_UNKNOWN")


def _denied(name: str, service: str, role: Role) -> PermissionDenied:
    return PermissionDenied(
        f"{name} needs the role {role.name} in {service}",
        reason="ROLE_TOO_LOW",
        metadata={"service": service, "required_role": role.name},
    )
