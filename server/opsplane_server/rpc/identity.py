"""Who is calling, and what that caller may do.

An `Authenticator` turns the credentials of a call into a `Principal`. Several stand in a `Chain`; a service with
tokens of its own (those that a load generator carries, for example) adds one more link.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol
from urllib.parse import unquote

EVERY_SERVICE = "*"

Metadata = Iterable[tuple[str, str | bytes]]


class Role(IntEnum):
    """What a caller may do; the numbers are those of `opsplane.common.v1.Role`."""

    VIEWER = 1
    WRITER = 2
    EDITOR = 3
    ADMIN = 4

    def covers(self, needed: Role) -> bool:
        """Whether this role includes the needed one: a WRITER sends telemetry and reads nothing."""
        return self == needed or (self > needed and self >= Role.EDITOR)


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller: the name of its token and its role a service (`loadtesting`), or `*` for all others."""

    name: str
    roles: Mapping[str, Role]

    def allows(self, service: str, needed: Role) -> bool:
        """Whether the caller has the needed role; what is said for one service replaces what is said for all."""
        granted = self.roles.get(service) or self.roles.get(EVERY_SERVICE)
        return granted is not None and granted.covers(needed)


class Authenticator(Protocol):
    """Finds out who is calling."""

    async def authenticate(self, metadata: Metadata, peer: str, method: str) -> Principal | None:
        """Return the caller, or None for credentials that this authenticator does not know.

        `metadata` are the pairs that the caller sent, `peer` is its address as gRPC writes it
        (`ipv4:127.0.0.1:40112`), `method` the full name of the RPC (`/package.Service/Method`).
        """
        ...


def bearer_token(metadata: Metadata) -> str | None:
    """Return the token of `authorization: Bearer <token>`, None if there is none; empty for another scheme."""
    for key, value in metadata:
        if key == "authorization":
            text = value if isinstance(value, str) else value.decode("latin-1")
            scheme, _, token = text.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return None


@dataclass(frozen=True, slots=True)
class StaticToken:
    """One token of the configuration, kept as its SHA-256 alone."""

    name: str
    digest: bytes = field(repr=False)
    roles: Mapping[str, Role]

    @classmethod
    def configured(
        cls, name: str, roles: Mapping[str, Role | str], *, token: str = "", sha256: str = ""
    ) -> StaticToken:
        """Build one from its settings: the token itself or its SHA-256 in hexadecimal, and roles by name.

        Raises ValueError, which never shows the token.
        """
        if not name:
            raise ValueError("a token needs a name")
        if bool(token) == bool(sha256):
            raise ValueError(f"token {name!r} needs exactly one of token and sha256")
        if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise ValueError(f"sha256 of token {name!r} is not 64 hexadecimal digits")
        if not roles:
            raise ValueError(f"token {name!r} has no role")
        digest = bytes.fromhex(sha256) if sha256 else _digest(token)
        return cls(name, digest, MappingProxyType({service: _role(role) for service, role in roles.items()}))


class StaticTokens:
    """Knows the tokens of the configuration."""

    def __init__(self, tokens: Sequence[StaticToken]) -> None:
        names = [token.name for token in tokens]
        if len(set(names)) != len(names):
            raise ValueError("two tokens have the same name")
        self._known = [(token.digest, Principal(token.name, token.roles)) for token in tokens]
        self._recognized: dict[str, Principal] = {}

    async def authenticate(self, metadata: Metadata, peer: str, method: str) -> Principal | None:
        """Compare with every token, so that the time taken tells nothing about any of them.

        A token that has passed is found by its (keyed) hash from then on, which tells a guesser nothing either.
        """
        token = bearer_token(metadata)
        if not token:
            return None
        return self._recognized.get(token) or self._recognize(token)

    def _recognize(self, token: str) -> Principal | None:
        digest = _digest(token)
        found = None
        for known, principal in self._known:
            if hmac.compare_digest(known, digest):
                found = principal
        if found is not None:
            self._recognized[token] = found
        return found


class Anonymous:
    """Lets callers on this machine do everything: for a server without tokens, which serves loopback alone.

    A call that carries a token is not anonymous: an unknown token is refused, never promoted to ADMIN.
    """

    def __init__(self) -> None:
        self._principal = Principal("anonymous", MappingProxyType({EVERY_SERVICE: Role.ADMIN}))

    async def authenticate(self, metadata: Metadata, peer: str, method: str) -> Principal | None:
        """Accept a caller without credentials from a loopback address or a unix socket."""
        return self._principal if bearer_token(metadata) is None and is_local(peer) else None


class Internal:
    """Knows the token that this process gives to its own calls over its private unix socket.

    The token is random and lives as long as the process; it is worth nothing on any other socket.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)
        self._principal = Principal("internal", MappingProxyType({EVERY_SERVICE: Role.ADMIN}))

    async def authenticate(self, metadata: Metadata, peer: str, method: str) -> Principal | None:
        """Accept the process's own token, over a unix socket only."""
        if not peer.startswith("unix:"):
            return None
        token = bearer_token(metadata)
        if token is None or not hmac.compare_digest(token.encode(), self.token.encode()):
            return None
        return self._principal


class Chain:
    """Asks one authenticator after the other; the first that knows the caller decides."""

    def __init__(self, *authenticators: Authenticator) -> None:
        self._authenticators = authenticators

    async def authenticate(self, metadata: Metadata, peer: str, method: str) -> Principal | None:
        """Return what the first one that knows the caller says, None if none does."""
        for authenticator in self._authenticators:
            principal = await authenticator.authenticate(metadata, peer, method)
            if principal is not None:
                return principal
        return None


def peer_address(peer: str) -> tuple[str, int | None]:
    """Split a peer as gRPC writes it (`ipv4:10.0.0.7:5000`, `ipv6:%5B::1%5D:5000`, `unix:...`) in host and port."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return rest, None
    host, _, port = rest.rpartition(":")
    return host.strip("[]"), int(port) if port.isdigit() else None


@lru_cache(maxsize=1024)
def is_local(peer: str) -> bool:
    """Whether the caller is on this machine: a unix socket or a loopback address."""
    if peer.startswith("unix:"):
        return True
    try:
        address = ipaddress.ip_address(peer_address(peer)[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _role(role: Role | str) -> Role:
    if isinstance(role, Role):
        return role
    try:
        return Role[role.upper()]
    except KeyError:
        names = ", ".join(each.name.lower() for each in Role)
        raise ValueError(f"{role!r} is not a role: choose {names}") from None
