"""The FTP servers as pytest fixtures, and the settings with which our side reaches them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeAlias

import pytest
from opsplane_server.ftptransfer.model import FtpServer, TlsMode, TlsSettings

from tests.ftp_servers.base import PASSWORD, FtpProcess, ServerOptions, running
from tests.ftp_servers.proftpd import Proftpd
from tests.ftp_servers.pyftpdlib import Pyftpdlib
from tests.ftp_servers.vsftpd import Vsftpd

KINDS: dict[str, type[FtpProcess]] = {kind.name: kind for kind in (Vsftpd, Proftpd, Pyftpdlib)}

StartServer: TypeAlias = Callable[..., FtpProcess]


def settings_of(server: FtpProcess, **changes: Any) -> FtpServer:
    """How to reach a server, with its account; waits are short, because nothing here is far away."""
    tls = None
    if server.certificate is not None:
        tls = TlsSettings(TlsMode(server.options.tls.upper()), ca_certificates=server.certificate.authority)
    settings = FtpServer(server.host, server.port, server.user, PASSWORD, tls, reply_timeout=10.0, stall_timeout=10.0)
    return replace(settings, **changes)


@pytest.fixture(params=KINDS)
def ftp_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of server in turn."""
    return str(request.param)


@pytest.fixture
def start_ftp() -> Iterator[StartServer]:
    """Starts servers for the test: `start_ftp("vsftpd", tls="explicit")`, with fields of ServerOptions."""
    with ExitStack() as stack:
        yield lambda kind, **options: stack.enter_context(running(KINDS[kind], ServerOptions(**options)))


@pytest.fixture
def ftp_server(ftp_kind: str, start_ftp: StartServer) -> FtpProcess:
    """A server of each kind, without TLS."""
    return start_ftp(ftp_kind)
