"""The echo service behind the interceptors of production."""

from __future__ import annotations

from typing import Any

import pytest
from opsplane_server.rpc.identity import Role, StaticToken, StaticTokens

from tests.contract.rpc.echo import EchoServicer, EchoStub, add_echo_servicer_to_server

TOKENS = {
    "viewer": {"*": Role.VIEWER},
    "writer": {"*": Role.WRITER},
    "editor": {"*": Role.EDITOR},
    "admin": {"*": Role.ADMIN},
    "elsewhere": {"backups": Role.ADMIN},
}


@pytest.fixture(scope="module")
def tokens() -> StaticTokens:
    """A token a role, `<role>-token`, and one for another service alone."""
    return StaticTokens([StaticToken.configured(name, roles, token=f"{name}-token") for name, roles in TOKENS.items()])


@pytest.fixture(scope="module")
def grpc_add_to_server() -> Any:
    return add_echo_servicer_to_server


@pytest.fixture(scope="module")
def grpc_servicer() -> EchoServicer:
    return EchoServicer()


@pytest.fixture(scope="module")
def grpc_stub_cls() -> type[EchoStub]:
    return EchoStub


@pytest.fixture
def echo(grpc_servicer: EchoServicer) -> EchoServicer:
    """The servicer, as new."""
    grpc_servicer.error = None
    grpc_servicer.calls.clear()
    grpc_servicer.closed.clear()
    return grpc_servicer
