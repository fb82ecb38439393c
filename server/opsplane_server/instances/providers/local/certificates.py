"""Certificates of an instance's servers, signed by an authority of the instance's own."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from opsplane_server.instances.providers.local.layout import InstanceFolder
from opsplane_server.instances.providers.local.manifest import write_durably
from opsplane_server.storage.accounts import Account

# An authority of one instance needs no successor in its lifetime; a server gets a new certificate at its start.
_AUTHORITY_LIFE: Final = timedelta(days=365 * 30)
_SERVER_LIFE: Final = timedelta(days=365 * 10)
_RENEWED_BEFORE: Final = timedelta(days=365 * 2)
_CLOCK_SKEW: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Of one server, readable for its account alone. authority: the certificate that clients need."""

    certificate: Path
    key: Path
    authority: Path


def files(conf: Path) -> CertificateFiles:
    """Where the certificates of the server with this folder of settings are."""
    return CertificateFiles(conf / "server.crt", conf / "server.key", conf / "ca.crt")


def authority(folder: InstanceFolder) -> str:
    """The authority's certificate, PEM; "" while there is none."""
    try:
        return (folder.tls / "ca.crt").read_text()
    except FileNotFoundError:
        return ""


def ensure(folder: InstanceFolder, conf: Path, account: Account, hosts: Sequence[str]) -> CertificateFiles:
    """Makes what is missing, outdated or for other hosts. hosts: names and addresses that clients connect to."""
    target = files(conf)
    if not (folder.tls / "ca.crt").exists():
        _create_authority(folder)
    wanted = list(dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1", socket.gethostname()]))
    if not _valid(target, authority(folder), wanted):
        _issue(folder, target, account, wanted)
    return target


def _create_authority(folder: InstanceFolder) -> None:
    folder.tls.mkdir(mode=0o700, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Opsplane instance {folder.path.name}"[:64])])
    certificate = (
        _builder(name, name, key.public_key(), _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_durably(folder.tls / "ca.key", _pem(key))
    # Last: who finds it finds the key.
    write_durably(folder.tls / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))


def _issue(folder: InstanceFolder, target: CertificateFiles, account: Account, hosts: Sequence[str]) -> None:
    signer = serialization.load_pem_private_key((folder.tls / "ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate((folder.tls / "ca.crt").read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, target.key.parent.parent.name[:64])])
    certificate = (
        _builder(name, issuer.subject, key.public_key(), _SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    owner = (account.uid, account.gid)
    write_durably(target.authority, issuer.public_bytes(serialization.Encoding.PEM), owner=owner)
    write_durably(target.key, _pem(key), owner=owner)
    # Last, for it is what `_valid` looks at.
    write_durably(target.certificate, certificate.public_bytes(serialization.Encoding.PEM), owner=owner)


def _valid(target: CertificateFiles, issuer: str, hosts: Sequence[str]) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(target.certificate.read_bytes())
        key = serialization.load_pem_private_key(target.key.read_bytes(), None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(issuer.encode()))
    except Exception:  # missing or damaged in any way: made anew
        return False
    return (
        certificate.not_valid_after_utc > datetime.now(UTC) + _RENEWED_BEFORE
        and key.public_key() == certificate.public_key()
        and all(_general_name(host) in names for host in hosts)
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + life)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
