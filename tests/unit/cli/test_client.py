import asyncio
import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.longrunning import operations_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opsplane.client import Client, OperationFailed, Tls, connect, details, is_local, new_request_id
from opsplane.loadtesting.v1 import projects_pb2, runs_pb2

from tests.unit.cli.fake_servicer import NAME, FakeLoadTesting, FakePlatform, script, serving

LOST = grpc.StatusCode.UNAVAILABLE


async def watched(client: Client) -> list[runs_pb2.WatchRunResponse]:
    return [response async for response in client.watch_run(NAME)]


async def test_watch_goes_on_after_the_last_message_when_its_stream_is_lost() -> None:
    servicer = FakeLoadTesting(losses=[(2, LOST), (0, LOST), (1, grpc.StatusCode.CANCELLED), (1, None)])
    lost = 0

    def count() -> None:
        nonlocal lost
        lost += 1

    async with serving(servicer) as address, connect(address) as client:
        seen = [response async for response in client.watch_run(NAME, on_reconnect=count)]
    assert seen == script()
    assert lost == 4
    assert list(dict.fromkeys(servicer.cursors)) == ["", "1", "2", "3"]


async def test_watch_starts_after_a_cursor() -> None:
    async with serving(FakeLoadTesting()) as address, connect(address) as client:
        seen = [response async for response in client.watch_run(NAME, cursor="2")]
    assert [response.window.index for response in seen if response.HasField("window")] == [3, 4]


async def test_watch_does_not_repeat_what_is_refused() -> None:
    servicer = FakeLoadTesting()
    async with serving(servicer) as address, connect(address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [response async for response in client.watch_run("projects/shop/runs/other")]
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert details(caught.value).reason == "NOT_FOUND"
    assert len(servicer.cursors) == 1


async def test_calls_are_repeated_until_the_server_is_there() -> None:
    servicer = FakeLoadTesting(losses=[(0, LOST)] * 3)
    async with serving(servicer) as address, connect(address) as client:
        stream = client.load_testing.WatchRun(runs_pb2.WatchRunRequest(name=NAME))
        seen = [response async for response in stream]
    assert seen == script()
    assert len(servicer.cursors) == 4


async def test_token_goes_with_every_call() -> None:
    servicer = FakeLoadTesting()
    async with serving(servicer) as address:
        async with connect(address, token="abc") as client:
            await client.load_testing.ListProjects(projects_pb2.ListProjectsRequest(), metadata=(("x", "y"),))
            assert len(await watched(client)) == len(script())
        async with connect(address, token="") as client:
            await client.load_testing.ListProjects(projects_pb2.ListProjectsRequest())
    assert servicer.tokens == ["Bearer abc", ""]


async def test_details_of_a_refusal() -> None:
    async with serving(FakeLoadTesting()) as address, connect(address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.load_testing.CreateProject(projects_pb2.CreateProjectRequest(request_id=new_request_id()))
    found = details(caught.value)
    assert found.reason == "INVALID_ARGUMENT"
    assert found.fields == (("project.title", "too long"), ("project.summary", "two lines"))
    assert found.retry_after is None


def test_an_error_without_details_has_none() -> None:
    error = grpc.aio.AioRpcError(LOST, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone")
    assert details(error).fields == ()
    assert details(error).retry_after is None


def test_retry_delay_is_read() -> None:
    status = status_pb2.Status(code=14, message="later")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromSeconds(3)
    status.details.add().Pack(retry)
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    error = grpc.aio.AioRpcError(LOST, grpc.aio.Metadata(), trailing, "later")
    assert details(error).retry_after == timedelta(seconds=3)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.8.8:1", True),
        ("[::1]:50051", True),
        ("localhost:50051", True),
        ("unix:/run/opsplane.sock", True),
        ("ipv4:127.0.0.1:50051", False),
        ("10.0.0.1:50051", False),
        ("localhost.example.com:50051", False),
        ("opsplane.example.com", False),
    ],
)
def test_only_this_machine_is_local(address: str, local: bool) -> None:
    assert is_local(address) is local


async def test_address_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(FakeLoadTesting()) as address:
        monkeypatch.setenv("OPSPLANE_ADDRESS", address)
        async with asyncio.timeout(30), connect() as client:
            assert client.address == address
            assert len(await watched(client)) == len(script())


def done(project: projects_pb2.Project) -> operations_pb2.Operation:
    operation = operations_pb2.Operation(name="operations/o", done=True)
    operation.response.Pack(project)
    return operation


async def test_an_operation_is_waited_for_across_lost_streams() -> None:
    going_on = operations_pb2.Operation(name="operations/o")
    made = projects_pb2.Project(name="projects/p")
    platform = FakePlatform(going_on, going_on, done(made))
    async with serving(FakeLoadTesting(), platform) as address, connect(address) as client:
        assert await client.wait_operation(going_on, projects_pb2.Project) == made
        assert platform.states == []


async def test_an_operation_that_failed_raises_its_error() -> None:
    failed = operations_pb2.Operation(name="operations/o", done=True)
    failed.error.CopyFrom(status_pb2.Status(code=code_pb2.ABORTED, message="no room"))
    async with serving(FakeLoadTesting(), FakePlatform(failed)) as address, connect(address) as client:
        with pytest.raises(OperationFailed, match="no room") as caught:
            await client.wait_operation("operations/o", projects_pb2.Project)
    assert caught.value.code == "ABORTED"


async def test_a_response_of_another_type_is_no_response() -> None:
    platform = FakePlatform(done(projects_pb2.Project()))
    async with serving(FakeLoadTesting(), platform) as address, connect(address) as client:
        with pytest.raises(TypeError, match=r"loadtesting.v1.Project, not opsplane.loadtesting.v1.Run"):
            await client.wait_operation("operations/o", runs_pb2.Run)


def self_signed(folder: Path) -> Tls:
    """A certificate of 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "opsplane")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Tls(ca=folder / "cert.pem", certificate=folder / "cert.pem", key=folder / "key.pem")


async def test_both_sides_prove_themselves_with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = self_signed(tmp_path)
    assert tls.ca is not None
    assert tls.key is not None
    pem = tls.ca.read_bytes()
    credentials = grpc.ssl_server_credentials([(tls.key.read_bytes(), pem)], pem, require_client_auth=True)
    servicer = FakeLoadTesting()
    async with serving(servicer, credentials=credentials) as address:
        async with connect(address, tls=tls, token="abc") as client:
            await client.load_testing.ListProjects(projects_pb2.ListProjectsRequest())
        monkeypatch.setenv("OPSPLANE_CA", str(tls.ca))
        async with connect(address) as client:
            with pytest.raises(grpc.aio.AioRpcError):
                await client.load_testing.ListProjects(projects_pb2.ListProjectsRequest())
    assert servicer.tokens == ["Bearer abc"]


def test_a_missing_file_of_tls_is_said() -> None:
    with pytest.raises(FileNotFoundError):
        connect("127.0.0.1:1", tls=Tls(ca=Path("/nowhere/ca.pem")))
