"""How clients reach an instance: the answer of GetConnectionInfo, put together of what is known. No I/O."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from opsplane.instances.v1 import connections_pb2

from opsplane_server.errors import FailedPrecondition
from opsplane_server.instances.convert import address
from opsplane_server.instances.model import Endpoint, Engine, Node, NodeRole, NodeState
from opsplane_server.instances.records import Instance


@dataclass(frozen=True, slots=True)
class Login:
    """Who connects, and to what."""

    user: str
    password: str = field(repr=False)
    database: str


@dataclass(frozen=True, slots=True)
class _Role:
    """What an endpoint stands for, in words of libpq and of the JDBC driver. spread: over all that fit."""

    session: str
    target_server: str
    spread: bool = True


_RW = _Role("read-write", "primary", spread=False)
_RO = _Role("standby", "secondary")
_R = _Role("any", "any")


def connection_info(instance: Instance, login: Login) -> connections_pb2.ConnectionInfo:
    """All endpoints in every form. Raises FailedPrecondition before there are addresses."""
    endpoints, nodes = instance.status.endpoints, instance.status.nodes
    if endpoints is None:
        raise FailedPrecondition(
            f"{instance.name} has no address yet: it is {instance.state}",
            reason="INSTANCE_NOT_SERVING",
            metadata={"resource": instance.name, "state": instance.state.value},
        )
    healthy = [node for node in nodes if node.state is NodeState.READY]
    replicas = [node for node in healthy if node.role is NodeRole.REPLICA]
    answering = [node for node in nodes if node.state in (NodeState.READY, NodeState.STARTING, NodeState.REJOINING)]
    forms = _Forms(instance, login)
    return connections_pb2.ConnectionInfo(
        instance=instance.name,
        database=login.database,
        username=login.user,
        password=login.password,
        rw=forms.endpoint(endpoints.rw, _RW, [node for node in healthy if node.id == instance.status.primary]),
        ro=forms.endpoint(endpoints.ro, _RO, replicas) if endpoints.ro is not None else None,
        r=forms.endpoint(endpoints.r, _R, healthy),
        any=forms.endpoint(endpoints.any, _R, answering),
        tls_enabled=instance.status.tls,
        ca_certificate=instance.status.ca_certificate,
        command=forms.command(endpoints.rw),
    )


class _Forms:
    def __init__(self, instance: Instance, login: Login) -> None:
        self._postgresql = instance.spec.engine is Engine.POSTGRESQL
        self._mariadb = instance.spec.engine is Engine.MARIADB
        self._tls = instance.status.tls
        self._login = login
        # By id, so that a list does not change with the primary: clients ask each node what it is.
        self._nodes = sorted(instance.status.nodes, key=lambda node: node.id)

    def endpoint(self, endpoint: Endpoint, role: _Role, now: Sequence[Node]) -> connections_pb2.ConnectionEndpoint:
        """One endpoint; `now` are the nodes that it stands for at present."""
        stable = address(endpoint.host, endpoint.port)
        every = [address(node.host, node.port) for node in self._nodes]
        return connections_pb2.ConnectionEndpoint(
            host=endpoint.host,
            port=endpoint.port,
            uri=self._uri(stable),
            multi_host_uri=self._uri(",".join(every), role) if self._postgresql else "",
            jdbc_url=self._jdbc_url(stable),
            multi_host_jdbc_url=self._jdbc_url(",".join(every), role) if self._postgresql else "",
            hosts=[address(node.host, node.port) for node in now],
        )

    def command(self, endpoint: Endpoint) -> str:
        """A shell on the endpoint; the program asks for the password."""
        if self._postgresql:
            program = ["psql", "-h", endpoint.host, "-p", str(endpoint.port), "-U", self._login.user]
            return shlex.join([*program, self._login.database])
        name = "mariadb" if self._mariadb else "mysql"
        # Over TCP, also where the host is `localhost`.
        program = [name, "--protocol=TCP", "-h", endpoint.host, "-P", str(endpoint.port), "-u", self._login.user]
        return shlex.join([*program, "-p", self._login.database])

    def _uri(self, hosts: str, role: _Role | None = None) -> str:
        login = self._login
        scheme = "postgresql" if self._postgresql else "mysql"
        who = f"{quote(login.user, safe='')}:{quote(login.password, safe='')}"
        options = self._options(role)
        return f"{scheme}://{who}@{hosts}/{quote(login.database, safe='')}{options}"

    def _options(self, role: _Role | None) -> str:
        options = []
        if role is not None:
            options.append(f"target_session_attrs={role.session}")
        if self._tls and self._postgresql:
            options.append("sslmode=require")
        elif self._tls:
            options.append("ssl-mode=REQUIRED")
        return f"?{'&'.join(options)}" if options else ""

    def _jdbc_url(self, hosts: str, role: _Role | None = None) -> str:
        options = []
        if self._postgresql:
            scheme = "postgresql"
            if role is not None:
                options.append(f"targetServerType={role.target_server}")
                # libpq and asyncpg have no such word that both know.
                if role.spread:
                    options.append("loadBalanceHosts=true")
            if self._tls:
                options.append("sslmode=require")
        else:
            scheme = "mariadb" if self._mariadb else "mysql"
            if self._tls:
                options.append("sslMode=trust" if self._mariadb else "sslMode=REQUIRED")
        tail = f"?{'&'.join(options)}" if options else ""
        return f"jdbc:{scheme}://{hosts}/{quote(self._login.database, safe='')}{tail}"
