"""Ports that are one server's alone."""

import asyncio
import socket

import grpc
import pytest
from opsplane_server.errors import FailedPrecondition
from opsplane_server.supervisor.ports import HeldPort, address_of, listen

LOOPBACK = "127.0.0.1"


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_a_held_port_is_nobody_elses() -> None:
    with HeldPort(LOOPBACK, 0) as held:
        port = port_of(held.address)
        with pytest.raises(FailedPrecondition, match=f"port {port} of {LOOPBACK} is in use"):
            HeldPort(LOOPBACK, port)
        with pytest.raises(FailedPrecondition, match="is in use"):
            listen(LOOPBACK, port)
        with pytest.raises(FailedPrecondition, match="is in use"):
            HeldPort("0.0.0.0", port)  # noqa: S104
        with socket.socket() as plain, pytest.raises(OSError, match="in use"):
            plain.bind((LOOPBACK, port))


def test_a_port_that_is_listened_on_is_not_held() -> None:
    for reuse_port in (False, True):
        with socket.create_server((LOOPBACK, 0), reuse_port=reuse_port) as server:
            with pytest.raises(FailedPrecondition, match="is in use"):
                HeldPort(LOOPBACK, server.getsockname()[1])
            with pytest.raises(FailedPrecondition, match="is in use"):
                HeldPort("0.0.0.0", server.getsockname()[1])  # noqa: S104


def test_a_released_port_is_free_again() -> None:
    with HeldPort(LOOPBACK, 0) as held:
        port = port_of(held.address)
    with HeldPort(LOOPBACK, port) as again:
        assert port_of(again.address) == port


def test_a_port_with_connections_that_still_close_can_be_held() -> None:
    with listen(LOOPBACK, 0) as server:
        server.setblocking(True)
        port = server.getsockname()[1]
        with socket.create_connection((LOOPBACK, port)) as client:
            accepted, _ = server.accept()
            accepted.close()  # who closes first keeps the port in TIME_WAIT
            assert client.recv(1) == b""
    with HeldPort(LOOPBACK, port) as held:
        assert port_of(held.address) == port


@pytest.mark.parametrize("host", [LOOPBACK, "0.0.0.0", "localhost", "::1", "::"])  # noqa: S104
async def test_workers_share_the_held_port(host: str) -> None:
    try:
        held = HeldPort(host, 0)
    except FailedPrecondition as error:
        pytest.skip(str(error))
    with held:
        servers = [grpc.aio.server(options=[("grpc.so_reuseport", 1)]) for _ in range(2)]
        for server in servers:
            assert server.add_insecure_port(held.address) == port_of(held.address)
            await server.start()
        with pytest.raises(FailedPrecondition, match="is in use"):
            HeldPort(host, port_of(held.address))
        await asyncio.gather(*(server.stop(None) for server in servers))


def test_what_can_not_be_listened_on_is_named() -> None:
    with pytest.raises(FailedPrecondition, match=r"192\.0\.2\.1"):
        HeldPort("192.0.2.1", 0)
    with pytest.raises(FailedPrecondition, match=r"no\.such\.host\.invalid is no address"):
        HeldPort("no.such.host.invalid", 0)


def test_addresses_are_written_as_grpc_reads_them() -> None:
    with listen(LOOPBACK, 0) as server:
        assert address_of(server) == f"127.0.0.1:{server.getsockname()[1]}"
