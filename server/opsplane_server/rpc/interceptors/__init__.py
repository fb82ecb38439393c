"""The interceptors of every RPC, one a file, and the order in which they stand."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.trace import TracerProvider

from opsplane_server.rpc.identity import Authenticator
from opsplane_server.rpc.interceptors.auth import Auth
from opsplane_server.rpc.interceptors.chain import Interceptor
from opsplane_server.rpc.interceptors.errors import Errors
from opsplane_server.rpc.interceptors.telemetry import Telemetry
from opsplane_server.rpc.interceptors.validation import Validation


def standard(authenticator: Authenticator, *, tracer_provider: TracerProvider | None = None) -> Sequence[Interceptor]:
    """Return what every server runs, outermost first; without a tracer provider OpenTelemetry's global one is used.

    Telemetry sees what the caller sees, so it stands outside the errors; who is not known learns nothing from
    validation, so it stands innermost.
    """
    return (Telemetry(tracer_provider), Errors(), Auth(authenticator), Validation())
