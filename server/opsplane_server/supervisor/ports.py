"""Ports that are this server's alone.

Workers share their port with SO_REUSEPORT, and with it any other process of the same user could join them without a
word. So the parent binds the port first, in a way that fails if anybody has it, and holds it for as long as it lives.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from opsplane_server.errors import FailedPrecondition


class HeldPort(AbstractContextManager["HeldPort"]):
    """Holds a port that workers listen on; port 0 takes a free one. FailedPrecondition if it can not be had."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = _bind(host, port)
        # From here on the kernel refuses the port to everybody who does not ask to share it, and to other servers,
        # who like us first ask to have it alone. The socket never listens, so it never gets a connection.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    @property
    def address(self) -> str:
        """Where to listen: numeric, `127.0.0.1:50051` or `[::1]:50051`."""
        return address_of(self._socket)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on a port which nobody else has; FailedPrecondition if it can not be had."""
    listening = _bind(host, port)
    listening.listen()
    listening.setblocking(False)
    return listening


def address_of(bound: socket.socket) -> str:
    """The numeric address of a socket, as gRPC writes it."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise FailedPrecondition(f"{host} is no address to listen on: {error.strerror}", reason="ADDRESS") from None
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Ports whose last connections are still closing may be used again; one that is listened on may not.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _refusal(error, host, port) from None
    return bound


def _refusal(error: OSError, host: str, port: int) -> FailedPrecondition:
    if error.errno == errno.EADDRINUSE:
        return FailedPrecondition(f"port {port} of {host} is in use by another program", reason="PORT_IN_USE")
    if error.errno == errno.EACCES:
        return FailedPrecondition(f"no permission to listen on port {port} of {host}", reason="PORT_FORBIDDEN")
    what = os.strerror(error.errno or 0).lower()
    return FailedPrecondition(f"can not listen on port {port} of {host}: {what}", reason="ADDRESS")
