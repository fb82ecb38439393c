"""Opening data connections: to the server (passive mode), or from it (active mode)."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from typing import Final

from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure
from opsplane_server.ftptransfer.model import ActiveMode

_IN_PROGRESS: Final = frozenset({0, errno.EINPROGRESS, errno.EWOULDBLOCK})


def connect(address: str, port: int) -> socket.socket:
    """A socket that is being connected to a numeric address. What becomes of it is seen when it is used."""
    data = socket.socket(_family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # For IPv6 `connect` resolves the zone that the address may carry.
    result = data.connect_ex((address, port))
    if result not in _IN_PROGRESS:
        data.close()
        message = f"the data connection could not be opened: {os.strerror(result)}"
        raise TransferFailure(ErrorReason.DATA_CONNECTION, message)
    return data


class Listener:
    """Waits for the server's data connection on a port of its own."""

    def __init__(self, settings: ActiveMode, local: str) -> None:
        """`local` is our address of the control connection. Raises TransferFailure when no port is free."""
        self._socket = _listen(local, settings.first_port, settings.last_port, anywhere=bool(settings.address))
        self.announced = settings.address or local
        self.port: int = self._socket.getsockname()[1]

    def command(self, *, extended: bool) -> str:
        """The command that tells the server where to connect to."""
        if extended or ":" in self.announced:
            return f"EPRT |{2 if ':' in self.announced else 1}|{self.announced.partition('%')[0]}|{self.port}|"
        return f"PORT {self.announced.replace('.', ',')},{self.port // 256},{self.port % 256}"

    async def accept(self, peer: str, timeout: float) -> socket.socket:
        """The server's connection. One that comes from elsewhere than `peer` is not the server's, and is refused."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                while True:
                    data, address = await loop.sock_accept(self._socket)
                    if address[0] == peer:
                        return data
                    data.close()
        except TimeoutError as error:
            message = "the server did not open the data connection in time"
            raise TransferFailure(ErrorReason.DATA_CONNECTION, message) from error

    def close(self) -> None:
        """Takes no more connections."""
        self._socket.close()


def _listen(local: str, first: int, last: int, *, anywhere: bool) -> socket.socket:
    family = _family(local)
    # An address that was set is one of a router, which hands connections on to whichever address of ours.
    address = ("::" if family == socket.AF_INET6 else "0.0.0.0") if anywhere else local  # noqa: S104
    ports = list(range(first, last + 1)) if first else [0]
    # Sessions of several processes share the range: in a random order they seldom meet.
    random.shuffle(ports)
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(1)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                message = f"cannot listen on {address} port {port}: {error.strerror}"
                raise TransferFailure(ErrorReason.DATA_CONNECTION, message) from error
        else:
            return listener
    raise TransferFailure(ErrorReason.DATA_CONNECTION, f"no port from {first} to {last} is free")


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
