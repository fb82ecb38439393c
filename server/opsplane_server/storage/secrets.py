"""Encryption of what must be kept but not be read in the database: passwords and tokens."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import tempfile
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from opsplane_server.errors import DataLoss, FailedPrecondition
from opsplane_server.storage.accounts import create_folder, sync_folder

_FORMAT = b"\x01"
_KEY_ID_BYTES = 4
_NONCE_BYTES = 12
_HEADER_BYTES = len(_FORMAT) + _KEY_ID_BYTES + _NONCE_BYTES


class SecretBox:
    """AES-256-GCM with the keys of a file; the first key encrypts, all of them decrypt.

    To rotate, put a new key before the others, and remove an old one when nothing that it encrypted is left.
    A token is: format 1, the first 4 bytes of the key's SHA-256, a random nonce of 12, ciphertext and tag.
    """

    def __init__(self, keys: list[bytes]) -> None:
        if not keys or any(len(key) != 32 for key in keys):
            raise ValueError("keys of 32 bytes are needed, at least one")
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._keys = {_key_id(key): key for key in keys}
        self._current = _key_id(keys[0])

    @classmethod
    def from_key_file(cls, path: Path, create: bool) -> Self:
        """Reads a file of base64 keys, one a line; if it is missing and `create` is set, makes one with a new key.

        FailedPrecondition if it is missing, damaged, or open to anybody but its owner.
        """
        try:
            if create and not path.exists():
                _create_key_file(path)
            with path.open() as stream:
                mode = os.fstat(stream.fileno()).st_mode
                lines = stream.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FailedPrecondition(f"the key file {path} can not be used: {error}", reason="KEY_FILE") from error
        if mode & 0o077:
            raise FailedPrecondition(
                f"the key file {path} is open to others; run `chmod 600 {path}`", reason="KEY_FILE"
            )
        keys = [_parse_key(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
        if not keys:
            raise FailedPrecondition(f"the key file {path} has no key", reason="KEY_FILE")
        return cls(keys)

    def encrypt(self, plain: str, context: str) -> bytes:
        """`context` is the full name of the resource that owns the secret; only with the same one it decrypts."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self._current].encrypt(nonce, plain.encode(), context.encode())
        return _FORMAT + self._current + nonce + sealed

    def decrypt(self, token: bytes, context: str) -> str:
        """FailedPrecondition without its key; DataLoss if the token is damaged or of another context."""
        if token[:1] != _FORMAT or len(token) < _HEADER_BYTES:
            raise DataLoss(f"the stored secret of {context} is damaged", reason="SECRET_DAMAGED")
        key_id, nonce = token[1 : 1 + _KEY_ID_BYTES], token[1 + _KEY_ID_BYTES : _HEADER_BYTES]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise FailedPrecondition(
                f"the key that encrypted the secret of {context} is not in the key file",
                reason="SECRET_KEY_MISSING",
            )
        try:
            return cipher.decrypt(nonce, token[_HEADER_BYTES:], context.encode()).decode()
        except InvalidTag:
            raise DataLoss(
                f"the stored secret of {context} is damaged or belongs elsewhere", reason="SECRET_DAMAGED"
            ) from None

    def fingerprint(self, data: bytes) -> bytes:
        """By which the same data are known again. Nobody without the key can try out what they may have been."""
        return self._current + self._mac(self._current, data)

    def is_of(self, fingerprint: bytes, data: bytes) -> bool:
        """Whether a fingerprint is of these data; False also when its key is gone."""
        key_id, mac = fingerprint[:_KEY_ID_BYTES], fingerprint[_KEY_ID_BYTES:]
        return key_id in self._keys and hmac.compare_digest(mac, self._mac(key_id, data))

    def _mac(self, key_id: bytes, data: bytes) -> bytes:
        # A key of its own, derived: that of the ciphers serves nothing else.
        derived = hmac.digest(self._keys[key_id], b"fingerprint", "sha256")
        return hmac.digest(derived, data, "sha256")


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:_KEY_ID_BYTES]


def _parse_key(line: str, path: Path, number: int) -> bytes:
    try:
        key = base64.b64decode(line.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise FailedPrecondition(f"line {number} of the key file {path} is no key of 32 bytes", reason="KEY_FILE")
    return key


def _create_key_file(path: Path) -> None:
    """Complete under another name first, then linked: of several processes one wins, and none reads half a file."""
    create_folder(path.parent)
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # of mode 0600
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(base64.b64encode(AESGCM.generate_key(256)) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):  # another process was quicker; its key counts
            os.link(scratch, path)
    finally:
        os.unlink(scratch)
    sync_folder(path.parent)
