"""Ports of this machine for servers that tests start."""

import socket


def free_ports(count: int) -> list[int]:
    """Ports that nobody has right now; somebody else may be quicker, so prefer port 0 where it goes."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]
    finally:
        for probe in sockets:
            probe.close()


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
