"""What MySQL and MariaDB keep of passwords, as other programs reckon it, and names in grants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.instances.engines.mysql.names import database_of_pattern, quote_database_pattern, quote_identifier
from opsplane_server.instances.engines.mysql.verifiers import identified, native_verifier, sha2_verifier, sha256_crypt


def test_the_hash_is_that_of_crypt() -> None:
    # By OpenSSL: openssl passwd -5 -salt SALT PASSWORD.
    assert sha256_crypt(b"Hello world!", b"saltstring") == b"5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"
    assert sha256_crypt(b"x" * 100, b"0123456789abcdef") == b"aKdz8fxxSEF2.sRL0xIqHdch3EAvPX6eVmzomlrlwFC"


def test_a_verifier_for_caching_sha2_password() -> None:
    first, second = sha2_verifier("secret"), sha2_verifier("secret")
    assert first != second
    for verifier in (first, second):
        assert verifier.startswith(b"$A$005$")
        salt, digest = verifier[7:27], verifier[27:]
        assert digest == sha256_crypt(b"secret", salt)
        assert len(digest) == 43


def test_a_verifier_for_mysql_native_password() -> None:
    # As the documentation of PASSWORD() has it.
    assert native_verifier("mypass") == "*6C8989366EAF75BB670AD8EA7A7FC1176A95CEF4"


@given(st.text(min_size=1))
def test_no_statement_holds_a_password(password: str) -> None:
    for mariadb in (True, False):
        clause = identified(password, mariadb=mariadb)
        assert clause.isascii()
        assert clause.count("'") in (0, 2)


@given(st.text(min_size=1).filter(lambda name: "\0" not in name))
def test_a_pattern_is_one_database(name: str) -> None:
    pattern = quote_database_pattern(name)
    assert database_of_pattern(pattern[1:-1].replace("``", "`")) == name


def test_names_are_quoted() -> None:
    assert quote_identifier("a`b") == "`a``b`"
    for name in ("", "a\0b"):
        with pytest.raises(ValueError, match="not a name"):
            quote_identifier(name)
    assert database_of_pattern("%") is None
    assert database_of_pattern("my_app") == "my_app"
