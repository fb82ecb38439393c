"""SCRAM verifiers: what PostgreSQL keeps in place of a password, computed here so that no password goes over."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import stringprep
import unicodedata

_ITERATIONS = 4096  # PostgreSQL's default
_SALT_BYTES = 16
_SPACE_TABLE = stringprep.in_table_c12
_PROHIBITED = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def scram_verifier(password: str, *, salt: bytes | None = None) -> str:
    """What `CREATE ROLE ... PASSWORD` takes in place of the password; another one each time unless `salt` is given.

    It is ASCII without quotes. Nobody can log in with it, nor compute the password from it but by guessing.
    """
    salt = salt or secrets.token_bytes(_SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", _prepared(password), salt, _ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${_ITERATIONS}:{_base64(salt)}${_base64(stored_key)}:{_base64(server_key)}"


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _prepared(password: str) -> bytes:
    """SASLprep (RFC 4013), or the password as it is where that forbids it: PostgreSQL and its clients do the same."""
    mapped = "".join(
        " " if _SPACE_TABLE(character) else character for character in password if not stringprep.in_table_b1(character)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if not prepared or any(forbids(character) for character in prepared for forbids in _PROHIBITED):
        return password.encode()
    right_to_left = [stringprep.in_table_d1(character) for character in prepared]
    if any(right_to_left):
        mixed = any(stringprep.in_table_d2(character) for character in prepared)
        if mixed or not (right_to_left[0] and right_to_left[-1]):
            return password.encode()
    return prepared.encode()
