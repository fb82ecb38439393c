"""Passwords of queries, encrypted with the data set's name as context."""

from __future__ import annotations

from opsplane_server.loadtesting.datasets.model import DataSet
from opsplane_server.storage.secrets import SecretBox


def seal_password(box: SecretBox, data_set: str, password: str) -> bytes | None:
    """Encrypts a password; only `open_password` with the same data set reads it. None for none."""
    return box.encrypt(password, data_set) if password else None


def open_password(box: SecretBox, data_set: DataSet) -> str:
    """Decrypts what `seal_password` made. Raises DataLoss for another data set, FailedPrecondition without its key."""
    return box.decrypt(data_set.password, data_set.name) if data_set.password else ""
