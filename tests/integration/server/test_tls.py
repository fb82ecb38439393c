"""Serving others than this machine: TLS, client certificates and tokens."""

import hashlib
from pathlib import Path

import grpc
import pytest
import yaml

from tests.integration.server.calls import list_operations
from tests.integration.server.certificates import Authority, Pair
from tests.rpc_harness import bearer, require_status
from tests.server_process import ServerProcess, new_server, running_server

EVERYWHERE = "0.0.0.0"  # noqa: S104


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def configuration(folder: Path, authority: Authority, *, client_ca: bool = False) -> list[str]:
    """Flags of a server with TLS for all addresses, and tokens `secret` (viewer) and `blind` (of no use here)."""
    cert, key = authority.issue("server").write(folder, "server")
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "tokens.yaml").write_text(
        yaml.safe_dump([{"name": "blind", "token": "blind", "roles": {"loadtesting": "viewer"}}])
    )
    digest = hashlib.sha256(b"secret").hexdigest()
    tls = {"cert": str(cert), "key": str(key)} | ({"client_ca": str(folder / "ca.pem")} if client_ca else {})
    auth = {
        "tokens": [{"name": "reader", "sha256": digest, "roles": {"*": "viewer"}}],
        "tokens_file": str(folder / "tokens.yaml"),
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"server": {"host": EVERYWHERE}, "tls": tls, "auth": auth}))
    return [f"--config={config}"]


def channel_to(server: ServerProcess, authority: Authority, client: Pair | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        authority.pem, client.key if client else None, client.cert if client else None
    )
    return grpc.aio.secure_channel(f"127.0.0.1:{server.address.rpartition(':')[2]}", credentials)


async def test_tls_and_a_token_open_the_server_to_others(tmp_path: Path, authority: Authority) -> None:
    with running_server(*configuration(tmp_path, authority), "--workers=2") as server:
        assert server.address.startswith("0.0.0.0:")
        async with channel_to(server, authority) as channel:
            await list_operations(channel, metadata=bearer("secret"))
            with require_status(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"):
                await list_operations(channel)
            with require_status(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_UNKNOWN"):
                await list_operations(channel, metadata=bearer("guessed"))
            with require_status(grpc.StatusCode.PERMISSION_DENIED, "ROLE_TOO_LOW"):
                await list_operations(channel, metadata=bearer("blind"))
        plain = grpc.aio.insecure_channel(f"127.0.0.1:{server.address.rpartition(':')[2]}")
        async with plain:
            with require_status(grpc.StatusCode.UNAVAILABLE):
                await list_operations(plain, metadata=bearer("secret"), timeout=10)
        async with channel_to(server, Authority()) as stranger:
            with require_status(grpc.StatusCode.UNAVAILABLE):
                await list_operations(stranger, metadata=bearer("secret"), timeout=10)
        server.stop()
        assert 'secret"' not in server.errors()


async def test_programs_that_the_server_starts_have_a_plain_port_of_loopback(
    tmp_path: Path, authority: Authority
) -> None:
    with running_server(*configuration(tmp_path, authority)) as server:
        ready = server.find_log("server ready")
        assert ready is not None
        assert ready["local_address"].startswith("127.0.0.1:")
        async with grpc.aio.insecure_channel(ready["local_address"]) as channel:
            await list_operations(channel, metadata=bearer("secret"))
            with require_status(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"):
                await list_operations(channel)


async def test_mutual_tls_asks_for_a_certificate_of_the_authority(tmp_path: Path, authority: Authority) -> None:
    with running_server(*configuration(tmp_path, authority, client_ca=True)) as server:
        async with channel_to(server, authority, authority.issue("client")) as channel:
            await list_operations(channel, metadata=bearer("secret"))
        async with channel_to(server, authority) as channel:
            with require_status(grpc.StatusCode.UNAVAILABLE):
                await list_operations(channel, metadata=bearer("secret"), timeout=10)
        foreign = Authority().issue("client")
        async with channel_to(server, authority, foreign) as channel:
            with require_status(grpc.StatusCode.UNAVAILABLE):
                await list_operations(channel, metadata=bearer("secret"), timeout=10)


def test_a_certificate_of_another_key_is_refused(tmp_path: Path, authority: Authority) -> None:
    arguments = configuration(tmp_path, authority)
    (tmp_path / "server.key").write_bytes(authority.issue("other").key)
    with new_server(*arguments) as server:
        server.start()
        assert server.wait() == 2
        assert "are no usable pair" in server.errors()
        assert server.errors().count("\n") == 1
