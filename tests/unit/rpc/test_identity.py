from __future__ import annotations

import hashlib

import pytest
from opsplane_server.rpc.identity import (
    Anonymous,
    Chain,
    Internal,
    Principal,
    Role,
    StaticToken,
    StaticTokens,
    bearer_token,
    is_local,
    peer_address,
)

LOOPBACK = "ipv4:127.0.0.1:4000"
METHOD = "/a.B/C"


def bearer(token: str) -> list[tuple[str, str | bytes]]:
    return [("user-agent", "test"), ("authorization", f"Bearer {token}")]


@pytest.mark.parametrize(
    ("granted", "covered"),
    [
        (Role.VIEWER, {Role.VIEWER}),
        (Role.WRITER, {Role.WRITER}),
        (Role.EDITOR, {Role.VIEWER, Role.WRITER, Role.EDITOR}),
        (Role.ADMIN, set(Role)),
    ],
)
def test_role_covers(granted: Role, covered: set[Role]) -> None:
    assert {needed for needed in Role if granted.covers(needed)} == covered


def test_role_of_a_service_replaces_the_general_one() -> None:
    principal = Principal("ci", {"*": Role.EDITOR, "backups": Role.VIEWER})
    assert principal.allows("instances", Role.EDITOR)
    assert not principal.allows("backups", Role.EDITOR)
    assert principal.allows("backups", Role.VIEWER)
    assert not Principal("ci", {"backups": Role.ADMIN}).allows("instances", Role.VIEWER)


@pytest.mark.parametrize(
    ("metadata", "token"),
    [
        ([], None),
        ([("authorization", "Bearer abc")], "abc"),
        ([("authorization", "bearer  abc ")], "abc"),
        ([("authorization", b"Bearer abc")], "abc"),
        ([("authorization", "Basic abc")], ""),
        ([("authorization", "")], ""),
    ],
)
def test_bearer_token(metadata: list[tuple[str, str | bytes]], token: str | None) -> None:
    assert bearer_token(metadata) == token


async def test_static_tokens() -> None:
    digest = hashlib.sha256(b"second").hexdigest()
    tokens = StaticTokens(
        [
            StaticToken.configured("one", {"*": "viewer"}, token="first"),
            StaticToken.configured("two", {"loadtesting": Role.EDITOR}, sha256=digest),
        ]
    )
    for _ in range(2):
        first = await tokens.authenticate(bearer("first"), LOOPBACK, METHOD)
        assert first == Principal("one", {"*": Role.VIEWER})
    second = await tokens.authenticate(bearer("second"), LOOPBACK, METHOD)
    assert second == Principal("two", {"loadtesting": Role.EDITOR})
    for metadata in ([], bearer(""), bearer("third"), bearer(digest), [("authorization", "Basic first")]):
        assert await tokens.authenticate(metadata, LOOPBACK, METHOD) is None


def test_token_is_not_shown() -> None:
    token = StaticToken.configured("one", {"*": "viewer"}, token="first")
    assert "first" not in repr(token)
    assert token.digest.hex() not in repr(token)


@pytest.mark.parametrize(
    ("name", "roles", "secret", "message"),
    [
        ("", {"*": "viewer"}, {"token": "secret"}, "needs a name"),
        ("one", {"*": "viewer"}, {}, "exactly one"),
        ("one", {"*": "viewer"}, {"token": "secret", "sha256": "ab" * 32}, "exactly one"),
        ("one", {"*": "viewer"}, {"sha256": "secret"}, "64 hexadecimal"),
        ("one", {}, {"token": "secret"}, "has no role"),
        ("one", {"*": "owner"}, {"token": "secret"}, "'owner' is not a role"),
    ],
)
def test_wrong_settings_are_refused_without_the_secret(
    name: str, roles: dict[str, str], secret: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        StaticToken.configured(name, roles, **secret)
    assert "secret" not in str(caught.value)


def test_two_tokens_of_one_name_are_refused() -> None:
    token = StaticToken.configured("one", {"*": "viewer"}, token="first")
    with pytest.raises(ValueError, match="same name"):
        StaticTokens([token, token])


async def test_anonymous_is_local_and_without_credentials() -> None:
    anonymous = Anonymous()
    principal = await anonymous.authenticate([], LOOPBACK, METHOD)
    assert principal is not None
    assert principal.allows("instances", Role.ADMIN)
    assert await anonymous.authenticate([], "ipv4:10.0.0.7:4000", METHOD) is None
    assert await anonymous.authenticate(bearer("unknown"), LOOPBACK, METHOD) is None


async def test_internal_knows_its_own_token_over_a_unix_socket() -> None:
    internal, other = Internal(), Internal()
    principal = await internal.authenticate(bearer(internal.token), "unix:", METHOD)
    assert principal is not None
    assert principal.name == "internal"
    assert await internal.authenticate(bearer(other.token), "unix:", METHOD) is None
    assert await internal.authenticate(bearer("\u00e9"), "unix:", METHOD) is None
    assert await internal.authenticate([], "unix:", METHOD) is None
    assert await internal.authenticate(bearer(internal.token), LOOPBACK, METHOD) is None


async def test_first_of_a_chain_that_knows_the_caller_decides() -> None:
    token = StaticToken.configured("one", {"*": "viewer"}, token="first")
    chain = Chain(StaticTokens([token]), Anonymous())
    known = await chain.authenticate(bearer("first"), LOOPBACK, METHOD)
    anonymous = await chain.authenticate([], LOOPBACK, METHOD)
    assert known is not None
    assert anonymous is not None
    assert (known.name, anonymous.name) == ("one", "anonymous")
    assert await chain.authenticate(bearer("second"), LOOPBACK, METHOD) is None


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("unix:", True),
        ("unix:/run/own.sock", True),
        ("ipv4:127.0.0.1:4000", True),
        ("ipv4:127.8.8.8:4000", True),
        ("ipv6:%5B::1%5D:4000", True),
        ("ipv6:[::ffff:127.0.0.1]:4000", True),
        ("ipv4:10.0.0.7:4000", False),
        ("ipv6:%5B2001:db8::1%5D:4000", False),
        ("ipv6:[::ffff:10.0.0.7]:4000", False),
        ("ipv4:localhost.example:4000", False),
        ("", False),
        ("127.0.0.1", False),
    ],
)
def test_is_local(peer: str, local: bool) -> None:
    assert is_local(peer) is local


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:5000", ("10.0.0.7", 5000)),
        ("ipv6:%5B::1%5D:5000", ("::1", 5000)),
        ("unix:/run/own.sock", ("/run/own.sock", None)),
    ],
)
def test_peer_address(peer: str, address: tuple[str, int | None]) -> None:
    assert peer_address(peer) == address
