"""Fetching: limits, redirects and which addresses are connected to."""

from __future__ import annotations

import datetime
import gzip
import ipaddress
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from opsplane_server.errors import InvalidArgument, ResourceExhausted, Unavailable
from opsplane_server.loadtesting.addresses import may_connect
from opsplane_server.loadtesting.openapi.fetching import FetchedDocument, FetchLimits, SpecFetcher

from tests.unit.loadtesting.openapi.local_server import Answer, LocalServer, local_server

LIMITS = FetchLimits(max_bytes=1000, timeout=timedelta(seconds=10), max_redirects=2, allow_private=True)


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with local_server() as running:
        yield running


@pytest.fixture
async def fetcher() -> AsyncIterator[SpecFetcher]:
    async with SpecFetcher(LIMITS) as ready:
        yield ready


@pytest.mark.parametrize(
    ("address", "closed", "opened"),
    [
        ("93.184.216.34", True, True),
        ("2606:2800:220:1::1", True, True),
        ("127.0.0.1", False, True),
        ("10.1.2.3", False, True),
        ("192.168.0.1", False, True),
        ("100.64.0.1", False, False),
        ("169.254.169.254", False, False),
        ("0.0.0.0", False, False),  # noqa: S104
        ("224.0.0.1", False, False),
        ("255.255.255.255", False, True),
        ("::1", False, True),
        ("fd00::1", False, True),
        ("fe80::1", False, False),
        ("::", False, False),
        ("::ffff:127.0.0.1", False, True),
        ("::ffff:169.254.169.254", False, False),
        ("::ffff:93.184.216.34", True, True),
        ("64:ff9b::a9fe:a9fe", False, False),
        ("64:ff9b::5db8:d822", True, True),
        ("2002:7f00:1::", False, True),
    ],
)
def test_which_addresses_are_connected_to(address: str, closed: bool, opened: bool) -> None:
    assert may_connect(ipaddress.ip_address(address), allow_private=False) is closed
    assert may_connect(ipaddress.ip_address(address), allow_private=True) is opened


async def test_a_document_is_fetched_under_its_own_host_name(server: LocalServer, fetcher: SpecFetcher) -> None:
    server.answers["/o.json"] = Answer("{ü}".encode())
    url = server.url("/o.json", "localhost")
    assert await fetcher.fetch(url + "#part") == FetchedDocument(url, "{ü}")
    assert [asked.headers["host"] for asked in server.asked] == [f"localhost:{server.port}"]


async def test_redirects_are_followed_to_the_end(server: LocalServer, fetcher: SpecFetcher) -> None:
    server.answers["/a"] = Answer(status=302, headers={"Location": "/b/c"})
    server.answers["/b/c"] = Answer(status=308, headers={"Location": "d?x=1"})
    server.answers["/b/d?x=1"] = Answer(b"openapi: 3.0.0")
    assert await fetcher.fetch(server.url("/a")) == FetchedDocument(server.url("/b/d?x=1"), "openapi: 3.0.0")


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("/loop", "redirects more than 2 times"),
        ("http://169.254.169.254/latest/meta-data", "only private addresses"),
        ("file:///etc/passwd", "must be a complete http or https URL"),
        ("http://user:secret@127.0.0.1/", "must not hold credentials"),
    ],
)
async def test_redirects_to_elsewhere_are_refused(
    server: LocalServer, fetcher: SpecFetcher, location: str, problem: str
) -> None:
    server.answers["/loop"] = Answer(status=301, headers={"Location": location})
    with pytest.raises(InvalidArgument, match=problem) as caught:
        await fetcher.fetch(server.url("/loop"))
    assert "secret" not in str(caught.value)


async def test_private_addresses_are_refused_unless_allowed(server: LocalServer) -> None:
    async with SpecFetcher() as fetcher:
        for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"):
            with pytest.raises(InvalidArgument, match="only private addresses"):
                await fetcher.fetch(server.url("/", host))
    assert server.asked == []


@pytest.mark.parametrize(
    "url", ["", "openapi.json", "ftp://example.com/", "http://", "http://[::z]/", "file:///etc/passwd"]
)
async def test_what_is_no_url_is_refused(fetcher: SpecFetcher, url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await fetcher.fetch(url)
    assert caught.value.violations[0].field == "openapi_url"


async def test_too_much_is_refused_compressed_or_not(server: LocalServer, fetcher: SpecFetcher) -> None:
    server.answers["/full"] = Answer(b"x" * 1000)
    server.answers["/plain"] = Answer(b"x" * 1001)
    server.answers["/gzip"] = Answer(gzip.compress(b"x" * 1_000_000), headers={"Content-Encoding": "gzip"})
    assert len((await fetcher.fetch(server.url("/full"))).text) == 1000
    for path in ("/plain", "/gzip"):
        with pytest.raises(ResourceExhausted, match="larger than 1000 bytes"):
            await fetcher.fetch(server.url(path))
    with pytest.raises(ResourceExhausted, match="larger than 10 bytes"):
        await fetcher.fetch(server.url("/full"), max_bytes=10)


async def test_a_source_that_does_not_answer_is_unavailable(server: LocalServer, fetcher: SpecFetcher) -> None:
    server.answers["/slow"] = Answer(hold=True)
    server.answers["/broken"] = Answer(status=503)
    server.answers["/short"] = Answer(b"x", headers={"Content-Length": "10"})
    for path, problem in (("/broken", "answered 503"), ("/short", "cannot be read")):
        with pytest.raises(Unavailable, match=problem):
            await fetcher.fetch(server.url(path))
    with pytest.raises(Unavailable, match="cannot be read"):
        await fetcher.fetch("http://127.0.0.1:1/")
    async with SpecFetcher(replace(LIMITS, timeout=timedelta(milliseconds=200))) as impatient:
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            await impatient.fetch(server.url("/slow"))


async def test_a_host_that_is_not_known_is_unavailable(fetcher: SpecFetcher) -> None:
    with pytest.raises(Unavailable, match="not known"):
        await fetcher.fetch("http://no-such-host.invalid/")
    with pytest.raises((Unavailable, InvalidArgument)):
        await fetcher.fetch(f"http://{'a' * 70}.example.com/")


async def test_a_document_that_is_not_there_is_refused(server: LocalServer, fetcher: SpecFetcher) -> None:
    with pytest.raises(InvalidArgument, match="answered 404"):
        await fetcher.fetch(server.url("/nothing"))


async def test_encodings(server: LocalServer, fetcher: SpecFetcher) -> None:
    server.answers["/bom"] = Answer("\ufeffä".encode())
    server.answers["/utf16"] = Answer("ä".encode("utf-16"))
    server.answers["/latin"] = Answer(b"a\n\xe4")
    assert (await fetcher.fetch(server.url("/bom"))).text == "ä"
    assert (await fetcher.fetch(server.url("/utf16"))).text == "ä"
    with pytest.raises(InvalidArgument, match="line 2: the document is not Unicode text"):
        await fetcher.fetch(server.url("/latin"))


async def test_certificates_are_checked_for_the_name_and_not_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, context = _self_signed("localhost", tmp_path)
    async with local_server(context) as server:
        server.answers["/o"] = Answer(b"{}")
        async with SpecFetcher(LIMITS) as distrustful:
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await distrustful.fetch(f"https://localhost:{server.port}/o")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with SpecFetcher(LIMITS) as trusting:
            assert (await trusting.fetch(f"https://localhost:{server.port}/o")).text == "{}"
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await trusting.fetch(f"https://127.0.0.1:{server.port}/o")


def _self_signed(host: str, folder: Path) -> tuple[Path, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file, key_file)
    return certificate_file, context
