"""Credentials for the API under test, encrypted with the run's name as context."""

from __future__ import annotations

from pydantic import TypeAdapter

from opsplane_server.loadtesting.definitions import Credentials
from opsplane_server.storage.secrets import SecretBox

_credentials: TypeAdapter[Credentials] = TypeAdapter(Credentials)


def seal_credentials(box: SecretBox, run: str, credentials: Credentials) -> bytes:
    """Encrypts credentials; only `open_credentials` with the same run reads them."""
    return box.encrypt(_credentials.dump_json(credentials).decode(), run)


def open_credentials(box: SecretBox, run: str, sealed: bytes) -> Credentials:
    """Decrypts what `seal_credentials` made. Raises DataLoss for another run or key."""
    return _credentials.validate_json(box.decrypt(sealed, run))
