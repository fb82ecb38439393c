"""What the server keeps of a password, computed here: so no statement that it could log holds a password."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

_ALPHABET: Final = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ROUNDS: Final = 5000
_SALT_BYTES: Final = 20


def identified(password: str, *, mariadb: bool) -> str:
    """The clause of CREATE USER and ALTER USER that gives an account this password."""
    if mariadb:
        return f"IDENTIFIED VIA mysql_native_password USING '{native_verifier(password)}'"
    return f"IDENTIFIED WITH caching_sha2_password AS 0x{sha2_verifier(password).hex()}"


def native_verifier(password: str) -> str:
    """For `mysql_native_password`, the one method that every client of MariaDB has."""
    return "*" + hashlib.sha1(hashlib.sha1(password.encode()).digest()).hexdigest().upper()  # noqa: S324 its protocol


def sha2_verifier(password: str) -> bytes:
    """For `caching_sha2_password`, with a new salt."""
    salt = bytes(_ALPHABET[secrets.randbelow(len(_ALPHABET))] for _ in range(_SALT_BYTES))
    return b"$A$%03X$" % (_ROUNDS // 1000) + salt + sha256_crypt(password.encode(), salt)


def sha256_crypt(key: bytes, salt: bytes) -> bytes:
    """The hash of `crypt` with method `$5$` and 5000 rounds. Written out, for that of the C library stops at 16 bytes
    of salt where MySQL has 20. Takes some 5 ms.
    """
    alternate = _sha256(key + salt + key)
    first = key + salt + _repeated(alternate, len(key))
    bits = len(key)
    while bits:
        first += alternate if bits & 1 else key
        bits >>= 1
    digest = _sha256(first)
    long_key = _repeated(_sha256(key * len(key)), len(key))
    long_salt = _repeated(_sha256(salt * (16 + digest[0])), len(salt))
    for number in range(_ROUNDS):
        odd = number & 1
        digest = _sha256(
            (long_key if odd else digest)
            + (long_salt if number % 3 else b"")
            + (long_key if number % 7 else b"")
            + (digest if odd else long_key)
        )
    return _encoded(digest)


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _repeated(digest: bytes, length: int) -> bytes:
    return (digest * (length // len(digest) + 1))[:length]


def _encoded(digest: bytes) -> bytes:
    """Base 64 of its own kind: three bytes at a time, from three thirds of the digest, the lowest bits first."""
    text = bytearray()
    high, middle, low = 0, 10, 20
    for _ in range(10):
        _append(text, digest[high] << 16 | digest[middle] << 8 | digest[low], 4)
        high, middle, low = low + 1, high + 1, middle + 1
    _append(text, digest[31] << 8 | digest[30], 3)
    return bytes(text)


def _append(text: bytearray, bits: int, count: int) -> None:
    for _ in range(count):
        text.append(_ALPHABET[bits & 63])
        bits >>= 6
