"""TLS of control and data connections: the server's certificate is always checked."""

from __future__ import annotations

import hashlib
import ssl
from typing import Any

from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure
from opsplane_server.ftptransfer.model import FtpServer, TlsSettings


class TlsClient:
    """What all TLS connections to a server share. Making one reads certificates, so there is one a connection."""

    def __init__(self, server: FtpServer, settings: TlsSettings) -> None:
        self.settings = settings
        self.server_name = settings.server_name or server.host
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Python lets the end of TCP pass for the end of TLS; here it may mean that somebody cut the data short.
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        if settings.certificate_sha256:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif settings.ca_certificates:
            try:
                context.load_verify_locations(cadata=settings.ca_certificates)
            except (ssl.SSLError, ValueError) as error:
                raise TransferFailure(ErrorReason.TLS, f"ca_certificates cannot be read: {error}") from error
        else:
            context.load_default_certs()
        self.context = context

    def check(self, connection: ssl.SSLObject | ssl.SSLSocket) -> str:
        """SHA-256 of the certificate that the server showed. Raises TransferFailure if another one is pinned."""
        found = fingerprint(connection)
        pinned = self.settings.certificate_sha256.lower()
        if pinned and found != pinned:
            raise TransferFailure(ErrorReason.TLS, f"the server's certificate is another one, SHA-256 {found}")
        return found


def fingerprint(connection: ssl.SSLObject | ssl.SSLSocket) -> str:
    """SHA-256 of the certificate that the server showed, hexadecimal."""
    certificate = connection.getpeercert(binary_form=True)
    return hashlib.sha256(certificate).hexdigest() if certificate else ""


def tls_failure(error: Exception) -> TransferFailure:
    """The failure of a handshake. What breaks in the middle may come of the network and is tried again."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TransferFailure(ErrorReason.TLS, f"the server's certificate is not trusted: {error.verify_message}")
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        return TransferFailure(ErrorReason.TLS, f"TLS failed: {error.reason or error}")
    return TransferFailure(ErrorReason.CONNECTION_LOST, f"the connection broke while TLS began: {error}")


def cipher(connection: Any) -> str:
    """TLS version and cipher."""
    name = connection.cipher()
    return f"{connection.version()} {name[0]}" if name else ""
