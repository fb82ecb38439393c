"""Tokens of runs: with one of its own, a load generator delivers figures of its run and can do nothing else."""

from __future__ import annotations

import hashlib
import secrets
import time

from opsplane_server.loadtesting.ports import RunStore
from opsplane_server.rpc.identity import Metadata, Principal, Role, bearer_token

EXPORT_METHOD = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
PREFIX = "run:"

# An ended run's token is refused by the store in any case; this only spares a query a second for each generator.
_CACHE_SECONDS = 5.0
_CACHE_SIZE = 1000


def new_token() -> str:
    """A fresh token, 256 random bits."""
    return secrets.token_urlsafe(32)


def token_hash(token: str) -> bytes:
    """What is stored of a token."""
    return hashlib.sha256(token.encode()).digest()


class RunTokens:
    """Knows the tokens of active runs, for the OTLP metrics method alone (`rpc.identity.Authenticator`)."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._known: dict[bytes, tuple[float, Principal]] = {}

    async def authenticate(self, metadata: Metadata, peer: str, method: str) -> Principal | None:
        """The run as a caller with the role to write; None for any other method or token."""
        token = bearer_token(metadata) if method == EXPORT_METHOD else None
        if not token:
            return None
        digest = token_hash(token)
        until, principal = self._known.get(digest, (0.0, None))
        if principal is not None and until > time.monotonic():
            return principal
        name = await self._store.find_run_by_token(digest)
        if name is None:
            self._known.pop(digest, None)
            return None
        if len(self._known) >= _CACHE_SIZE:
            self._known.clear()
        principal = Principal(PREFIX + name, {"loadtesting": Role.WRITER})
        self._known[digest] = (time.monotonic() + _CACHE_SECONDS, principal)
        return principal
