"""Addresses, URIs and commands, as clients take them."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.errors import FailedPrecondition
from opsplane_server.instances.connections import Login, connection_info
from opsplane_server.instances.model import (
    Endpoint,
    Endpoints,
    Engine,
    InstanceSpec,
    InstanceState,
    Node,
    NodeRole,
    NodeState,
    ProviderKind,
    Resources,
    Status,
)
from opsplane_server.instances.records import Instance

LOGIN = Login("app", "p/w@x", "shop")


def instance(engine: Engine = Engine.POSTGRESQL, *, tls: bool = False, host: str = "127.0.0.1") -> Instance:
    """A cluster of three, of which the third node is away."""
    spec = InstanceSpec(
        "instances/orders", "uid", engine, "18.4", ProviderKind.LOCAL, "here", "shop", "app", Resources(1, 1, 1, 1, 1)
    )
    nodes = (
        Node("orders-2", NodeRole.PRIMARY, NodeState.READY, host, 2),
        Node("orders-1", NodeRole.REPLICA, NodeState.READY, host, 1),
        Node("orders-3", NodeRole.REPLICA, NodeState.UNREACHABLE, host, 3),
    )
    ends = Endpoints(*(Endpoint(host, port) for port in (10, 11, 12, 13)))
    status = Status(nodes, "orders-2", ends, tls=tls, ca_certificate="PEM" if tls else "")
    return Instance(spec=spec, version="18", state=InstanceState.READY, status=status)


def test_each_endpoint_in_every_form() -> None:
    info = connection_info(instance(), LOGIN)
    assert info.rw.uri == "postgresql://app:p%2Fw%40x@127.0.0.1:10/shop"
    every = "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3"
    assert info.rw.multi_host_uri == f"postgresql://app:p%2Fw%40x@{every}/shop?target_session_attrs=read-write"
    assert info.ro.multi_host_uri.endswith("?target_session_attrs=standby")
    assert info.rw.jdbc_url == "jdbc:postgresql://127.0.0.1:10/shop"
    assert info.rw.multi_host_jdbc_url == f"jdbc:postgresql://{every}/shop?targetServerType=primary"
    assert info.ro.multi_host_jdbc_url.endswith("?targetServerType=secondary&loadBalanceHosts=true")
    assert list(info.rw.hosts) == ["127.0.0.1:2"]
    assert list(info.ro.hosts) == ["127.0.0.1:1"]
    assert list(info.r.hosts) == list(info.any.hosts) == ["127.0.0.1:2", "127.0.0.1:1"]
    assert info.command == "psql -h 127.0.0.1 -p 10 -U app shop"


def test_tls_is_asked_for_only_where_it_is() -> None:
    info = connection_info(instance(tls=True), LOGIN)
    assert info.tls_enabled
    assert info.ca_certificate == "PEM"
    assert info.rw.uri.endswith("/shop?sslmode=require")
    assert info.rw.multi_host_uri.endswith("?target_session_attrs=read-write&sslmode=require")


def test_mysql_has_its_own_words() -> None:
    info = connection_info(instance(Engine.MARIADB, tls=True), LOGIN)
    assert info.rw.uri == "mysql://app:p%2Fw%40x@127.0.0.1:10/shop?ssl-mode=REQUIRED"
    assert info.rw.jdbc_url == "jdbc:mariadb://127.0.0.1:10/shop?sslMode=trust"
    assert (info.rw.multi_host_uri, info.rw.multi_host_jdbc_url) == ("", "")
    assert info.command == "mariadb --protocol=TCP -h 127.0.0.1 -P 10 -u app -p shop"
    assert connection_info(instance(Engine.MYSQL), LOGIN).command.startswith("mysql ")


def test_addresses_of_version_6_stand_in_brackets() -> None:
    info = connection_info(instance(host="::1"), LOGIN)
    assert info.rw.uri == "postgresql://app:p%2Fw%40x@[::1]:10/shop"
    assert info.rw.host == "::1"


def test_without_addresses_there_is_nothing_to_tell() -> None:
    with pytest.raises(FailedPrecondition):
        connection_info(replace(instance(), status=Status()), LOGIN)


@given(password=st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1))
def test_any_password_comes_through_a_uri(password: str) -> None:
    parts = urlsplit(connection_info(instance(), replace(LOGIN, password=password)).rw.uri)
    assert parts.hostname == "127.0.0.1"
    assert unquote(parts.password or "") == password
